-- A ready job has to wait for its turn at a key; until: for a rate, when that will be at the earliest.
CREATE OR REPLACE FUNCTION pgqueue.put_aside(tid tid, job uuid, turn text, queue text, lane integer, pos bigint, until timestamptz)
RETURNS void
LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off
AS $$
BEGIN
    DELETE FROM pgqueue.ready r WHERE r.ctid = put_aside.tid;
    INSERT INTO pgqueue.waiting (job_id, kind, key, until, queue, lane, pos) VALUES (job, 'key', turn, until, queue, lane, pos);
END
$$;
