-- End the jobs that somebody asked to cancel and that nobody holds: scheduled and waiting ones. Driven from the requests,
-- once a second, so that a request that came at the wrong moment is honoured a moment later.
CREATE OR REPLACE FUNCTION pgqueue.cancel_waiting() RETURNS bigint
LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    cancelled uuid[];
BEGIN
    PERFORM pgqueue.assert_read_committed();
    WITH asleep AS MATERIALIZED (
        SELECT s.ctid AS tid, s.job_id FROM pgqueue.cancel_request c JOIN pgqueue.scheduled s ON s.job_id = c.job_id
         LIMIT 1000 FOR UPDATE OF s SKIP LOCKED
    ), aside AS MATERIALIZED (
        SELECT w.ctid AS tid, w.job_id FROM pgqueue.cancel_request c JOIN pgqueue.waiting w ON w.job_id = c.job_id
         LIMIT 1000 FOR UPDATE OF w SKIP LOCKED
    ), left_scheduled AS (
        DELETE FROM pgqueue.scheduled s WHERE s.ctid = ANY (ARRAY(SELECT a.tid FROM asleep a)) RETURNING s.job_id
    ), left_waiting AS (
        DELETE FROM pgqueue.waiting w WHERE w.ctid = ANY (ARRAY(SELECT a.tid FROM aside a)) RETURNING w.job_id
    ), ended AS (
        INSERT INTO pgqueue.outcome (job_id, status, finished_at)
        SELECT g.job_id, 'cancelled', pgqueue.clock()
          FROM (SELECT job_id FROM left_scheduled UNION ALL SELECT job_id FROM left_waiting) g
        ON CONFLICT DO NOTHING RETURNING job_id
    ), honoured AS (
        DELETE FROM pgqueue.cancel_request c WHERE c.job_id = ANY (ARRAY(SELECT e.job_id FROM ended e))
    )
    SELECT array_agg(e.job_id) INTO cancelled FROM ended e;
    IF cancelled IS NOT NULL THEN
        PERFORM pgqueue.ended(cancelled);
    END IF;
    RETURN coalesce(cardinality(cancelled), 0);
END
$$;
