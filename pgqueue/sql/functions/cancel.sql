-- Ask that jobs end. That is all: whoever holds or takes a job honours the request (claim, settle, reap), and
-- cancel_waiting() ends those that nobody holds. Answers per job: requested, or the status of a job that had ended, or
-- unknown. A job that is running its last step may still succeed, unless hard: then the worker that runs it is killed, and so
-- are those that run its children. by: who asks, where that is a person.
CREATE OR REPLACE FUNCTION pgqueue.cancel(jobs uuid[], hard boolean DEFAULT false, by text DEFAULT NULL)
RETURNS TABLE (job_id uuid, answer text)
LANGUAGE plpgsql VOLATILE
AS $$
#variable_conflict use_column
BEGIN
    PERFORM pgqueue.assert_read_committed();
    PERFORM pgqueue.durable_commit();
    PERFORM FROM pgqueue.job j WHERE j.id = ANY (jobs) ORDER BY j.id FOR KEY SHARE;     -- prune waits, and then sees the requests
    WITH RECURSIVE tree AS (
        SELECT j.id, NULL::uuid AS along_with FROM pgqueue.job j WHERE j.id = ANY (jobs)
         UNION
        SELECT c.id, t.id FROM tree t JOIN pgqueue.job c ON c.parent = t.id WHERE cancel.hard
    ), remembered AS (
        INSERT INTO pgqueue.taken_along (parent, job_id)
        SELECT t.along_with, t.id FROM tree t LEFT JOIN pgqueue.outcome o ON o.job_id = t.id
         WHERE t.along_with IS NOT NULL AND o.job_id IS NULL
        ON CONFLICT DO NOTHING
    )
    INSERT INTO pgqueue.cancel_request (job_id, requested_at, hard, by)
    SELECT DISTINCT ON (t.id) t.id, pgqueue.clock(), cancel.hard, left(cancel.by, 128)
      FROM tree t LEFT JOIN pgqueue.outcome o ON o.job_id = t.id
     WHERE o.job_id IS NULL ORDER BY t.id
    ON CONFLICT (job_id) DO UPDATE SET hard = true WHERE excluded.hard;
    PERFORM pg_notify('pgqueue_wake', '');
    RETURN QUERY
    SELECT g.id, CASE WHEN j.id IS NULL THEN 'unknown' ELSE coalesce(o.status, 'requested') END
      FROM unnest(jobs) g(id)
      LEFT JOIN pgqueue.job j ON j.id = g.id
      LEFT JOIN pgqueue.outcome o ON o.job_id = g.id;
END
$$;
