-- Fence and checkpoint in one call, for a step that ran outside of a transaction. Answers `stored`, `cancel` (stored, and
-- somebody asks that the job be cancelled), or `lost` (the claim is gone, nothing was stored).
-- An error that used up the last attempt also leaves its attempt row.
CREATE OR REPLACE FUNCTION pgqueue.store(job uuid, token bigint, seen integer, seq integer, name text, result text, error text)
RETURNS text
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    xid xid8 := pgqueue.fence(job, token, seen, 0);
    cancelled boolean;
BEGIN
    IF xid IS NULL THEN
        RETURN 'lost';
    END IF;
    cancelled := pgqueue.checkpoint(job, token, seq, name, result, error, xid);
    IF error IS NOT NULL THEN
        PERFORM pgqueue.record_attempt(job, token, seq, 'error', error);
    END IF;
    RETURN CASE WHEN cancelled THEN 'cancel' ELSE 'stored' END;
END
$$;
