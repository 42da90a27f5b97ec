-- Who keeps vacuum from removing dead rows of this database, the longest first: transactions that are open, prepared ones, and
-- replication slots and standbys. Those of other roles are seen by members of pg_read_all_stats.
CREATE OR REPLACE VIEW pgqueue.xmin_holders AS
SELECT h.kind, h.who, h.pid, h.xids, extract(epoch FROM pgqueue.clock() - h.since)::float8 AS seconds
  FROM (SELECT CASE a.backend_type WHEN 'walsender' THEN 'standby' ELSE 'session' END AS kind,
               concat_ws(', ', a.usename, nullif(a.application_name, ''), a.state) AS who, a.pid,
               greatest(age(a.backend_xmin), age(a.backend_xid)) AS xids, a.xact_start AS since
          FROM pg_stat_activity a
         WHERE (a.datname = current_database() OR a.backend_type = 'walsender') AND a.pid <> pg_backend_pid()
           AND num_nonnulls(a.backend_xmin, a.backend_xid) > 0 AND a.backend_type <> 'autovacuum worker'
         UNION ALL
        SELECT 'prepared transaction', p.gid, NULL, age(p.transaction), p.prepared
          FROM pg_prepared_xacts p WHERE p.database = current_database()
         UNION ALL
        SELECT CASE WHEN s.active THEN 'replication slot' ELSE 'replication slot that nobody reads' END, s.slot_name, s.active_pid,
               greatest(age(s.xmin), age(s.catalog_xmin)), NULL
          FROM pg_replication_slots s WHERE num_nonnulls(s.xmin, s.catalog_xmin) > 0) h
 ORDER BY h.xids DESC;
