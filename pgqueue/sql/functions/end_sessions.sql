-- End the database sessions of a worker, found by their application_name at this very moment and never by a remembered
-- pid. A dead or frozen worker may still hold locks through them. `part`: only that one of them, such as ':step:7'. Returns how
-- many were told to end.
CREATE OR REPLACE FUNCTION pgqueue.end_sessions(worker uuid, part text DEFAULT '') RETURNS bigint
LANGUAGE sql VOLATILE
AS $$
    SELECT count(*) FILTER (WHERE pg_terminate_backend(a.pid)) FROM pg_stat_activity a
     WHERE a.datname = current_database() AND a.usename = current_user AND a.pid <> pg_backend_pid()
       AND starts_with(a.application_name || ':', 'pgqueue:' || worker::text || part || ':')
$$;
