-- Move jobs whose wait is over from `waiting` to `ready`. Looks at those that somebody has asked to look at (see wakeup), at those
-- whose time is over, and, in case anything was missed, at 2,000 others: those behind `after`, in the order of ids. Returns how
-- many were moved, whether there may be more to do at once, and how far it has come (null: to the end).
CREATE OR REPLACE FUNCTION pgqueue.wake(amount integer, after uuid, OUT moved bigint, OUT more boolean, OUT reached uuid)
LANGUAGE plpgsql VOLATILE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off
SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $$
DECLARE
    jobs    uuid[];
    events  text[];
    follow  uuid[];
    turns   text[];
    waiters uuid[];
    due     uuid[];
    others  uuid[];
    taken   bigint;
BEGIN
    PERFORM pgqueue.assert_read_committed();
    PERFORM pgqueue.quick_commit();
    WITH picked AS MATERIALIZED (
        SELECT u.ctid AS tid FROM pgqueue.wakeup u ORDER BY u.pos LIMIT amount FOR UPDATE SKIP LOCKED
    ), gone AS (
        DELETE FROM pgqueue.wakeup u WHERE u.ctid = ANY (ARRAY(SELECT p.tid FROM picked p)) RETURNING u.job_id, u.event, u.ended, u.turn
    )
    SELECT array_agg(DISTINCT g.job_id) FILTER (WHERE g.job_id IS NOT NULL), array_agg(DISTINCT g.event) FILTER (WHERE g.event IS NOT NULL),
           array_agg(g.ended) FILTER (WHERE g.ended IS NOT NULL), array_agg(DISTINCT g.turn) FILTER (WHERE g.turn IS NOT NULL), count(*)
      INTO jobs, events, follow, turns, taken FROM gone g;
    IF follow IS NOT NULL THEN
        PERFORM pgqueue.ended(follow);
    END IF;
    SELECT array_agg(w.job_id) INTO waiters
      FROM (SELECT w.job_id
              FROM unnest(events) e
             CROSS JOIN LATERAL (SELECT w.job_id FROM pgqueue.waiting w WHERE w.kind = 'event' AND w.key = e LIMIT amount) w
             LIMIT amount) w;
    IF cardinality(waiters) = amount THEN                    -- so many wait for an event that they come in several rounds
        INSERT INTO pgqueue.wakeup (pos, event) SELECT nextval('pgqueue.position'), e FROM unnest(events) e;
    END IF;
    SELECT array_agg(w.job_id) INTO due
      FROM (SELECT w.job_id FROM pgqueue.waiting w WHERE w.until <= pgqueue.clock_bound() ORDER BY w.until LIMIT amount) w;
    SELECT array_agg(w.job_id) FILTER (WHERE w.kind <> 'key'), turns || array_agg(DISTINCT w.key) FILTER (WHERE w.kind = 'key' AND w.until IS NULL),
           CASE count(*) WHEN 2000 THEN max(w.job_id::text)::uuid END
      INTO others, turns, reached
      FROM (SELECT w.job_id, w.kind, w.key, w.until FROM pgqueue.waiting w WHERE w.job_id > after ORDER BY w.job_id LIMIT 2000) w;
    jobs := coalesce(jobs, '{}') || coalesce(waiters, '{}') || coalesce(due, '{}') || coalesce(others, '{}');
    moved := CASE WHEN cardinality(jobs) > 0 THEN pgqueue.wake_jobs(jobs) ELSE 0 END;
    IF cardinality(turns) > 0 THEN
        moved := moved + (SELECT count(*) FROM pgqueue.next_turns(turns));
    END IF;
    DELETE FROM pgqueue.rate_register r                      -- of keys that have been quiet for a while
     WHERE r.ctid = ANY (ARRAY(SELECT o.ctid FROM pgqueue.rate_register o
                                WHERE o.key <> '' AND o.next < pgqueue.clock_bound() - interval '1 minute' LIMIT 100 FOR UPDATE SKIP LOCKED));
    DELETE FROM pgqueue.unique_job u                         -- whose time is over
     WHERE u.ctid = ANY (ARRAY(SELECT o.ctid FROM pgqueue.unique_job o WHERE o.until < pgqueue.clock_bound() LIMIT 100 FOR UPDATE SKIP LOCKED));
    more := taken >= amount OR coalesce(cardinality(waiters), 0) >= amount OR coalesce(cardinality(due), 0) >= amount;
    IF moved > 0 THEN
        PERFORM pgqueue.wake_idle();
    END IF;
END
$$;
