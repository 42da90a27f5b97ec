-- What everybody may do in the schema: nothing, as it was migrated.
CREATE OR REPLACE VIEW pgqueue.public_rights AS
SELECT lower(a.privilege_type) AS privilege, o.object
  FROM (SELECT p.proacl AS acl, 'f'::"char" AS kind, p.proowner AS owner, p.oid::regprocedure::text AS object
          FROM pg_proc p WHERE p.pronamespace = 'pgqueue'::regnamespace
         UNION ALL
        SELECT c.relacl, CASE c.relkind WHEN 'S' THEN 's'::"char" ELSE 'r'::"char" END, c.relowner, c.oid::regclass::text
          FROM pg_class c WHERE c.relnamespace = 'pgqueue'::regnamespace AND c.relkind IN ('r', 'v', 'S')
         UNION ALL
        SELECT n.nspacl, 'n', n.nspowner, 'schema ' || n.nspname FROM pg_namespace n WHERE n.nspname = 'pgqueue') o
 CROSS JOIN LATERAL aclexplode(coalesce(o.acl, acldefault(o.kind, o.owner))) a
 WHERE a.grantee = 0;
