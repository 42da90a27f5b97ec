-- Move up to `amount` due jobs from `scheduled` to `ready`, the longest due first. Returns how many, and in how many
-- seconds the next one is due (null: none).
CREATE OR REPLACE FUNCTION pgqueue.promote(amount integer, OUT moved bigint, OUT next_due double precision)
LANGUAGE plpgsql VOLATILE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off
SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $$
BEGIN
    PERFORM pgqueue.assert_read_committed();
    PERFORM pgqueue.quick_commit();
    WITH due AS MATERIALIZED (
        SELECT s.ctid AS tid FROM pgqueue.scheduled s
         WHERE s.run_at <= pgqueue.clock_bound() ORDER BY s.run_at LIMIT amount FOR UPDATE SKIP LOCKED
    ), gone AS (
        DELETE FROM pgqueue.scheduled s WHERE s.ctid = ANY (ARRAY(SELECT d.tid FROM due d)) RETURNING s.*
    ), now_ready AS (
        INSERT INTO pgqueue.ready (queue, lane, pos, job_id, fair)
        SELECT g.queue, g.lane, nextval('pgqueue.position'), g.job_id, CASE g.lane % 2 WHEN 1 THEN pgqueue.for_whom(q.fair_by, j.input) END
          FROM gone g
          LEFT JOIN pgqueue.queue q ON q.name = g.queue AND q.fair_by IS NOT NULL
          LEFT JOIN pgqueue.job j ON j.id = CASE WHEN q.name IS NOT NULL THEN g.job_id END ORDER BY g.run_at
        RETURNING job_id
    )
    SELECT count(*) INTO moved FROM now_ready;
    IF moved > 0 THEN
        PERFORM pgqueue.wake_idle();
    END IF;
    SELECT extract(epoch FROM s.run_at - pgqueue.clock()) INTO next_due FROM pgqueue.scheduled s ORDER BY s.run_at LIMIT 1;
END
$$;
