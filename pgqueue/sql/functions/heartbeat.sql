-- Renew the leases of all workers of a host. Returns those that are still alive: one that is missing in the answer has
-- been fenced and must stop. Locks in the order of ids, as everything that locks several workers does.
CREATE OR REPLACE FUNCTION pgqueue.heartbeat(workers uuid[]) RETURNS SETOF uuid
LANGUAGE plpgsql VOLATILE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $$
BEGIN
    PERFORM pgqueue.quick_commit();
    RETURN QUERY
    WITH alive AS MATERIALIZED (
        SELECT w.id FROM pgqueue.worker w WHERE w.id = ANY (workers) AND w.fenced_at IS NULL ORDER BY w.id FOR UPDATE
    )
    UPDATE pgqueue.worker w SET beat = w.beat + 1 FROM alive a WHERE w.id = a.id RETURNING w.id;
END
$$;
