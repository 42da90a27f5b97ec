-- Jobs that wait for their turn at these keys ("queue/key") are ready, as many as have room there, in their order. Returns the keys
-- of which one was moved. They go back to where they were: others of their key that are ready stay in front of them, or behind. It
-- waits for others that move jobs of the same keys: to skip them would let the next one overtake.
CREATE OR REPLACE FUNCTION pgqueue.next_turns(turns text[]) RETURNS SETOF text
LANGUAGE plpgsql VOLATILE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off
SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $$
BEGIN
    RETURN QUERY
    WITH picked AS MATERIALIZED (
        SELECT w.tid
          FROM (SELECT DISTINCT t, split_part(t, '/', 1) AS queue, substr(t, strpos(t, '/') + 1) AS key FROM unnest(turns) t ORDER BY t) g
          LEFT JOIN pgqueue.queue q ON q.name = g.queue
         CROSS JOIN LATERAL (
            SELECT CASE WHEN q.per_key IS NOT NULL
                        THEN q.per_key - (SELECT count(*) FROM pgqueue.running r WHERE r.limited = g.queue AND r.key = g.key)
                        WHEN q.key_rate IS NOT NULL THEN 1 ELSE 1000 END AS free) room
         CROSS JOIN LATERAL (
            SELECT w.ctid AS tid FROM pgqueue.waiting w
             WHERE w.kind = 'key' AND w.key = g.t ORDER BY w.pos LIMIT greatest(room.free, 0) FOR UPDATE) w
    ), gone AS (
        DELETE FROM pgqueue.waiting w WHERE w.ctid = ANY (ARRAY(SELECT p.tid FROM picked p)) RETURNING w.*
    ), back AS (
        INSERT INTO pgqueue.ready (queue, lane, pos, job_id, fair)
        SELECT g.queue, g.lane, g.pos, g.job_id,
               (SELECT pgqueue.for_whom(q.fair_by, j.input) FROM pgqueue.queue q JOIN pgqueue.job j ON j.id = g.job_id
                 WHERE q.name = g.queue AND q.fair_by IS NOT NULL AND g.lane % 2 = 1)
          FROM gone g
    )
    SELECT DISTINCT g.key FROM gone g;
END
$$;
