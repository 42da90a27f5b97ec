-- Has this job been requeued, or tried again as a whole? What ended it was forgotten then.
CREATE OR REPLACE FUNCTION pgqueue.was_begun_again(job uuid) RETURNS boolean
LANGUAGE sql VOLATILE SET enable_seqscan = off
AS $$
    SELECT EXISTS (SELECT FROM pgqueue.attempt a WHERE a.job_id = job AND (a.kind = 'requeue' OR (a.kind = 'error' AND a.seq IS NULL)))
$$;
