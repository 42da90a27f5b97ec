-- How often a step (seq), or the job itself (null), has failed. A requeue starts the count again, and for a step also a
-- new try of the whole job does.
CREATE OR REPLACE FUNCTION pgqueue.attempts(job uuid, step integer) RETURNS bigint
LANGUAGE sql STABLE
AS $$
    SELECT count(*) FROM pgqueue.attempt a
     WHERE a.job_id = job AND a.seq IS NOT DISTINCT FROM step AND a.kind IN ('error', 'timeout')
       AND a.ended_at > coalesce((SELECT max(b.ended_at) FROM pgqueue.attempt b
                                   WHERE b.job_id = job
                                     AND (b.kind = 'requeue' OR (step IS NOT NULL AND b.kind = 'error' AND b.seq IS NULL))),
                                 '-infinity')
$$;
