-- Store the result of a step in the transaction that fence() began; `xid` is what fence() returned. If the step's code
-- ended that transaction behind our back, the ids differ and nothing is stored. A unique violation means that another
-- run was here: the caller rolls back. True: somebody asks that the job be cancelled, so there should be no next step.
CREATE OR REPLACE FUNCTION pgqueue.checkpoint(
    job uuid, token bigint, seq integer, name text, result text, error text, xid xid8)
RETURNS boolean
LANGUAGE plpgsql VOLATILE
AS $$
BEGIN
    IF pg_current_xact_id_if_assigned() IS DISTINCT FROM xid THEN
        PERFORM pgqueue.refuse('PQ008', 'the step ended the transaction it was given, so its checkpoint cannot commit with its writes',
            'Leave COMMIT and ROLLBACK to pgqueue; use savepoints (with tx.transaction()) inside a step.');
    END IF;
    PERFORM pgqueue.durable_commit();
    INSERT INTO pgqueue.checkpoint (job_id, seq, name, result, error, claim, xid, created_at)
    VALUES (job, checkpoint.seq, checkpoint.name, checkpoint.result, checkpoint.error, token, checkpoint.xid, pgqueue.clock());
    IF current_setting('transaction_isolation') = 'serializable' THEN
        RETURN false;                                        -- reading more here would make unrelated jobs fail each other
    END IF;
    PERFORM FROM pgqueue.cancel_request c WHERE c.job_id = job;
    RETURN FOUND;
END
$$;
