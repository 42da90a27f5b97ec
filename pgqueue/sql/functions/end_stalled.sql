-- End a worker's claiming session if it has stopped in the middle of a message: the transaction is open, and the server waits for
-- the rest. (A job that keeps the whole interpreter may do that to its worker.) Was there one?
CREATE OR REPLACE FUNCTION pgqueue.end_stalled(worker uuid) RETURNS boolean
LANGUAGE sql VOLATILE
AS $$
    SELECT count(*) FILTER (WHERE pg_terminate_backend(a.pid)) > 0 FROM pg_stat_activity a
     WHERE a.datname = current_database() AND a.usename = current_user
       AND a.application_name = 'pgqueue:' || worker::text || ':claims'
       AND a.state <> 'idle' AND a.wait_event = 'ClientRead'
$$;
