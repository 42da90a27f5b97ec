-- The fence of a job that ends in this very transaction, because it is nothing else: its claim goes at once, so that the row is
-- written once. Until the commit it stays locked: nobody takes the job away, and nobody waits for it. Returns the transaction's
-- id, or null where the claim is lost.
CREATE OR REPLACE FUNCTION pgqueue.fence_last(job uuid, token bigint) RETURNS xid8
LANGUAGE plpgsql VOLATILE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off
AS $$
BEGIN
    DELETE FROM pgqueue.running r WHERE r.job_id = job AND r.claim = token;
    RETURN CASE WHEN FOUND THEN pg_current_xact_id() END;
END
$$;
