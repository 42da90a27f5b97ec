-- Tell idle listeners that there is work, if there are any. NOTIFY takes a lock of the whole server at commit, so a
-- busy system, where nobody is idle, never pays for it; and it is only a hint, polling finds the work anyway.
CREATE OR REPLACE FUNCTION pgqueue.wake_idle() RETURNS void
LANGUAGE plpgsql VOLATILE
AS $$
BEGIN
    IF (SELECT last_value FROM pgqueue.idle_until) > extract(epoch FROM pgqueue.clock()) * 1000 THEN
        PERFORM pg_notify('pgqueue', '');
    END IF;
END
$$;
