-- For each queue with jobs that have ended in the last so many seconds: how many that were per second, and how many of them failed.
-- Looks at the last 20,000; where those took less time, the rates are of that time.
CREATE OR REPLACE FUNCTION pgqueue.rates(seconds double precision) RETURNS TABLE (queue text, ended double precision, failed double precision)
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    moment timestamptz := pgqueue.clock();
BEGIN
    RETURN QUERY
    WITH lately AS MATERIALIZED (
        SELECT o.job_id, o.status, o.finished_at FROM pgqueue.outcome o
         WHERE o.finished_at > moment - make_interval(secs => seconds) ORDER BY o.finished_at DESC LIMIT 20000
    ), period AS (
        SELECT CASE WHEN count(*) < 20000 THEN seconds ELSE greatest(0.001, extract(epoch FROM moment - min(l.finished_at))::float8) END AS length
          FROM lately l
    )
    SELECT j.queue, count(*) / p.length, count(*) FILTER (WHERE l.status = 'failed') / p.length
      FROM lately l JOIN pgqueue.job j ON j.id = l.job_id CROSS JOIN period p GROUP BY j.queue, p.length;
END
$$;
