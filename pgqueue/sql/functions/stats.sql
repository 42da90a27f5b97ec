-- One row per queue: how many jobs are in each work list, and for how many seconds the oldest ready job has been waiting for a worker.
-- Ready ones are counted up to 10,000 (10001 means more), the others among the first 100,000 of their list, in one look for all queues.
CREATE OR REPLACE FUNCTION pgqueue.stats()
RETURNS TABLE (queue text, paused boolean, ready bigint, scheduled bigint, running bigint, waiting bigint,
               oldest_ready_seconds double precision)
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET jit = off
AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    WITH lists AS MATERIALIZED (
        SELECT l.queue, count(*) FILTER (WHERE l.list = 's') AS scheduled, count(*) FILTER (WHERE l.list = 'r') AS running,
               count(*) FILTER (WHERE l.list = 'w') AS waiting
          FROM ((SELECT 's' AS list, s.queue FROM pgqueue.scheduled s LIMIT 100000)
                UNION ALL (SELECT 'r', r.queue FROM pgqueue.running r LIMIT 100000)
                UNION ALL (SELECT 'w', w.queue FROM pgqueue.waiting w LIMIT 100000)) l
         GROUP BY l.queue
    )
    SELECT q.name, q.paused,
           (SELECT count(*) FROM (SELECT FROM pgqueue.ready r WHERE r.queue = q.name LIMIT 10001) c),
           coalesce(l.scheduled, 0), coalesce(l.running, 0), coalesce(l.waiting, 0),
           (SELECT extract(epoch FROM pgqueue.clock() - min(coalesce(j.run_at, j.created_at)))::float8
              FROM generate_series(0, 19) g(lane)
             CROSS JOIN LATERAL (SELECT r.job_id FROM pgqueue.ready r WHERE r.queue = q.name AND r.lane = g.lane
                                  ORDER BY r.pos LIMIT 1) head
              JOIN pgqueue.job j ON j.id = head.job_id)
      FROM pgqueue.queue q LEFT JOIN lists l ON l.queue = q.name ORDER BY q.name;
END
$$;
