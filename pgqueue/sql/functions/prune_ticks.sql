-- Delete up to `amount` rows of ticks that were dealt with longer ago than `older`, and whose job is no longer there. Returns how many
-- went. No schedule comes back to them: done_until is behind them. A backfill may: so it stays known where they were.
CREATE OR REPLACE FUNCTION pgqueue.prune_ticks(older interval, amount integer) RETURNS bigint
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
        SELECT t.ctid AS tid FROM pgqueue.tick t LEFT JOIN pgqueue.job j ON j.id = t.job_id
         WHERE t.ticked_at < pgqueue.clock_bound() - older AND j.id IS NULL
         ORDER BY t.ticked_at LIMIT amount FOR UPDATE OF t SKIP LOCKED
    ), gone AS (
        DELETE FROM pgqueue.tick t WHERE t.ctid = ANY (ARRAY(SELECT o.tid FROM old o)) RETURNING t.schedule, t.due_at, t.job_id
    ), noted AS (
        INSERT INTO pgqueue.pruned_ticks AS p (schedule, first, last)
        SELECT g.schedule, min(g.due_at), max(g.due_at) FROM gone g WHERE g.job_id IS NOT NULL GROUP BY g.schedule ORDER BY g.schedule
        ON CONFLICT (schedule) DO UPDATE SET first = least(p.first, excluded.first), last = greatest(p.last, excluded.last)
    )
    SELECT count(*) INTO pruned FROM gone;
    RETURN pruned;
END
$$;
