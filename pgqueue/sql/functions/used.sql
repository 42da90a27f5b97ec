-- How much of the concurrency of a limited queue is in use. Jobs that were claimed before it was limited are counted one by one,
-- as long as there are any.
CREATE OR REPLACE FUNCTION pgqueue.used(q pgqueue.queue) RETURNS bigint
LANGUAGE plpgsql VOLATILE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off
AS $$
DECLARE
    counted bigint := (SELECT coalesce(sum(r.cost), 0) FROM pgqueue.running r WHERE r.limited = q.name);
    others  bigint := 0;
BEGIN
    IF q.uncounted THEN
        SELECT count(*) INTO others FROM pgqueue.running r WHERE r.queue = q.name AND r.limited IS NULL;
        IF others = 0 THEN
            UPDATE pgqueue.queue SET uncounted = false WHERE name = q.name;
        END IF;
    END IF;
    RETURN counted + others;
END
$$;
