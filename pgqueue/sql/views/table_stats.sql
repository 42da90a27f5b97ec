-- The tables of pgqueue as vacuum sees them. `own_settings`: what was set for this table alone.
CREATE OR REPLACE VIEW pgqueue.table_stats AS
SELECT c.relname AS name, pg_total_relation_size(c.oid) AS bytes, pg_relation_size(c.oid) AS heap_bytes,
       coalesce(pg_stat_get_live_tuples(c.oid), 0) AS live_rows, coalesce(pg_stat_get_dead_tuples(c.oid), 0) AS dead_rows,
       greatest(pg_stat_get_last_autovacuum_time(c.oid), pg_stat_get_last_vacuum_time(c.oid)) AS vacuumed_at,
       coalesce(c.reloptions, '{}') AS own_settings
  FROM pg_class c
 WHERE c.relnamespace = 'pgqueue'::regnamespace AND c.relkind = 'r'
 ORDER BY c.relname;
