-- Those of these jobs that have not ended.
CREATE OR REPLACE FUNCTION pgqueue.not_ended(jobs uuid[]) RETURNS uuid[]
LANGUAGE sql STABLE
AS $$
    SELECT coalesce(array_agg(j.id), '{}')
      FROM pgqueue.job j LEFT JOIN pgqueue.outcome o ON o.job_id = j.id
     WHERE j.id = ANY (jobs) AND o.job_id IS NULL
$$;
