-- Take the unique key of a job that is to be inserted. Null: the job has it. Otherwise the id of the job that has it, after what
-- was to be done about that. The answer holds when the caller's transaction commits: who has the key, has it by a committed row, or by
-- one of this transaction; and a job that is unique until it begins does not begin before the caller has committed, so that it sees
-- what the caller has written. Two that take a key at the same moment wait for each other, as with any primary key.
CREATE OR REPLACE FUNCTION pgqueue.unique_holder(job pgqueue.job) RETURNS uuid
LANGUAGE plpgsql VOLATILE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off
SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $$
DECLARE
    how   jsonb := job.policy -> 'unique';
    stamp timestamptz := pgqueue.clock();
    held  pgqueue.unique_job;
    same  uuid;
BEGIN
    LOOP
        SELECT j.unique_key INTO same FROM pgqueue.job j WHERE j.id = job.id;      -- the call is repeated, or the id was chosen
        IF FOUND THEN
            RETURN CASE WHEN same = job.unique_key AND how ->> 'on_conflict' = 'replace' THEN job.id END;
        END IF;
        INSERT INTO pgqueue.unique_job (key, job_id, until, latest)
        VALUES (job.unique_key, job.id, stamp + make_interval(secs => (how ->> 'within')::float8),
                stamp + make_interval(secs => (how ->> 'at_most')::float8))
        ON CONFLICT (key) DO NOTHING;
        IF FOUND THEN
            RETURN NULL;
        END IF;
        SELECT * INTO held FROM pgqueue.unique_job u WHERE u.key = job.unique_key;
        CONTINUE WHEN NOT FOUND;                             -- it has ended, or begun, in between
        PERFORM FROM pgqueue.cancel_request c WHERE c.job_id = held.job_id AND how ->> 'until' = 'started';
        IF FOUND OR held.until <= stamp THEN                 -- it will not begin any more; its time is over
            DELETE FROM pgqueue.unique_job u WHERE u.key = held.key AND u.job_id = held.job_id;
            CONTINUE;
        END IF;
        IF how ->> 'on_conflict' = 'error' THEN
            PERFORM pgqueue.refuse('PQ011', format('job %s of %s is the one of its kind, and %s', held.job_id, job.name,
                    CASE how ->> 'until' WHEN 'ended' THEN 'has not ended' WHEN 'started' THEN 'has not begun' ELSE 'its time is not over' END),
                'Leave out on_conflict to be given that job, or wait.');
        ELSIF how ->> 'on_conflict' = 'replace' THEN
            PERFORM FROM pgqueue.unique_job u WHERE u.key = held.key AND u.job_id = held.job_id FOR UPDATE;
            CONTINUE WHEN NOT FOUND;
            held.latest := coalesce(held.latest, stamp + make_interval(secs => (how ->> 'at_most')::float8));
            PERFORM pgqueue.replace_job(held, job);
        ELSIF how ->> 'until' = 'started' THEN
            PERFORM FROM pgqueue.unique_job u WHERE u.key = held.key AND u.job_id = held.job_id FOR KEY SHARE;
            CONTINUE WHEN NOT FOUND;
        END IF;
        RETURN held.job_id;
    END LOOP;
END
$$;
