-- The lanes of a queue whose priorities age, in the order in which to take jobs from them; empty ones are left out. A job counts as
-- much as one of the next priority that is `aging` seconds younger, so none waits for ever. The first job of a lane speaks for it; in
-- a queue with limits for both lanes of its priority, because what comes back stays in front of others of its key.
-- hints: as in claim, for its 20 lanes.
CREATE OR REPLACE FUNCTION pgqueue.aged_lanes(queue text, aging double precision, hints bigint[]) RETURNS smallint[]
LANGUAGE plpgsql STABLE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off
SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $$
DECLARE
    limited boolean := (SELECT q.limited FROM pgqueue.queue q WHERE q.name = queue);
BEGIN
    RETURN ARRAY(
        SELECT l.lane FROM generate_series(0, 19) l(lane)
         CROSS JOIN LATERAL (SELECT r.job_id FROM pgqueue.ready r
                              WHERE r.queue = aged_lanes.queue AND r.lane = l.lane AND r.pos >= hints[l.lane + 1] ORDER BY r.pos LIMIT 1) head
          JOIN pgqueue.job j ON j.id = head.job_id
         CROSS JOIN LATERAL (SELECT coalesce(j.run_at, j.created_at) + (l.lane / 2) * make_interval(secs => aging) AS since) a
         ORDER BY CASE WHEN limited THEN min(a.since) OVER (PARTITION BY l.lane / 2) ELSE a.since END, l.lane);
END
$$;
