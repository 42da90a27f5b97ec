-- Put another job in the place of one that has not begun: it keeps its id, its parent, and when it was created. The caller has its
-- unique row, so nobody can begin it meanwhile. One whose time has come already stays where it is in its queue. A job that is not
-- there yet (the caller is about to insert it) is left alone.
--
-- The rows of the job and of its key go, and others come: a claim that read the old ones cannot lock the key any more.
CREATE OR REPLACE FUNCTION pgqueue.replace_job(held pgqueue.unique_job, job pgqueue.job) RETURNS void
LANGUAGE plpgsql VOLATILE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off
SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $$
DECLARE
    old pgqueue.job;
    due boolean;
BEGIN
    DELETE FROM pgqueue.job j WHERE j.id = held.job_id RETURNING j.* INTO old;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    DELETE FROM pgqueue.scheduled s WHERE s.job_id = old.id;
    due := NOT FOUND;
    job.id := old.id;
    job.created_at := old.created_at;
    job.parent := old.parent;
    job.parent_seq := old.parent_seq;
    job.ordinal := old.ordinal;
    job.run_at := least(job.run_at, held.latest);
    IF due THEN
        job.queue := old.queue;
        job.priority := old.priority;
        job.fair := old.fair;
        job.run_at := old.run_at;
        IF job.key IS DISTINCT FROM old.key THEN             -- it need not wait for a turn of the old one
            WITH gone AS (
                DELETE FROM pgqueue.waiting w WHERE w.job_id = old.id AND w.kind = 'key' RETURNING w.*
            )
            INSERT INTO pgqueue.ready (queue, lane, pos, job_id, fair) SELECT g.queue, g.lane, g.pos, g.job_id, old.fair FROM gone g;
        END IF;
    ELSIF job.run_at > pgqueue.clock() THEN
        INSERT INTO pgqueue.scheduled (job_id, run_at, queue, lane) VALUES (job.id, job.run_at, job.queue, 2 * job.priority + 1);
    ELSE
        INSERT INTO pgqueue.ready (queue, lane, pos, job_id, fair)
        VALUES (job.queue, 2 * job.priority + 1, nextval('pgqueue.position'), job.id, job.fair);
        PERFORM pgqueue.wake_idle();
    END IF;
    INSERT INTO pgqueue.job SELECT job.*;
    DELETE FROM pgqueue.unique_job u WHERE u.key = held.key;
    INSERT INTO pgqueue.unique_job SELECT held.*;
END
$$;
