-- One row per queue: what is in force, what of it the App declares and an operator has chosen, how much of the concurrency is in use
-- (null: it has no limits), how many jobs wait for their turn at a key (up to 10,000), in how many seconds the next job may begin, and
-- how many tokens of the rate are left: so many could begin at this moment.
CREATE OR REPLACE FUNCTION pgqueue.limits()
RETURNS TABLE (queue text, paused boolean, in_force jsonb, declared jsonb, chosen jsonb, used bigint, waiting_for_key bigint,
               next_start_seconds double precision, tokens integer)
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET jit = off
AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    SELECT q.name, q.paused, pgqueue.limits_in_force(q.declared, q.chosen), q.declared, q.chosen,
           CASE WHEN q.limited THEN (SELECT coalesce(sum(r.cost), 0)::bigint FROM pgqueue.running r WHERE r.limited = q.name)
                                    + CASE WHEN q.uncounted THEN (SELECT count(*) FROM pgqueue.running r
                                                                   WHERE r.queue = q.name AND r.limited IS NULL) ELSE 0 END END,
           (SELECT count(*) FROM (SELECT FROM pgqueue.waiting w
                                   WHERE w.kind = 'key' AND w.key >= q.name || '/' AND w.key < q.name || '0' AND w.queue = q.name LIMIT 10001) c),
           CASE WHEN q.rate IS NOT NULL
                THEN greatest(0, extract(epoch FROM pgqueue.next_start(q.name, '', q.rate, q.rate_seconds, q.rate_burst, 1, pgqueue.clock())
                                                    - pgqueue.clock())::float8) END,
           CASE WHEN q.rate IS NOT NULL
                THEN greatest(0, least(q.rate_burst, floor(q.rate_burst - q.rate / q.rate_seconds * extract(epoch FROM coalesce(
                         (SELECT r.next FROM pgqueue.rate_register r WHERE r.queue = q.name AND r.key = ''), pgqueue.clock())
                         - pgqueue.clock())::float8 + 1e-6)))::integer END
      FROM pgqueue.queue q ORDER BY q.name;
END
$$;
