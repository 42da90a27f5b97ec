-- One row per queue: how many jobs are in each work list (ready counted up to 10,000: 10001 means more), and for how many
-- seconds the oldest ready job has been waiting for a worker.
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
    SELECT q.name, q.paused,
           (SELECT count(*) FROM (SELECT FROM pgqueue.ready r WHERE r.queue = q.name LIMIT 10001) c),
           (SELECT count(*) FROM (SELECT FROM pgqueue.scheduled s WHERE s.queue = q.name LIMIT 10001) c),
           (SELECT count(*) FROM (SELECT FROM pgqueue.running r WHERE r.queue = q.name LIMIT 10001) c),
           (SELECT count(*) FROM (SELECT FROM pgqueue.waiting w WHERE w.queue = q.name LIMIT 10001) c),
           (SELECT extract(epoch FROM pgqueue.clock() - min(coalesce(j.run_at, j.created_at)))::float8
              FROM generate_series(0, 19) l(lane)
             CROSS JOIN LATERAL (SELECT r.job_id FROM pgqueue.ready r WHERE r.queue = q.name AND r.lane = l.lane
                                  ORDER BY r.pos LIMIT 1) head
              JOIN pgqueue.job j ON j.id = head.job_id)
      FROM pgqueue.queue q ORDER BY q.name;
END
$$;
