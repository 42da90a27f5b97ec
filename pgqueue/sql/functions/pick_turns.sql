-- The first ready jobs of a queue with limits of keys, in their order, locked (see pick_plain and pick_fair). Those that cannot have their
-- turn now are put aside at once, so that nobody meets them again before it is: as many of their key run as may, or one that was
-- enqueued before them waits. place: which one of its key it is among those that are left; free: how many of these may begin.
-- fair, got, weight: as in pick_fair. moved: in the last row, which stands for no job, how many were put aside.
CREATE OR REPLACE FUNCTION pgqueue.pick_turns(q pgqueue.queue, amount integer, hints bigint[], lane_order smallint[])
RETURNS TABLE (tid tid, lane smallint, pos bigint, job_id uuid, n bigint, fair text, got double precision, weight integer,
               turn text, place bigint, free bigint, moved bigint)
LANGUAGE plpgsql VOLATILE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off
SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    tids   tid[] := '{}';
    turns  text[] := '{}';
    jobs   uuid[] := '{}';
    lanes  smallint[] := '{}';
    places bigint[] := '{}';
    known  record;
BEGIN
    FOR known IN
        WITH seen AS MATERIALIZED (
            SELECT r.*, NULL::text AS fair, NULL::float8 AS got, NULL::integer AS weight
              FROM pgqueue.pick_plain(q.name, amount, hints, lane_order) r WHERE q.fair_by IS NULL
             UNION ALL
            SELECT r.* FROM pgqueue.pick_fair(q, amount, lane_order) r WHERE q.fair_by IS NOT NULL
        ), numbered AS (
            SELECT s.*, j.key, row_number() OVER (PARTITION BY j.key ORDER BY s.n) AS place FROM seen s JOIN pgqueue.job j ON j.id = s.job_id
        ), probed AS (                                       -- each key once: there may be a thousand jobs of it
            SELECT n.*, CASE WHEN n.key IS NOT NULL THEN q.name || '/' || n.key END AS turn,
                   CASE WHEN n.place = 1 AND n.key IS NOT NULL AND q.per_key IS NOT NULL
                        THEN q.per_key - (SELECT count(*) FROM pgqueue.running r WHERE r.limited = q.name AND r.key = n.key) END AS free,
                   CASE WHEN n.place = 1 AND n.key IS NOT NULL
                        THEN (SELECT w.pos FROM pgqueue.waiting w WHERE w.kind = 'key' AND w.key = q.name || '/' || n.key
                               ORDER BY w.pos LIMIT 1) END AS first
              FROM numbered n
        )
        SELECT p.tid, p.lane, p.pos, p.job_id, p.n, p.fair, p.got, p.weight, p.turn, p.place, max(p.free) OVER k AS free,
               (max(p.free) OVER k <= 0 OR (p.lane % 2 = 1 AND p.pos > max(p.first) OVER k)) IS TRUE AS busy
          FROM probed p WINDOW k AS (PARTITION BY p.key)
    LOOP
        IF known.busy THEN
            tids := tids || known.tid; turns := turns || known.turn;
            jobs := jobs || known.job_id; lanes := lanes || known.lane; places := places || known.pos;
        ELSE
            tid := known.tid; lane := known.lane; pos := known.pos; job_id := known.job_id; n := known.n;
            fair := known.fair; got := known.got; weight := known.weight; turn := known.turn; place := known.place; free := known.free; moved := 0;
            RETURN NEXT;
        END IF;
    END LOOP;
    IF tids <> '{}' THEN
        PERFORM pgqueue.put_aside(tids, turns, NULL, jobs, q.name, lanes, places);
    END IF;
    tid := NULL; job_id := NULL; n := NULL; moved := cardinality(tids);
    RETURN NEXT;
END
$$;
