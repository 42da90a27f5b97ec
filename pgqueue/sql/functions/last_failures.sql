-- The jobs that failed last, among the last 10,000 that have ended.
CREATE OR REPLACE FUNCTION pgqueue.last_failures(amount integer)
RETURNS TABLE (job_id uuid, name text, queue text, finished_at timestamptz, error text)
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    SELECT o.job_id, j.name, j.queue, o.finished_at, o.type
      FROM (SELECT o.job_id, o.status, o.finished_at,
                   CASE o.status WHEN 'failed' THEN substring(o.error FROM '"type": ?"([^"]*)"') END AS type
              FROM pgqueue.outcome o ORDER BY o.finished_at DESC LIMIT 10000) o
      JOIN pgqueue.job j ON j.id = o.job_id
     WHERE o.status = 'failed' ORDER BY o.finished_at DESC LIMIT amount;
END
$$;
