-- All metrics that the database knows, one row for each series: the metric, the values of its labels, and the number. Of the sessions of
-- others it tells what its caller may see, so it has the caller's rights; what is in our tables comes from job_metrics.
CREATE OR REPLACE FUNCTION pgqueue.metrics() RETURNS TABLE (metric text, labels text[], value double precision)
LANGUAGE plpgsql STABLE
SET enable_seqscan = off SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    moment timestamptz := pgqueue.clock();
BEGIN
    RETURN QUERY SELECT m.metric, m.labels, m.value FROM pgqueue.job_metrics() m;
    RETURN QUERY
    SELECT v.metric, ARRAY[c.relname::text], v.value
      FROM pg_class c
     CROSS JOIN LATERAL (VALUES
            ('pgqueue_table_bytes', pg_total_relation_size(c.oid)::float8),
            ('pgqueue_dead_tuples', pg_stat_get_dead_tuples(c.oid)::float8)) v(metric, value)
     WHERE c.relnamespace = 'pgqueue'::regnamespace AND c.relkind = 'r';
    RETURN QUERY
    SELECT 'pgqueue_xmin_horizon_age_seconds', '{}'::text[], greatest(0, extract(epoch FROM moment - min(o.began)))::float8
      FROM (SELECT a.xact_start AS began FROM pg_stat_activity a
             WHERE a.backend_xmin IS NOT NULL AND a.pid <> pg_backend_pid()
               AND (a.datname = current_database() OR a.backend_type = 'walsender')     -- other databases keep nothing of ours
             UNION ALL SELECT p.prepared FROM pg_prepared_xacts p WHERE p.database = current_database()
             UNION ALL SELECT moment) o;
END
$$;
