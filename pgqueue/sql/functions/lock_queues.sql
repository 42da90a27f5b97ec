-- Takes the locks of these queues for a claim, all of them before anything is read, in the order of names. Returns the limited ones,
-- but for those in which nothing is ready: they need not be read, and others need not wait for it.
CREATE OR REPLACE FUNCTION pgqueue.lock_queues(queues text[]) RETURNS text[]
LANGUAGE plpgsql VOLATILE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off
AS $$
DECLARE
    q     record;
    alone text[] := '{}';
BEGIN
    FOR q IN SELECT u.name, u.limited AND (SELECT 1 FROM pgqueue.ready r WHERE r.queue = u.name LIMIT 1) IS NOT NULL AS limited
               FROM pgqueue.queue u WHERE u.name = ANY (queues) ORDER BY u.name LOOP
        IF q.limited THEN
            PERFORM pg_advisory_xact_lock(pgqueue.queue_lock(q.name));
            alone := alone || q.name;
        ELSE
            PERFORM pg_advisory_xact_lock_shared(pgqueue.queue_lock(q.name));
        END IF;
    END LOOP;
    RETURN alone;
END
$$;
