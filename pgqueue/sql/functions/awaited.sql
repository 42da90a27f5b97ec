-- Which of these jobs have ended, or do not exist. For the next so many seconds, ends are announced on the channel
-- pgqueue_results: their ids, one behind the other. With the rights of its owner: who may wait for results may read no table.
CREATE OR REPLACE FUNCTION pgqueue.awaited(jobs uuid[], seconds double precision) RETURNS SETOF uuid
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off
SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $$
BEGIN
    PERFORM setval('pgqueue.results_until', (extract(epoch FROM pgqueue.clock()) * 1000 + seconds * 1000)::bigint);
    RETURN QUERY
    SELECT g.id
      FROM unnest(jobs) g(id)
      LEFT JOIN pgqueue.job j ON j.id = g.id
      LEFT JOIN pgqueue.outcome o ON o.job_id = g.id
     WHERE j.id IS NULL OR o.job_id IS NOT NULL;
END
$$;
