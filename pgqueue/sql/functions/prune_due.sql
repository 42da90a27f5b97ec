-- The next step of the housekeepers' walk over what has ended: looks at up to `amount` of the oldest jobs (events, ticks) that it has
-- not looked at, and deletes those whose retention is over and that may go. At the end it rests, and begins again from the oldest: for
-- what was needed when it came by. One host at a time, by the lock of the row that says how far it is; others do not wait.
-- Returns how many went, and in how many seconds to come again.
CREATE OR REPLACE FUNCTION pgqueue.prune_due(amount integer, OUT pruned bigint, OUT next_look double precision)
LANGUAGE plpgsql VOLATILE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
SET lock_timeout = '1s'
AS $$
#variable_conflict use_column
DECLARE
    stamp    timestamptz := pgqueue.clock();
    walk     pgqueue.prune_walk;
    shortest double precision;
    latest   timestamptz;                                    -- nothing younger can go
    old      uuid[];
    seen     bigint := 0;
    furthest timestamptz;
BEGIN
    PERFORM pgqueue.assert_read_committed();
    PERFORM pgqueue.quick_commit();
    pruned := 0;
    SELECT w.* INTO walk FROM pgqueue.prune_walk w WHERE w.look_at <= stamp ORDER BY w.look_at LIMIT 1 FOR UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        SELECT least(60, greatest(1, extract(epoch FROM greatest(min(w.look_at), stamp) - stamp))) INTO next_look
          FROM pgqueue.prune_walk w;                         -- -infinity: another host is at it, and PostgreSQL 15 has no infinite interval
        RETURN;
    END IF;
    SELECT min(r.seconds) INTO shortest FROM pgqueue.retention r
     WHERE CASE WHEN r.what IN ('events', 'ticks') THEN r.what ELSE 'jobs' END = walk.what;
    latest := stamp - make_interval(secs => least(shortest, 1e10));
    IF walk.what = 'events' THEN
        pruned := pgqueue.prune_events(stamp - latest, amount);
    ELSIF walk.what = 'ticks' THEN
        pruned := pgqueue.prune_ticks(stamp - latest, amount);
    ELSE
        SELECT array_agg(o.job_id) FILTER (WHERE extract(epoch FROM stamp - o.finished_at) > coalesce(q.seconds, d.seconds)),
               count(*), max(o.finished_at) INTO old, seen, furthest
          FROM (SELECT o.job_id, o.status, o.finished_at FROM pgqueue.outcome o
                 WHERE o.finished_at >= walk.reached AND o.finished_at < latest ORDER BY o.finished_at LIMIT amount) o
          JOIN pgqueue.retention d ON d.queue = '' AND d.what = o.status
          LEFT JOIN pgqueue.job j ON j.id = o.job_id
          LEFT JOIN pgqueue.retention q ON q.queue = j.queue AND q.what = o.status;
        IF old IS NOT NULL THEN
            pruned := pgqueue.erase_jobs(old);
        END IF;
        -- Where so many that stay have ended at the same moment, on behind that moment.
        furthest := CASE WHEN furthest = walk.reached AND pruned = 0 THEN furthest + interval '1 microsecond' ELSE furthest END;
    END IF;
    IF greatest(seen, pruned) >= amount THEN
        UPDATE pgqueue.prune_walk w SET reached = coalesce(furthest, w.reached) WHERE w.what = walk.what;
        next_look := 0;
    ELSE
        next_look := 0.1;                                    -- another walk may be due
        UPDATE pgqueue.prune_walk w
           SET reached = '-infinity', look_at = stamp + make_interval(secs => greatest(1, least(3600, shortest / 10)))
         WHERE w.what = walk.what;
    END IF;
END
$$;
