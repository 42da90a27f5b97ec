-- The youngest jobs that fit (null: any), up to `amount`, in order; of those that have ended, those that ended last. Found through
-- the one list that has them, so that a long history is not read for a few rows of it.
CREATE OR REPLACE FUNCTION pgqueue.youngest_jobs(
    of_state text, workflow text, of_queue text, since double precision, amount integer)
RETURNS TABLE (job_id uuid, place bigint)
LANGUAGE plpgsql STABLE SECURITY DEFINER ROWS 50
SET search_path = pg_catalog, pg_temp SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    earliest timestamptz := coalesce(pgqueue.clock() - make_interval(secs => since), '-infinity');
BEGIN
    IF of_state IN ('succeeded', 'failed', 'cancelled') THEN
        RETURN QUERY
        SELECT f.id, row_number() OVER ()
          FROM (SELECT j.id FROM pgqueue.outcome o JOIN pgqueue.job j ON j.id = o.job_id
                 WHERE o.status = of_state AND o.finished_at > earliest AND j.created_at > earliest
                   AND (workflow IS NULL OR j.name = workflow) AND (of_queue IS NULL OR j.queue = of_queue)
                 ORDER BY o.finished_at DESC, o.job_id DESC LIMIT amount) f;
    ELSIF of_state IS NOT NULL THEN
        RETURN QUERY
        SELECT f.id, row_number() OVER ()
          FROM (SELECT j.id
                  FROM (SELECT r.job_id FROM pgqueue.ready r WHERE of_state = 'ready'
                         UNION ALL SELECT r.job_id FROM pgqueue.running r WHERE of_state = 'running'
                         UNION ALL SELECT s.job_id FROM pgqueue.scheduled s WHERE of_state = 'scheduled'
                         UNION ALL SELECT w.job_id FROM pgqueue.waiting w WHERE of_state = 'waiting') l
                  JOIN pgqueue.job j ON j.id = l.job_id
                 WHERE j.created_at > earliest
                   AND (workflow IS NULL OR j.name = workflow) AND (of_queue IS NULL OR j.queue = of_queue)
                 ORDER BY j.created_at DESC, j.id DESC LIMIT amount) f;
    ELSE
        RETURN QUERY
        SELECT f.id, row_number() OVER ()
          FROM (SELECT j.id FROM pgqueue.job j
                 WHERE j.created_at > earliest
                   AND (workflow IS NULL OR j.name = workflow) AND (of_queue IS NULL OR j.queue = of_queue)
                 ORDER BY j.created_at DESC, j.id DESC LIMIT amount) f;
    END IF;
END
$$;
