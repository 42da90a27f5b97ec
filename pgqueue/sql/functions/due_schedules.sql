-- What is due by now: up to `amount` schedules as a JSON array (null: none), the moment at which that was asked, and in how many
-- seconds the next of the others will be due (null: none). One look for both, because an idle host asks this every second.
CREATE OR REPLACE FUNCTION pgqueue.due_schedules(amount integer, OUT due json, OUT moment timestamptz, OUT next_due double precision)
LANGUAGE plpgsql VOLATILE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off
SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $$
BEGIN
    moment := pgqueue.clock();
    SELECT json_agg(s) INTO due
      FROM (SELECT s.name, s.revision, s.cron, s.every, s.timezone, s.misfire, s.grace, s.done_until
              FROM pgqueue.schedule s
             WHERE s.declared AND NOT s.paused AND s.next_at <= moment ORDER BY s.next_at LIMIT amount) s;
    SELECT extract(epoch FROM s.next_at - moment) INTO next_due
      FROM pgqueue.schedule s
     WHERE s.declared AND NOT s.paused AND s.next_at > moment AND s.next_at < 'infinity' ORDER BY s.next_at LIMIT 1;
END
$$;
