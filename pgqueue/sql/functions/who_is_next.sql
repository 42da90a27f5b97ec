-- Of those who have ready jobs in a lane of a fair queue, and of these the first `most` behind `after` in the order of names: who are
-- the next ones, up to `amount`, with their weights, and what each has got so far: at least `floor`. next: the `after` for the
-- next time, if there were so many.
CREATE OR REPLACE FUNCTION pgqueue.who_is_next(
    queue text, lane integer, after text, most integer, amount integer, floor double precision,
    OUT who text[], OUT weights integer[], OUT gots double precision[], OUT next text)
LANGUAGE plpgsql VOLATILE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off
SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $$
BEGIN
    WITH RECURSIVE behind AS (                               -- one look at the index for each of them, however many jobs they have
        (SELECT r.fair, 1 AS i FROM pgqueue.ready r
          WHERE r.queue = who_is_next.queue AND r.lane = who_is_next.lane AND r.fair > coalesce(after, '') ORDER BY r.fair LIMIT 1)
         UNION ALL
        SELECT x.fair, p.i + 1 FROM behind p
         CROSS JOIN LATERAL (SELECT r.fair FROM pgqueue.ready r
                              WHERE r.queue = who_is_next.queue AND r.lane = who_is_next.lane AND r.fair > p.fair ORDER BY r.fair LIMIT 1) x
         WHERE p.i < most
    ), from_start AS (
        (SELECT r.fair, most + 1 AS i FROM pgqueue.ready r
          WHERE r.queue = who_is_next.queue AND r.lane = who_is_next.lane AND r.fair <= coalesce(after, '') ORDER BY r.fair LIMIT 1)
         UNION ALL
        SELECT x.fair, p.i + 1 FROM from_start p
         CROSS JOIN LATERAL (SELECT r.fair FROM pgqueue.ready r
                              WHERE r.queue = who_is_next.queue AND r.lane = who_is_next.lane AND r.fair > p.fair
                                AND r.fair <= coalesce(after, '') ORDER BY r.fair LIMIT 1) x
         WHERE p.i < 2 * most
    ), everyone AS (
        SELECT b.fair, b.i FROM behind b UNION ALL SELECT f.fair, f.i FROM from_start f ORDER BY i LIMIT most
    ), known AS MATERIALIZED (
        SELECT e.fair, e.i, coalesce(w.weight, 1) AS weight, greatest(s.got, floor) AS got
          FROM everyone e
          LEFT JOIN pgqueue.fair_weight w ON w.queue = who_is_next.queue AND w.fair = e.fair
          LEFT JOIN pgqueue.fair_share s ON s.queue = who_is_next.queue AND s.fair = e.fair
    )
    SELECT array_agg(f.fair), array_agg(f.weight), array_agg(f.got),
           (SELECT k.fair FROM known k ORDER BY k.i OFFSET most - 1)
      INTO who, weights, gots, next
      FROM (SELECT k.* FROM known k ORDER BY k.got + 1.0 / k.weight, k.i LIMIT amount) f;
END
$$;
