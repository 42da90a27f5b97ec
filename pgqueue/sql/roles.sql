-- "pgqueue migrate --roles", before everything else: the four roles, as far as they are missing, and the schema as the property of
-- pgqueue_owner, whoever had it before. Roles are those of a whole server: every database with pgqueue has the same.
DO $$
DECLARE
    role   text;
    former name;
    object record;
BEGIN
    FOREACH role IN ARRAY '{pgqueue_owner,pgqueue_producer,pgqueue_worker,pgqueue_reader}'::text[] LOOP
        IF to_regrole(role) IS NULL THEN
            BEGIN
                EXECUTE format('CREATE ROLE %I NOLOGIN', role);
            EXCEPTION WHEN duplicate_object OR unique_violation THEN
                NULL;                                        -- by the migration of another database, at this moment
            END;
        END IF;
    END LOOP;
    IF NOT pg_has_role(current_user, 'pgqueue_owner', 'USAGE') THEN
        EXECUTE format('GRANT pgqueue_owner TO %I', current_user);
    END IF;

    SELECT pg_get_userbyid(n.nspowner) INTO former FROM pg_namespace n WHERE n.nspname = 'pgqueue';
    IF former IS NULL THEN
        CREATE SCHEMA pgqueue AUTHORIZATION pgqueue_owner;
    ELSIF former <> 'pgqueue_owner' THEN
        ALTER SCHEMA pgqueue OWNER TO pgqueue_owner;
        FOR object IN
            SELECT CASE c.relkind WHEN 'v' THEN 'VIEW' WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END AS kind, c.oid::regclass::text AS name
              FROM pg_class c WHERE c.relnamespace = 'pgqueue'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'S')
             UNION ALL
            SELECT 'FUNCTION', p.oid::regprocedure::text FROM pg_proc p WHERE p.pronamespace = 'pgqueue'::regnamespace
        LOOP
            EXECUTE format('ALTER %s %s OWNER TO pgqueue_owner', object.kind, object.name);
        END LOOP;
        IF NOT pg_has_role(former, 'pgqueue_owner', 'USAGE') THEN                -- whoever works as that role goes on
            EXECUTE format('GRANT pgqueue_producer, pgqueue_worker, pgqueue_reader TO %I', former);
        END IF;
    END IF;
END
$$;
SET LOCAL ROLE pgqueue_owner;
-- Nothing that this role ever makes is for everybody. (With IN SCHEMA the built-in default, EXECUTE for PUBLIC, would stay.)
ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;
