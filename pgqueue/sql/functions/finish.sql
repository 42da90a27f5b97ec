-- End a job inside the transaction that fence_last() began; `xid` is what that returned. The job's writes and its outcome are
-- one commit. An outcome that exists already is a unique violation, and nothing commits.
CREATE OR REPLACE FUNCTION pgqueue.finish(job uuid, token bigint, result text, xid xid8) RETURNS boolean
LANGUAGE plpgsql VOLATILE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off
AS $$
BEGIN
    IF pg_current_xact_id_if_assigned() IS DISTINCT FROM xid THEN
        PERFORM pgqueue.refuse('PQ008', 'the job ended the transaction it was given, so its outcome cannot commit with its writes',
            'Leave COMMIT and ROLLBACK to pgqueue; use savepoints (with tx.transaction()) inside a transaction.');
    END IF;
    PERFORM pgqueue.durable_commit();
    INSERT INTO pgqueue.outcome (job_id, status, result, claim, finished_at)
    VALUES (job, 'succeeded', finish.result, token, pgqueue.clock());
    DELETE FROM pgqueue.cancel_request c WHERE c.job_id = job;
    RETURN true;
END
$$;
