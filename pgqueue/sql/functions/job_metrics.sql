-- What metrics() tells of queues, jobs and schedules, with the rights of its owner: readers may not read the tables. Counts stop where
-- they would get expensive (see stats), and names that somebody else may have chosen at 100.
CREATE OR REPLACE FUNCTION pgqueue.job_metrics() RETURNS TABLE (metric text, labels text[], value double precision)
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    moment timestamptz := pgqueue.clock();
BEGIN
    RETURN QUERY
    SELECT v.metric, v.labels, v.value::float8
      FROM pgqueue.stats() s
     CROSS JOIN LATERAL (VALUES
            ('pgqueue_queue_jobs', ARRAY[s.queue, 'ready'], s.ready::numeric),
            ('pgqueue_queue_jobs', ARRAY[s.queue, 'scheduled'], s.scheduled),
            ('pgqueue_queue_jobs', ARRAY[s.queue, 'running'], s.running),
            ('pgqueue_queue_jobs', ARRAY[s.queue, 'waiting'], s.waiting),
            ('pgqueue_queue_oldest_ready_seconds', ARRAY[s.queue], greatest(0, coalesce(s.oldest_ready_seconds, 0))::numeric),
            ('pgqueue_queue_paused', ARRAY[s.queue], s.paused::int)) v(metric, labels, value);
    RETURN QUERY
    SELECT v.metric, ARRAY[q.name], v.value
      FROM pgqueue.queue q
      LEFT JOIN (SELECT r.queue, min(r.started_at) AS oldest,
                        coalesce(sum(r.cost) FILTER (WHERE r.limited = r.queue), 0) + count(*) FILTER (WHERE r.limited IS NULL) AS used
                   FROM pgqueue.running r GROUP BY r.queue) r ON r.queue = q.name
     CROSS JOIN LATERAL (VALUES
            ('pgqueue_queue_oldest_running_seconds', greatest(0, coalesce(extract(epoch FROM moment - r.oldest), 0))::float8),
            ('pgqueue_queue_limit', q.concurrency::float8),
            ('pgqueue_queue_used', CASE WHEN q.concurrency IS NOT NULL THEN coalesce(r.used, 0)::float8 END),
            ('pgqueue_queue_next_start_seconds', CASE WHEN q.rate IS NOT NULL THEN extract(epoch FROM
                pgqueue.next_start(q.name, '', q.rate, q.rate_seconds, q.rate_burst, 1, moment) - moment)::float8 END)) v(metric, value)
     WHERE v.value IS NOT NULL;
    RETURN QUERY
    SELECT 'pgqueue_unclaimable_jobs', ARRAY[CASE WHEN n.place <= 100 THEN n.key ELSE 'other' END], sum(n.amount)::float8
      FROM (SELECT w.key, count(*) AS amount, row_number() OVER (ORDER BY count(*) DESC, w.key) AS place
              FROM (SELECT w.key FROM pgqueue.waiting w WHERE w.kind = 'name' LIMIT 10001) w GROUP BY w.key) n
     GROUP BY 2;
    RETURN QUERY
    SELECT v.metric, ARRAY[s.name], extract(epoch FROM v.at)::float8
      FROM (SELECT * FROM pgqueue.schedule s WHERE s.declared ORDER BY s.name LIMIT 1000) s
     CROSS JOIN LATERAL (VALUES
            ('pgqueue_schedule_last_run_timestamp_seconds', s.last_at),
            ('pgqueue_schedule_next_run_timestamp_seconds',
                CASE WHEN s.paused OR NOT isfinite(s.next_at) THEN NULL WHEN s.problem IS NULL THEN s.next_at
                     ELSE coalesce(s.late_since, s.done_until) END)) v(metric, at)
     WHERE v.at IS NOT NULL;
    RETURN QUERY
    SELECT 'pgqueue_conflicts_total', '{}'::text[], CASE WHEN c.is_called THEN c.last_value ELSE 0 END::float8 FROM pgqueue.conflict c;
END
$$;
