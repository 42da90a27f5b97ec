-- Delete up to `amount` events that were sent longer ago than `older`, without those of which a job has yet to read the value, because
-- it waits for them. Returns how many went.
CREATE OR REPLACE FUNCTION pgqueue.prune_events(older interval, amount integer) RETURNS bigint
LANGUAGE plpgsql VOLATILE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $$
DECLARE
    pruned bigint;
BEGIN
    PERFORM pgqueue.assert_read_committed();
    IF older < interval '0' THEN
        PERFORM pgqueue.refuse('PQ004', format('the age %s is negative', older));
    END IF;
    WITH old AS MATERIALIZED (
        SELECT e.ctid AS tid FROM pgqueue.event e
         WHERE e.sent_at < pgqueue.clock_bound() - older
           AND NOT EXISTS (SELECT FROM pgqueue.wait w
                             LEFT JOIN pgqueue.checkpoint c ON c.job_id = w.job_id AND c.seq = w.seq
                             LEFT JOIN pgqueue.outcome o ON o.job_id = w.job_id
                            WHERE w.kind = 'event' AND w.key = e.key AND c.job_id IS NULL AND o.job_id IS NULL)
         ORDER BY e.sent_at LIMIT amount FOR UPDATE SKIP LOCKED
    ), gone AS (
        DELETE FROM pgqueue.event e WHERE e.ctid = ANY (ARRAY(SELECT o.tid FROM old o)) RETURNING 1
    )
    SELECT count(*) INTO pruned FROM gone;
    RETURN pruned;
END
$$;
