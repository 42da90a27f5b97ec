-- The statements of this transaction may take so long. Not of the session: a pooler may give that to others.
CREATE OR REPLACE FUNCTION pgqueue.statement_limit(seconds double precision) RETURNS void
LANGUAGE plpgsql VOLATILE
AS $$
BEGIN
    PERFORM set_config('statement_timeout', (1000 * seconds)::bigint::text, true);
END
$$;
