-- The claims of these workers whose jobs are to be cancelled at once.
CREATE OR REPLACE FUNCTION pgqueue.hard_cancelled(workers uuid[]) RETURNS TABLE (job_id uuid, claim bigint, worker uuid)
LANGUAGE plpgsql STABLE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $$
BEGIN
    RETURN QUERY
    SELECT r.job_id, r.claim, r.worker
      FROM pgqueue.cancel_request c JOIN pgqueue.running r ON r.job_id = c.job_id
     WHERE c.hard AND r.worker = ANY (workers);
END
$$;
