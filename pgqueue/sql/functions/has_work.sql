-- In how many seconds could a worker claim something from these queues? 0: now; null: there is nothing. What an idle host asks, once
-- for all of its workers. Where a limit is reached nobody knows; then it is a second.
CREATE OR REPLACE FUNCTION pgqueue.has_work(queues text[]) RETURNS double precision
LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off SET jit = off
AS $$
DECLARE
    q     pgqueue.queue;
    soon  double precision;
    first double precision;
BEGIN
    FOR i IN 1 .. cardinality(queues) LOOP
        SELECT u.* INTO q FROM pgqueue.queue u WHERE u.name = queues[i] AND NOT u.paused;
        CONTINUE WHEN NOT FOUND;
        PERFORM FROM pgqueue.ready r WHERE r.queue = queues[i] LIMIT 1;
        CONTINUE WHEN NOT FOUND;
        soon := CASE WHEN q.concurrency IS NOT NULL AND pgqueue.used(q) >= q.concurrency THEN 1
                     WHEN q.rate IS NULL THEN 0
                     ELSE extract(epoch FROM pgqueue.next_start(q.name, '', q.rate, q.rate_seconds, q.rate_burst, 1, pgqueue.clock())
                                             - pgqueue.clock()) END;
        IF soon <= 0 THEN
            RETURN 0;
        END IF;
        first := least(first, soon);
    END LOOP;
    RETURN first;
END
$$;
