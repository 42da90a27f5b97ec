-- The first statement of every transaction that writes for a job: does this run still hold its claim? Locks the claim
-- until the transaction ends, so that nobody takes the job away in the middle. Returns the transaction's id, or null
-- where the claim is lost. `seen` is the last checkpoint this run knows of (0: none): if a failover lost it, so is the run. If
-- the client falls silent for idle_seconds inside this transaction, the server ends it: a stopped worker holds no lock for ever.
CREATE OR REPLACE FUNCTION pgqueue.fence(job uuid, token bigint, seen integer, idle_seconds double precision) RETURNS xid8
LANGUAGE plpgsql VOLATILE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off
AS $$
BEGIN
    PERFORM FROM pgqueue.running r WHERE r.job_id = job AND r.claim = token FOR KEY SHARE;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    -- Under SERIALIZABLE this read would make unrelated jobs fail each other: the caller asks continues() before it begins.
    IF seen > 0 AND current_setting('transaction_isolation') <> 'serializable'
       AND NOT pgqueue.continues(job, seen) THEN
        RETURN NULL;
    END IF;
    IF idle_seconds > 0 THEN
        PERFORM set_config('idle_in_transaction_session_timeout', ceil(idle_seconds * 1000)::text, true);
    END IF;
    RETURN pg_current_xact_id();
END
$$;
