-- Is the last checkpoint that a run saw acknowledged still there? After a failover that lost commits a worker's memory
-- is ahead of the database, and must not be built upon.
CREATE OR REPLACE FUNCTION pgqueue.continues(job uuid, seen integer) RETURNS boolean
LANGUAGE plpgsql STABLE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off
AS $$
BEGIN
    IF seen = 0 THEN
        RETURN true;
    END IF;
    PERFORM FROM pgqueue.checkpoint c WHERE c.job_id = job AND c.seq = seen;
    RETURN FOUND;
END
$$;
