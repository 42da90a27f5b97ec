-- The time that a job has in all, from the moment at which it is due. Null: as much as it likes.
CREATE OR REPLACE FUNCTION pgqueue.time_limit(job pgqueue.job) RETURNS interval
LANGUAGE sql IMMUTABLE
AS $$
    SELECT coalesce(make_interval(secs => (job.policy ->> 'timeout')::float8),
                    (job.policy ->> 'deadline')::timestamptz - greatest(job.run_at, job.created_at))
$$;
