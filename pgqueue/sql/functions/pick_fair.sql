-- Ready jobs of a fair queue, whose lock the caller holds, so that nobody else takes them: jobs that come back first, then, in each
-- lane, in the order of turns. A job is worth a turn (a part of one, by the weight of whom it is for), and whoever has got fewest
-- turns is next. Somebody who comes, or has been away, is CREDIT turns ahead of those who have had jobs all the time, and no more: all
-- get as much, and who has only a few jobs need not wait until all others have got as many.
--
-- n: their order. fair: who is to be charged for a job that begins, by charge_turns: those that do not begin cost nobody a turn.
-- got, weight: of that one, so far.
CREATE OR REPLACE FUNCTION pgqueue.pick_fair(q pgqueue.queue, amount integer, lanes smallint[])
RETURNS TABLE (tid tid, lane smallint, pos bigint, job_id uuid, n bigint, fair text, got double precision, weight integer)
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
BEGIN
    SELECT t.last, t.turn INTO after, reached FROM pgqueue.fair_turn t WHERE t.queue = q.name;
    reached := coalesce(reached, 0);
    n := 0;
    FOREACH lane IN ARRAY lanes LOOP
        IF lane % 2 = 0 THEN
            FOR job IN SELECT r.ctid AS tid, r.pos, r.job_id FROM pgqueue.ready r
                        WHERE r.queue = q.name AND r.lane = pick_fair.lane ORDER BY r.pos LIMIT amount - n LOOP
                n := n + 1;
                tid := job.tid; pos := job.pos; job_id := job.job_id;
                RETURN NEXT;
            END LOOP;
            EXIT WHEN n >= amount;
            CONTINUE;
        END IF;
        SELECT w.* INTO known FROM pgqueue.who_is_next(q.name, lane, after, MOST, (amount - n)::integer, reached - CREDIT) w;
        IF known.who IS NULL OR random() < 0.05 THEN          -- jobs whose producer did not know yet that the queue is fair
            UPDATE pgqueue.ready r SET fair = pgqueue.for_whom(q.fair_by, j.input) FROM pgqueue.job j
             WHERE j.id = r.job_id
               AND r.ctid = ANY (ARRAY(SELECT u.ctid FROM pgqueue.ready u WHERE u.queue = q.name AND u.lane = pick_fair.lane
                                          AND u.fair IS NULL ORDER BY u.pos LIMIT 1000 FOR UPDATE SKIP LOCKED));
            IF FOUND THEN
                SELECT w.* INTO known FROM pgqueue.who_is_next(q.name, lane, after, MOST, (amount - n)::integer, reached - CREDIT) w;
            END IF;
        END IF;
        CONTINUE WHEN known.who IS NULL;
        after := known.next;
        room := CREDIT + (amount - n) / (SELECT sum(w) FROM unnest(known.weights) w);      -- nobody gets more in one claim
        FOR job IN SELECT r.tid, r.pos, r.job_id, g.fair, g.got, g.weight
                     FROM unnest(known.who, known.weights, known.gots) g(fair, weight, got)
                    CROSS JOIN LATERAL (
                        SELECT r.ctid AS tid, r.pos, r.job_id, row_number() OVER (ORDER BY r.pos) AS k FROM pgqueue.ready r
                         WHERE r.queue = q.name AND r.lane = pick_fair.lane AND r.fair = g.fair
                         ORDER BY r.pos LIMIT least(amount - n, room * g.weight + 1)) r
                    ORDER BY g.got + r.k / g.weight::double precision, r.pos LIMIT amount - n LOOP
            n := n + 1;
            tid := job.tid; pos := job.pos; job_id := job.job_id;
            fair := job.fair; got := job.got; weight := job.weight;
            RETURN NEXT;
        END LOOP;
        fair := NULL; got := NULL; weight := NULL;
        EXIT WHEN n >= amount;
    END LOOP;
    INSERT INTO pgqueue.fair_turn AS t (queue, last, turn) VALUES (q.name, after, reached)
    ON CONFLICT (queue) DO UPDATE SET last = excluded.last WHERE t.last IS DISTINCT FROM excluded.last;
    DELETE FROM pgqueue.fair_share s                         -- those who would begin with the credit all the same
     WHERE s.ctid = ANY (ARRAY(SELECT o.ctid FROM pgqueue.fair_share o
                                WHERE o.queue = q.name AND o.got <= reached - CREDIT ORDER BY o.got LIMIT 10));
END
$$;
