-- Fence and checkpoint in one call, for a step that ran outside of a transaction. False: the claim is lost.
-- An error that used up the last attempt also leaves its attempt row.
CREATE OR REPLACE FUNCTION pgqueue.store(job uuid, token bigint, seen integer, seq integer, name text, result text, error text)
RETURNS boolean
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    xid xid8 := pgqueue.fence(job, token, seen, 0);
BEGIN
    IF xid IS NULL THEN
        RETURN false;
    END IF;
    PERFORM pgqueue.checkpoint(job, token, seq, name, result, error, xid);
    IF error IS NOT NULL THEN
        PERFORM pgqueue.record_attempt(job, token, seq, 'error', error);
    END IF;
    RETURN true;
END
$$;
