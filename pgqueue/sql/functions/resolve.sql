-- After a connection was lost: did its last transaction commit? Waits until the old session has let go of the job (FOR
-- UPDATE: KEY SHARE would be granted at once beside another KEY SHARE), so that what is read afterwards is final. Answers
-- `held` (still ours: replay from the checkpoints), `settled` (this claim's outcome is there), or `lost`.
CREATE OR REPLACE FUNCTION pgqueue.resolve(job uuid, token bigint) RETURNS text
LANGUAGE plpgsql VOLATILE
SET lock_timeout = '1s'
AS $$
BEGIN
    PERFORM pgqueue.assert_read_committed();
    PERFORM FROM pgqueue.running r WHERE r.job_id = job AND r.claim = token FOR UPDATE;
    IF FOUND THEN
        RETURN 'held';
    END IF;
    PERFORM FROM pgqueue.outcome o WHERE o.job_id = job AND o.claim = token;
    RETURN CASE WHEN FOUND THEN 'settled' ELSE 'lost' END;
END
$$;
