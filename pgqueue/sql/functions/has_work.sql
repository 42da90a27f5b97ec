-- Is there anything in these queues that a worker could claim? What an idle host asks, once for all of its workers.
CREATE OR REPLACE FUNCTION pgqueue.has_work(queues text[]) RETURNS boolean
LANGUAGE plpgsql STABLE
SET enable_seqscan = off SET jit = off
AS $$
BEGIN
    FOR i IN 1 .. cardinality(queues) LOOP
        PERFORM FROM pgqueue.ready r JOIN pgqueue.queue q ON q.name = r.queue AND NOT q.paused WHERE r.queue = queues[i] LIMIT 1;
        IF FOUND THEN
            RETURN true;
        END IF;
    END LOOP;
    RETURN false;
END
$$;
