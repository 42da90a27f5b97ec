-- Run ended jobs again, from where they stopped: their outcome goes, and of their checkpoints exactly those whose error
-- ended them. Their time limits begin again. This is the one place where a job's row is updated: it had ended, and nobody reads it.
-- by: who asks, where that is a person. Answers per job: requeued, succeeded (it stays so), active (it has not ended), unknown, or
-- taken (it is unique until it has ended, and another job is the one of its kind now).
CREATE OR REPLACE FUNCTION pgqueue.requeue(jobs uuid[], by text DEFAULT NULL) RETURNS TABLE (job_id uuid, answer text)
LANGUAGE plpgsql VOLATILE
AS $$
#variable_conflict use_column
DECLARE
    again uuid[];
    taken uuid[];
BEGIN
    PERFORM pgqueue.assert_read_committed();
    PERFORM pgqueue.durable_commit();
    PERFORM pgqueue.live_again(jobs);
    again := pgqueue.to_requeue(jobs);
    PERFORM pgqueue.spare(ARRAY(SELECT t.job_id FROM pgqueue.taken_along t WHERE t.parent = ANY (again)));
    again := pgqueue.to_requeue(jobs);                       -- some may have ended while we waited for their requests
    WITH held AS MATERIALIZED (
        SELECT o.job_id, CASE j.policy #>> '{unique,until}' WHEN 'ended' THEN j.unique_key END AS key
          FROM pgqueue.outcome o JOIN pgqueue.job j ON j.id = o.job_id
         WHERE o.job_id = ANY (again) AND o.status <> 'succeeded' ORDER BY o.job_id FOR UPDATE OF o
    ), alone AS (
        INSERT INTO pgqueue.unique_job (key, job_id) SELECT h.key, h.job_id FROM held h WHERE h.key IS NOT NULL ORDER BY h.key
        ON CONFLICT (key) DO NOTHING RETURNING job_id
    ), ended AS (
        DELETE FROM pgqueue.outcome o
         WHERE o.job_id = ANY (ARRAY(SELECT h.job_id FROM held h WHERE h.key IS NULL UNION ALL SELECT a.job_id FROM alone a)) RETURNING o.*
    ), forgotten AS (
        DELETE FROM pgqueue.checkpoint c USING ended e WHERE c.job_id = e.job_id AND c.seq = ANY (e.failed_seqs)
    ), unwaited AS (
        DELETE FROM pgqueue.wait w USING ended e WHERE w.job_id = e.job_id AND w.seq = ANY (e.failed_seqs)
    ), recorded AS (
        INSERT INTO pgqueue.attempt (job_id, kind, checkpoints, error, by, ended_at)
        SELECT e.job_id, 'requeue', (SELECT count(*) FROM pgqueue.checkpoint c WHERE c.job_id = e.job_id), e.error,
               left(requeue.by, 128), pgqueue.clock()
          FROM ended e
    ), unasked AS (
        DELETE FROM pgqueue.cancel_request c USING ended e WHERE c.job_id = e.job_id
    ), together AS (
        DELETE FROM pgqueue.taken_along t USING ended e WHERE t.parent = e.job_id
    ), more_time AS (
        UPDATE pgqueue.job j SET policy = j.policy || jsonb_build_object('deadline', pgqueue.clock() + pgqueue.time_limit(j))
          FROM ended e WHERE j.id = e.job_id AND pgqueue.time_limit(j) IS NOT NULL
    ), back AS (
        INSERT INTO pgqueue.ready (queue, lane, pos, job_id)
        SELECT j.queue, 2 * j.priority, nextval('pgqueue.position'), j.id FROM ended e JOIN pgqueue.job j ON j.id = e.job_id
    )
    SELECT coalesce(array_agg(e.job_id), '{}'), ARRAY(SELECT h.job_id FROM held h LEFT JOIN ended e ON e.job_id = h.job_id WHERE e.job_id IS NULL)
      INTO again, taken FROM ended e;
    PERFORM pgqueue.wake_idle();
    RETURN QUERY
    SELECT g.id, CASE WHEN g.id = ANY (again) THEN 'requeued' WHEN g.id = ANY (taken) THEN 'taken' WHEN j.id IS NULL THEN 'unknown'
                      ELSE coalesce(o.status, 'active') END
      FROM unnest(jobs) g(id)
      LEFT JOIN pgqueue.job j ON j.id = g.id
      LEFT JOIN pgqueue.outcome o ON o.job_id = g.id;
END
$$;
