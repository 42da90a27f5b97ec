-- The other part of pick_fair: jobs begin, one element for each, for these, who had got so much before, and have these weights.
CREATE OR REPLACE FUNCTION pgqueue.charge_turns(queue text, who text[], gots double precision[], weights integer[]) RETURNS void
LANGUAGE plpgsql VOLATILE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off
AS $$
BEGIN
    WITH now_got AS (
        SELECT s.fair, max(s.got) + count(*) / max(s.weight)::double precision AS got
          FROM unnest(who, gots, weights) s(fair, got, weight) GROUP BY s.fair
    ), charged AS (
        INSERT INTO pgqueue.fair_share (queue, fair, got) SELECT charge_turns.queue, g.fair, g.got FROM now_got g
        ON CONFLICT ON CONSTRAINT fair_share_pkey DO UPDATE SET got = excluded.got
    )
    UPDATE pgqueue.fair_turn t SET turn = greatest(t.turn, (SELECT max(g.got) - 1 FROM now_got g)) WHERE t.queue = charge_turns.queue;
END
$$;
