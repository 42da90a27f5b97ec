-- The sessions of pgqueue's processes in this database, by who they log in as.
CREATE OR REPLACE VIEW pgqueue.sessions AS
SELECT a.usename::text AS role,
       CASE WHEN a.application_name LIKE 'pgqueue:housekeeper:%' THEN 'housekeeper'
            WHEN a.application_name ~ '^pgqueue:[0-9a-f-]{36}:' THEN 'worker' ELSE 'other' END AS process,
       count(*) AS amount
  FROM pg_stat_activity a
 WHERE a.datname = current_database() AND starts_with(a.application_name, 'pgqueue:')
 GROUP BY 1, 2;
