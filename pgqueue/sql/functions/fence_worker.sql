-- Take the lease from a worker, if its beat is still the one that was seen (null: whatever it is). True where this call
-- did it. From now on it claims nothing, and its jobs can be reaped.
CREATE OR REPLACE FUNCTION pgqueue.fence_worker(worker uuid, seen_beat bigint, reason text) RETURNS boolean
LANGUAGE plpgsql VOLATILE
AS $$
BEGIN
    UPDATE pgqueue.worker w SET fenced_at = pgqueue.clock(), reason = fence_worker.reason
     WHERE w.id = worker AND w.fenced_at IS NULL AND w.beat = coalesce(seen_beat, w.beat);
    RETURN FOUND;
END
$$;
