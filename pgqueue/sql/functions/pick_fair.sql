-- Ready jobs of a fair queue, whose lock the caller holds, so that nobody else takes them: jobs that come back first, then, in each
-- lane, in the order of turns. A job is worth a turn (a part of one, by the weight of whom it is for), and whoever has got fewest
-- turns is next. Somebody who comes, or has been away, is CREDIT turns ahead of those who have had jobs all the time, and no more: all
-- get as much, and who has only a few jobs need not wait until all others have got as many. n: their order.
CREATE OR REPLACE FUNCTION pgqueue.pick_fair(queue text, amount integer, lanes smallint[])
RETURNS TABLE (tid tid, lane smallint, pos bigint, job_id uuid, n bigint)
LANGUAGE plpgsql VOLATILE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off
SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    CREDIT CONSTANT double precision := 20;
    MOST   CONSTANT integer := 200;                          -- so many are compared; where there are more, others the next time
    after  text;
    reached double precision;                                -- what somebody had got whose turn it was; it never goes back
    room   double precision;
    known  record;
    job    record;
    who    text[];
    gots   double precision[];
BEGIN
    SELECT t.last, t.turn INTO after, reached FROM pgqueue.fair_turn t WHERE t.queue = pick_fair.queue;
    reached := coalesce(reached, 0);
    n := 0;
    FOREACH lane IN ARRAY lanes LOOP
        FOR job IN SELECT r.ctid AS tid, r.lane, r.pos, r.job_id FROM pgqueue.ready r
                    WHERE r.queue = pick_fair.queue AND r.lane = pick_fair.lane AND r.fair IS NULL ORDER BY r.pos
                    LIMIT amount - n LOOP
            n := n + 1;
            tid := job.tid; pos := job.pos; job_id := job.job_id;
            RETURN NEXT;
        END LOOP;
        EXIT WHEN n >= amount;
        CONTINUE WHEN lane % 2 = 0;
        SELECT w.* INTO known FROM pgqueue.who_is_next(queue, lane, after, MOST, (amount - n)::integer, reached - CREDIT) w;
        CONTINUE WHEN known.who IS NULL;
        after := known.next;
        room := CREDIT + (amount - n) / (SELECT sum(w) FROM unnest(known.weights) w);      -- nobody gets more in one claim
        who := '{}'; gots := '{}';
        FOR job IN SELECT r.tid, r.pos, r.job_id, g.fair, g.got + r.k / g.weight::double precision AS got
                     FROM unnest(known.who, known.weights, known.gots) g(fair, weight, got)
                    CROSS JOIN LATERAL (
                        SELECT r.ctid AS tid, r.pos, r.job_id, row_number() OVER (ORDER BY r.pos) AS k FROM pgqueue.ready r
                         WHERE r.queue = pick_fair.queue AND r.lane = pick_fair.lane AND r.fair = g.fair
                         ORDER BY r.pos LIMIT least(amount - n, room * g.weight + 1)) r
                    ORDER BY 5, r.pos LIMIT amount - n LOOP
            n := n + 1;
            tid := job.tid; pos := job.pos; job_id := job.job_id;
            who := who || job.fair;
            gots := gots || job.got;
            reached := greatest(reached, job.got - 1);
            RETURN NEXT;
        END LOOP;
        INSERT INTO pgqueue.fair_share (queue, fair, got)
        SELECT pick_fair.queue, s.fair, max(s.got) FROM unnest(who, gots) s(fair, got) GROUP BY s.fair
        ON CONFLICT (queue, fair) DO UPDATE SET got = excluded.got;
        EXIT WHEN n >= amount;
    END LOOP;
    INSERT INTO pgqueue.fair_turn (queue, last, turn) VALUES (pick_fair.queue, after, reached)
    ON CONFLICT (queue) DO UPDATE SET last = excluded.last, turn = excluded.turn;
    DELETE FROM pgqueue.fair_share s                         -- those who would begin with the credit all the same
     WHERE s.ctid = ANY (ARRAY(SELECT o.ctid FROM pgqueue.fair_share o
                                WHERE o.queue = pick_fair.queue AND o.got <= reached - CREDIT ORDER BY o.got LIMIT 10));
END
$$;
