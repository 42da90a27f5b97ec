-- End the jobs that somebody asked to cancel and that nobody holds: scheduled and waiting ones. Driven from the requests,
-- once a second, so that a request that came at the wrong moment is honoured a moment later. Whoever ends a job for a request has
-- locked it, here as everywhere: a requeue that takes it back waits for that end, or is in time.
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
        SELECT s.job_id FROM pgqueue.cancel_request c JOIN pgqueue.scheduled s ON s.job_id = c.job_id
         LIMIT 1000 FOR UPDATE OF c, s SKIP LOCKED
    ), aside AS MATERIALIZED (
        SELECT w.job_id FROM pgqueue.cancel_request c JOIN pgqueue.waiting w ON w.job_id = c.job_id
         LIMIT 1000 FOR UPDATE OF c, w SKIP LOCKED
    ), facts AS MATERIALIZED (                               -- as in claim: without those that a producer keeps
        SELECT j.id, j.unique_key, n.unique_until
          FROM (SELECT a.job_id FROM asleep a UNION ALL SELECT a.job_id FROM aside a) g
          JOIN pgqueue.job j ON j.id = g.job_id
         CROSS JOIN LATERAL (SELECT CASE WHEN j.unique_key IS NOT NULL THEN j.policy #>> '{unique,until}' END) n(unique_until)
          LEFT JOIN pgqueue.unique_job u ON u.key = CASE n.unique_until WHEN 'started' THEN j.unique_key END AND u.job_id = j.id
          LEFT JOIN LATERAL (SELECT x.key FROM pgqueue.unique_job x WHERE x.key = u.key FOR UPDATE SKIP LOCKED) l ON true
         WHERE u.key IS NULL OR l.key IS NOT NULL
    ), freed AS (
        DELETE FROM pgqueue.unique_job u
         WHERE u.key = ANY (ARRAY(SELECT f.unique_key FROM facts f WHERE f.unique_until IN ('started', 'ended')))
           AND u.job_id = ANY (ARRAY(SELECT f.id FROM facts f WHERE f.unique_until IN ('started', 'ended')))
    ), left_scheduled AS (
        DELETE FROM pgqueue.scheduled s WHERE s.job_id = ANY (ARRAY(SELECT f.id FROM facts f)) RETURNING s.job_id
    ), left_waiting AS (
        DELETE FROM pgqueue.waiting w WHERE w.job_id = ANY (ARRAY(SELECT f.id FROM facts f)) RETURNING w.job_id
    ), ended AS (
        INSERT INTO pgqueue.outcome (job_id, status, finished_at)
        SELECT g.job_id, 'cancelled', pgqueue.clock()
          FROM (SELECT job_id FROM left_scheduled UNION ALL SELECT job_id FROM left_waiting) g
        ON CONFLICT DO NOTHING RETURNING job_id
    ), honoured AS (
        DELETE FROM pgqueue.cancel_request c WHERE c.job_id = ANY (ARRAY(SELECT e.job_id FROM ended e))
    )
    SELECT array_agg(e.job_id) INTO cancelled FROM ended e;
    DELETE FROM pgqueue.cancel_request c                     -- of jobs that ended while somebody else had their requests
     WHERE c.job_id = ANY (ARRAY(SELECT x.job_id FROM pgqueue.cancel_request x JOIN pgqueue.outcome o ON o.job_id = x.job_id
                                  LIMIT 1000 FOR UPDATE OF x SKIP LOCKED));
    IF cancelled IS NOT NULL THEN
        PERFORM pgqueue.ended(cancelled);
    END IF;
    RETURN coalesce(cardinality(cancelled), 0);
END
$$;
