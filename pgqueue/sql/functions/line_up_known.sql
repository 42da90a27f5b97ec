-- The part of claim that lets jobs of limited queues queue up like others which were put aside by workers that did not know their
-- workflow: at the beginning of the claim of one that does, so that nobody else meets them before.
CREATE OR REPLACE FUNCTION pgqueue.line_up_known(queues text[], names text[], amount integer) RETURNS void
LANGUAGE plpgsql VOLATILE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off
SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $$
BEGIN
    PERFORM FROM pgqueue.queue q WHERE q.name = ANY (queues) AND q.limited LIMIT 1;
    IF FOUND THEN
        PERFORM FROM pgqueue.waiting w WHERE w.kind = 'name' AND w.key = ANY (names) LIMIT 1;
    END IF;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    WITH picked AS MATERIALIZED (
        SELECT w.ctid AS tid FROM pgqueue.waiting w JOIN pgqueue.queue q ON q.name = w.queue AND q.limited AND NOT q.paused
         WHERE w.kind = 'name' AND w.key = ANY (names) AND w.queue = ANY (queues) LIMIT amount FOR UPDATE OF w SKIP LOCKED
    ), gone AS (
        DELETE FROM pgqueue.waiting w WHERE w.ctid = ANY (ARRAY(SELECT p.tid FROM picked p)) RETURNING w.*
    )
    INSERT INTO pgqueue.ready (queue, lane, pos, job_id)
    SELECT g.queue, g.lane - g.lane % 2, nextval('pgqueue.position'), g.job_id FROM gone g;
END
$$;
