-- Take the lease from a worker, if its beat is still the one that was seen (null: whatever it is). True where this call
-- did it. From now on it claims nothing, and anyone can reap its jobs. `started`: the jobs that it had begun, from who saw it
-- die (null: nobody knows). overdue: it was killed because of the time limit of this step (0: of the whole job) of the one job in
-- `started`. Both are written down with the fence, because another host may be the first to reap.
CREATE OR REPLACE FUNCTION pgqueue.fence_worker(worker uuid, seen_beat bigint, reason text, started uuid[] DEFAULT NULL, overdue integer DEFAULT NULL)
RETURNS boolean
LANGUAGE plpgsql VOLATILE
AS $$
BEGIN
    UPDATE pgqueue.worker w SET fenced_at = pgqueue.clock(), reason = fence_worker.reason, started = fence_worker.started, overdue = fence_worker.overdue
     WHERE w.id = worker AND w.fenced_at IS NULL AND w.beat = coalesce(seen_beat, w.beat);
    RETURN FOUND;
END
$$;
