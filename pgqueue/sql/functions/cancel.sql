-- Ask that jobs end. That is all: whoever holds or takes a job honours the request (claim, settle, reap), and
-- cancel_waiting() ends those that nobody holds. Answers per job: requested, or the status of a job that had ended, or
-- unknown. A job that is running its last step may still succeed.
CREATE OR REPLACE FUNCTION pgqueue.cancel(jobs uuid[]) RETURNS TABLE (job_id uuid, answer text)
LANGUAGE plpgsql VOLATILE
AS $$
#variable_conflict use_column
BEGIN
    PERFORM pgqueue.assert_read_committed();
    PERFORM pgqueue.durable_commit();
    PERFORM FROM pgqueue.job j WHERE j.id = ANY (jobs) ORDER BY j.id FOR KEY SHARE;     -- prune waits, and then sees the requests
    INSERT INTO pgqueue.cancel_request (job_id, requested_at)
    SELECT j.id, pgqueue.clock() FROM pgqueue.job j LEFT JOIN pgqueue.outcome o ON o.job_id = j.id
     WHERE j.id = ANY (jobs) AND o.job_id IS NULL
    ON CONFLICT DO NOTHING;
    PERFORM pg_notify('pgqueue_wake', '');
    RETURN QUERY
    SELECT g.id, CASE WHEN j.id IS NULL THEN 'unknown' ELSE coalesce(o.status, 'requested') END
      FROM unnest(jobs) g(id)
      LEFT JOIN pgqueue.job j ON j.id = g.id
      LEFT JOIN pgqueue.outcome o ON o.job_id = g.id;
END
$$;
