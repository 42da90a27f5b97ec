-- What a housekeeper watches to see which leases are over, and which workers of its own host have no process any more.
CREATE OR REPLACE VIEW pgqueue.beats AS
SELECT w.id, w.beat, w.boot_id, w.pid_ns, w.pid, w.start_ticks FROM pgqueue.worker w WHERE w.fenced_at IS NULL;
