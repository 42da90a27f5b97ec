-- A ready job of a limited queue cannot begin now: a producer keeps it until his transaction ends (see unique_holder).
CREATE OR REPLACE FUNCTION pgqueue.put_off(tid tid, job uuid, queue text, lane integer, stamp timestamptz) RETURNS void
LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off
AS $$
BEGIN
    DELETE FROM pgqueue.ready r WHERE r.ctid = put_off.tid;
    INSERT INTO pgqueue.scheduled (job_id, run_at, queue, lane) VALUES (job, stamp + interval '100 ms', queue, lane);
END
$$;
