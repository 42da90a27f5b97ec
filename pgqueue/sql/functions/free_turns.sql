-- Jobs of these keys have left `running`, in this transaction: those behind them have their turn. Where nobody is behind them, one
-- may be on the way there, so somebody looks again after the commit.
CREATE OR REPLACE FUNCTION pgqueue.free_turns(turns text[]) RETURNS void
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    moved text[] := ARRAY(SELECT t FROM pgqueue.next_turns(turns) t);
BEGIN
    IF cardinality(moved) > 1 THEN                           -- one is for the worker that calls: it has room now, and claims next
        PERFORM pgqueue.wake_idle();
    END IF;
    INSERT INTO pgqueue.wakeup (pos, turn)
    SELECT nextval('pgqueue.position'), t FROM (SELECT DISTINCT t FROM unnest(turns) t WHERE t <> ALL (moved)) t;
    IF FOUND THEN
        PERFORM pg_notify('pgqueue_wake', '');
    END IF;
END
$$;
