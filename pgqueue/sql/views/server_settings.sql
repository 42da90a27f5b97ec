-- The settings of the server, as they hold for whoever asks.
CREATE OR REPLACE VIEW pgqueue.server_settings AS
SELECT s.name, s.setting, coalesce(s.unit, '') AS unit, s.source FROM pg_settings s
 UNION ALL
SELECT 'in_recovery', pg_is_in_recovery()::text, '', 'server'
 UNION ALL
SELECT 'is_superuser_role', r.rolsuper::text, '', 'role' FROM pg_roles r WHERE r.rolname = current_user
 UNION ALL
SELECT 'is_reader_role', (EXISTS (SELECT FROM pg_roles r WHERE r.rolname = 'pgqueue_reader' AND pg_has_role(r.oid, 'usage')))::text, '', 'role'
 UNION ALL
SELECT 'sees_all_sessions', pg_has_role(current_user, 'pg_read_all_stats', 'usage')::text, '', 'role';
