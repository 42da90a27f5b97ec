-- Make a role a member of one of pgqueue's: producer, worker or reader. Whoever calls it needs the right to do so; it gives none.
CREATE OR REPLACE FUNCTION pgqueue.grant_role(kind text, role text) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    ours text := 'pgqueue_' || kind;
BEGIN
    IF kind IS NULL OR kind NOT IN ('producer', 'worker', 'reader') THEN
        PERFORM pgqueue.refuse('PQ004', format('%L cannot be granted', kind), 'It is producer, worker or reader.');
    ELSIF to_regrole(ours) IS NULL OR NOT has_schema_privilege(ours, 'pgqueue', 'USAGE') THEN
        PERFORM pgqueue.refuse('PQ009', format('this database has no role %s', ours), 'Run "pgqueue migrate --roles" first.');
    ELSIF role IS NULL OR to_regrole(quote_ident(role)) IS NULL THEN
        PERFORM pgqueue.refuse('PQ004', format('there is no role %L', role), format('CREATE ROLE %I LOGIN makes one.', role));
    END IF;
    EXECUTE format('GRANT %I TO %I', ours, role);
EXCEPTION WHEN insufficient_privilege THEN
    PERFORM pgqueue.refuse('42501', format('%s may not grant %s', current_user, ours),
                           format('An administrator has to run: GRANT %I TO %I', ours, role));
END
$$;
