-- Jobs to cancel or requeue, up to `amount`, the oldest first: those in one of these states, and (null: any) of this workflow and
-- queue, whose error has this text in its type or message, and which ended (those that have not: were created) at most `since` and
-- at least `until` ago. Either states that have an end, or others.
CREATE OR REPLACE FUNCTION pgqueue.find_jobs(
    states text[], workflow text, of_queue text, part text, since interval, until interval, amount integer)
RETURNS TABLE (job_id uuid, name text, queue text, state text, at timestamptz, error text)
LANGUAGE plpgsql STABLE
AS $$
#variable_conflict use_column
DECLARE
    earliest timestamptz := coalesce(pgqueue.clock() - since, '-infinity');
    latest   timestamptz := pgqueue.clock() - coalesce(until, '0');
BEGIN
    IF states <@ '{succeeded,failed,cancelled}'::text[] THEN
        RETURN QUERY
        SELECT j.id, j.name, j.queue, o.status, o.finished_at, e.text
          FROM pgqueue.outcome o
          JOIN pgqueue.job j ON j.id = o.job_id
         CROSS JOIN LATERAL (SELECT left(concat_ws(': ', o.error::json ->> 'type', o.error::json ->> 'message'), 16384)) AS e(text)
         WHERE o.status = ANY (states) AND o.finished_at BETWEEN earliest AND latest
           AND (workflow IS NULL OR j.name = workflow) AND (of_queue IS NULL OR j.queue = of_queue)
           AND (part IS NULL OR strpos(e.text, part) > 0)
         ORDER BY o.finished_at, o.job_id LIMIT amount;
        RETURN;
    END IF;
    RETURN QUERY
    SELECT j.id, j.name, j.queue, l.state, j.created_at, NULL::text
      FROM (SELECT r.job_id, 'ready' AS state FROM pgqueue.ready r WHERE 'ready' = ANY (states)
             UNION ALL SELECT r.job_id, 'running' FROM pgqueue.running r WHERE 'running' = ANY (states)
             UNION ALL SELECT s.job_id, 'scheduled' FROM pgqueue.scheduled s WHERE 'scheduled' = ANY (states)
             UNION ALL SELECT w.job_id, 'waiting' FROM pgqueue.waiting w WHERE 'waiting' = ANY (states)) l
      JOIN pgqueue.job j ON j.id = l.job_id
     WHERE j.created_at BETWEEN earliest AND latest
       AND (workflow IS NULL OR j.name = workflow) AND (of_queue IS NULL OR j.queue = of_queue)
     ORDER BY j.created_at, j.id LIMIT amount;
END
$$;
