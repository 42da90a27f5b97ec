-- A worker process introduces itself, before its first claim. Returns the limit for results in bytes.
CREATE OR REPLACE FUNCTION pgqueue.register_worker(
    worker uuid, host text, boot_id text, pid_ns text, pid integer, start_ticks bigint)
RETURNS integer
LANGUAGE plpgsql VOLATILE
AS $$
BEGIN
    INSERT INTO pgqueue.worker (id, host, boot_id, pid_ns, pid, start_ticks, started_at)
    VALUES (worker, host, boot_id, pid_ns, pid, start_ticks, pgqueue.clock());
    RETURN (SELECT i.max_bytes FROM pgqueue.installation i);
END
$$;
