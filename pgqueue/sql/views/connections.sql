-- How many connections there are, and how many there can be for whoever asks: of the server, of this database and of this role.
-- Null: no limit.
CREATE OR REPLACE VIEW pgqueue.connections AS
SELECT 'server' AS scope, (SELECT count(*) FROM pg_stat_activity a WHERE a.backend_type = 'client backend') AS used,
       current_setting('max_connections')::bigint - current_setting('superuser_reserved_connections')::bigint
       - coalesce(current_setting('reserved_connections', true), '0')::bigint AS possible
 UNION ALL
SELECT 'database', (SELECT count(*) FROM pg_stat_activity a WHERE a.datname = d.datname), nullif(d.datconnlimit, -1)
  FROM pg_database d WHERE d.datname = current_database()
 UNION ALL
SELECT 'role', (SELECT count(*) FROM pg_stat_activity a WHERE a.usename = r.rolname), nullif(r.rolconnlimit, -1)
  FROM pg_roles r WHERE r.rolname = current_user;
