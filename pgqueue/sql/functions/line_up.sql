-- The part of enqueue_workflows for due jobs of queues in which a key has a limit: it puts them into `ready`, in their order, or, where it
-- is known already that they have to wait for their turn, straight into `waiting`: behind jobs of their key that wait there, or behind
-- others of this call. So a hundred thousand jobs of one key are never in front of those of other keys.
--
-- Somebody looks at these keys again once the transaction has committed: those that are waiting now may be gone by then. A SERIALIZABLE
-- transaction looks at nobody else's jobs, so that it never fails because of them.
CREATE OR REPLACE FUNCTION pgqueue.line_up(jobs uuid[]) RETURNS void
LANGUAGE plpgsql VOLATILE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off
SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $$
DECLARE
    alone boolean := current_setting('transaction_isolation') = 'serializable';
BEGIN
    WITH listed AS (
        SELECT j.id, j.queue, 2 * j.priority + 1 AS lane, j.fair, g.n, q.per_key, nextval('pgqueue.position') AS pos,
               CASE WHEN q.fair_by IS NULL THEN j.queue || '/' || j.key END AS turn
          FROM unnest(jobs) WITH ORDINALITY g(id, n)
          JOIN pgqueue.job j ON j.id = g.id
          LEFT JOIN pgqueue.queue q ON q.name = j.queue
    ), numbered AS (
        SELECT l.*, row_number() OVER (PARTITION BY l.turn ORDER BY l.n) AS place FROM listed l
    ), probed AS (                                           -- each key once
        SELECT n.*, CASE WHEN n.place = 1 AND n.turn IS NOT NULL AND NOT alone
                         THEN EXISTS (SELECT FROM pgqueue.waiting w WHERE w.kind = 'key' AND w.key = n.turn) END AS queued
          FROM numbered n
    ), placed AS MATERIALIZED (
        SELECT p.*, (p.turn IS NOT NULL AND (p.place > p.per_key OR bool_or(p.queued) OVER (PARTITION BY p.turn))) IS TRUE AS behind
          FROM probed p                                      -- true or false: the limit itself may be gone by now
    ), now_ready AS (
        INSERT INTO pgqueue.ready (queue, lane, pos, job_id, fair)
        SELECT p.queue, p.lane, p.pos, p.id, p.fair FROM placed p WHERE NOT p.behind ORDER BY p.n
    ), aside AS (
        INSERT INTO pgqueue.waiting (job_id, kind, key, queue, lane, pos)
        SELECT p.id, 'key', p.turn, p.queue, p.lane, p.pos FROM placed p WHERE p.behind ORDER BY p.n
    )
    INSERT INTO pgqueue.wakeup (pos, turn)
    SELECT nextval('pgqueue.position'), t.turn FROM (SELECT DISTINCT p.turn FROM placed p WHERE p.behind) t;
END
$$;
