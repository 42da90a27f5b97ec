-- Ready jobs of a fair queue, locked: jobs that come back first, then, in each lane, one of each for whom there are any (or as many
-- as their weight), beginning behind the one who was served last. n: their order.
CREATE OR REPLACE FUNCTION pgqueue.pick_fair(queue text, amount integer, lanes smallint[])
RETURNS TABLE (tid tid, lane smallint, pos bigint, job_id uuid, n bigint)
LANGUAGE plpgsql VOLATILE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off
SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    cursor text := (SELECT t.last FROM pgqueue.fair_turn t WHERE t.queue = pick_fair.queue);
    who    text[];
    shares integer[];
    share  numeric;
    job    record;
BEGIN
    n := 0;
    FOREACH lane IN ARRAY lanes LOOP
        FOR job IN SELECT r.ctid AS tid, r.lane, r.pos, r.job_id FROM pgqueue.ready r
                    WHERE r.queue = pick_fair.queue AND r.lane = pick_fair.lane AND r.fair IS NULL ORDER BY r.pos
                    LIMIT amount - n FOR UPDATE SKIP LOCKED LOOP
            n := n + 1;
            tid := job.tid; pos := job.pos; job_id := job.job_id;
            RETURN NEXT;
        END LOOP;
        CONTINUE WHEN n >= amount OR lane % 2 = 0;
        -- Who has jobs in this lane: those behind the one who was served last, then the others.
        WITH RECURSIVE present AS (
            (SELECT r.fair, 1 AS i, false AS again FROM pgqueue.ready r
              WHERE r.queue = pick_fair.queue AND r.lane = pick_fair.lane AND r.fair > coalesce(cursor, '') ORDER BY r.fair LIMIT 1)
             UNION ALL
            SELECT x.fair, p.i + 1, false FROM present p
             CROSS JOIN LATERAL (SELECT r.fair FROM pgqueue.ready r
                                  WHERE r.queue = pick_fair.queue AND r.lane = pick_fair.lane AND r.fair > p.fair ORDER BY r.fair LIMIT 1) x
             WHERE p.i < amount - n
        ), from_start AS (
            (SELECT r.fair, 1 AS i FROM pgqueue.ready r
              WHERE r.queue = pick_fair.queue AND r.lane = pick_fair.lane AND r.fair <= coalesce(cursor, '') ORDER BY r.fair LIMIT 1)
             UNION ALL
            SELECT x.fair, p.i + 1 FROM from_start p
             CROSS JOIN LATERAL (SELECT r.fair FROM pgqueue.ready r
                                  WHERE r.queue = pick_fair.queue AND r.lane = pick_fair.lane AND r.fair > p.fair
                                    AND r.fair <= coalesce(cursor, '') ORDER BY r.fair LIMIT 1) x
             WHERE p.i < amount - n
        ), everyone AS (
            SELECT p.fair, p.i AS i FROM present p UNION ALL SELECT f.fair, 1000000 + f.i FROM from_start f
        )
        SELECT array_agg(e.fair ORDER BY e.i), array_agg(coalesce(w.weight, 1) ORDER BY e.i) INTO who, shares
          FROM (SELECT e.fair, e.i FROM everyone e ORDER BY e.i LIMIT amount - n) e
          LEFT JOIN pgqueue.fair_weight w ON w.queue = pick_fair.queue AND w.fair = e.fair;
        CONTINUE WHEN who IS NULL;
        share := greatest(1, (amount - n) / (SELECT sum(s) FROM unnest(shares) s)::numeric);
        FOR job IN SELECT r.tid, r.pos, r.job_id, g.fair
                     FROM unnest(who, shares) WITH ORDINALITY g(fair, weight, i)
                    CROSS JOIN LATERAL (
                        SELECT r.ctid AS tid, r.pos, r.job_id FROM pgqueue.ready r
                         WHERE r.queue = pick_fair.queue AND r.lane = pick_fair.lane AND r.fair = g.fair
                         ORDER BY r.pos LIMIT floor(share * g.weight) FOR UPDATE SKIP LOCKED) r
                    ORDER BY g.i, r.pos LIMIT amount - n LOOP
            n := n + 1;
            tid := job.tid; pos := job.pos; job_id := job.job_id;
            cursor := job.fair;
            RETURN NEXT;
        END LOOP;
        EXIT WHEN n >= amount;
    END LOOP;
    IF cursor IS NOT NULL THEN
        INSERT INTO pgqueue.fair_turn (queue, last) VALUES (pick_fair.queue, cursor)
        ON CONFLICT (queue) DO UPDATE SET last = excluded.last;
    END IF;
END
$$;
