-- The first ready jobs of a queue, in the order of these lanes and of positions, locked. n: their order. hints: as in claim, for its 20 lanes;
-- jobs that come back keep their position while they wait for their turn, so there is no hint for those.
CREATE OR REPLACE FUNCTION pgqueue.pick_plain(queue text, amount integer, hints bigint[], lanes smallint[])
RETURNS TABLE (tid tid, lane smallint, pos bigint, job_id uuid, n bigint)
LANGUAGE plpgsql VOLATILE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off
SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    SELECT r.tid, l.lane, r.pos, r.job_id, row_number() OVER ()
      FROM unnest(lanes) l(lane)
     CROSS JOIN LATERAL (
        SELECT r.ctid AS tid, r.pos, r.job_id FROM pgqueue.ready r
         WHERE r.queue = pick_plain.queue AND r.lane = l.lane
           AND r.pos >= CASE l.lane % 2 WHEN 1 THEN hints[l.lane + 1] ELSE 0 END
         ORDER BY r.pos LIMIT amount FOR UPDATE SKIP LOCKED) r
     LIMIT amount;
END
$$;
