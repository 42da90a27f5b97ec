-- The first ready jobs of a queue with limits of keys, in their order, locked (see pick_plain and pick_fair). Those that cannot have their
-- turn now are put aside at once, so that nobody meets them again before it is: as many of their key run as may, or one that was
-- enqueued before them waits. place: which one of its key it is among those that are left; free: how many of these may begin.
-- moved: how many were put aside. There is always a row, so that it can be told.
CREATE OR REPLACE FUNCTION pgqueue.pick_turns(q pgqueue.queue, amount integer, hints bigint[], lane_order smallint[])
RETURNS TABLE (tid tid, lane smallint, pos bigint, job_id uuid, n bigint, turn text, place bigint, free bigint, moved bigint)
LANGUAGE plpgsql VOLATILE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off
SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    WITH seen AS MATERIALIZED (
        SELECT r.* FROM pgqueue.pick_plain(q.name, amount, hints, lane_order) r WHERE q.fair_by IS NULL
         UNION ALL
        SELECT r.* FROM pgqueue.pick_fair(q.name, amount, lane_order) r WHERE q.fair_by IS NOT NULL
    ), numbered AS (
        SELECT s.*, j.key, row_number() OVER (PARTITION BY j.key ORDER BY s.n) AS place FROM seen s JOIN pgqueue.job j ON j.id = s.job_id
    ), probed AS (                                           -- each key once: there may be a thousand jobs of it
        SELECT n.*, CASE WHEN n.key IS NOT NULL THEN q.name || '/' || n.key END AS turn,
               CASE WHEN n.place = 1 AND n.key IS NOT NULL AND q.per_key IS NOT NULL
                    THEN q.per_key - (SELECT count(*) FROM pgqueue.running r WHERE r.limited = q.name AND r.key = n.key) END AS free,
               CASE WHEN n.place = 1 AND n.key IS NOT NULL
                    THEN (SELECT w.pos FROM pgqueue.waiting w WHERE w.kind = 'key' AND w.key = q.name || '/' || n.key
                           ORDER BY w.pos LIMIT 1) END AS first
          FROM numbered n
    ), known AS MATERIALIZED (
        SELECT p.tid, p.lane, p.pos, p.job_id, p.n, p.turn, p.place, max(p.free) OVER k AS free,
               (max(p.free) OVER k <= 0 OR (p.lane % 2 = 1 AND p.pos > max(p.first) OVER k)) IS TRUE AS busy
          FROM probed p WINDOW k AS (PARTITION BY p.key)
    ), gone AS (
        DELETE FROM pgqueue.ready r WHERE r.ctid = ANY (ARRAY(SELECT k.tid FROM known k WHERE k.busy))
    ), aside AS (
        INSERT INTO pgqueue.waiting (job_id, kind, key, queue, lane, pos)
        SELECT k.job_id, 'key', k.turn, q.name, k.lane, k.pos FROM known k WHERE k.busy
    ), told AS (                                             -- as in put_aside
        INSERT INTO pgqueue.wakeup (pos, turn)
        SELECT nextval('pgqueue.position'), t.turn FROM (SELECT DISTINCT k.turn FROM known k WHERE k.busy) t
    )
    SELECT k.tid, k.lane, k.pos, k.job_id, k.n, k.turn, k.place, k.free, m.moved
      FROM (SELECT count(*) AS moved FROM known k WHERE k.busy) m LEFT JOIN known k ON NOT k.busy;
END
$$;
