-- The part of claim for a limited queue, whose lock the caller holds: which of its ready jobs may begin, in their order, and when
-- (null: at once). They are locked. Jobs whose key has had its share are put aside, into `waiting`, so that nobody meets them again
-- before it is their turn. Jobs that will not run (cancelled, too late, unknown here) cost nothing.
--
-- at_once: how many jobs the worker can begin at this moment. It gets more only of what there is plenty of: a job that was claimed
-- and has not begun uses its limit for nothing.
CREATE OR REPLACE FUNCTION pgqueue.pick_limited(q pgqueue.queue, names text[], amount integer, at_once integer, hints bigint[], stamp timestamptz)
RETURNS TABLE (tid tid, starts_at timestamptz)
LANGUAGE plpgsql VOLATILE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off
SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    AHEAD   CONSTANT interval := '50 ms';                    -- a start may be given out so long before it
    by_key  boolean := q.per_key IS NOT NULL;
    room    bigint := 1000000000;
    found   bigint := 0;
    look    integer;
    aside   text[];                                          -- the keys of jobs that were put aside
    moment  timestamptz;
    job     record;
BEGIN
    IF q.concurrency IS NOT NULL THEN
        room := q.concurrency - pgqueue.used(q);
        IF room <= 0 THEN
            RETURN;
        END IF;
        amount := least(amount, greatest(at_once, room / 4));
    END IF;
    IF q.rate IS NOT NULL THEN
        IF pgqueue.next_start(q.name, '', q.rate, q.rate_seconds, q.rate_burst, 1, stamp) > stamp + AHEAD THEN
            RETURN;
        END IF;
    END IF;
    look := CASE WHEN by_key OR q.key_rate IS NOT NULL THEN least(4 * amount + 100, 2000) ELSE amount END;
    FOR round IN 1 .. 50 LOOP                                -- one is enough, unless the jobs of busy keys are in front
        aside := '{}';
        FOR job IN
            WITH seen AS MATERIALIZED (
                SELECT r.* FROM pgqueue.pick_plain(q.name, look, hints) r WHERE q.fair_by IS NULL
                 UNION ALL
                SELECT r.* FROM pgqueue.pick_fair(q.name, look) r WHERE q.fair_by IS NOT NULL
            ), facts AS MATERIALIZED (
                SELECT s.*, j.id, j.cost, CASE WHEN (by_key OR q.key_rate IS NOT NULL) AND NOT f.free THEN q.name || '/' || j.key END AS turn, j.key, f.free
                  FROM seen s
                  JOIN pgqueue.job j ON j.id = s.job_id
                  LEFT JOIN pgqueue.cancel_request c ON c.job_id = s.job_id
                 CROSS JOIN LATERAL (
                    SELECT (c.job_id IS NOT NULL OR (CASE j.version WHEN 1 THEN j.name ELSE j.name || '@' || j.version END) <> ALL (names)
                           OR (j.policy ->> 'deadline')::timestamptz <= stamp
                           OR (s.lane % 2 = 1 AND (j.policy ->> 'expires_at')::timestamptz <= stamp)) IS TRUE AS free) f
            )
            SELECT f.*, u.queued,
                   CASE WHEN f.turn IS NULL THEN true
                        ELSE (NOT by_key OR row_number() OVER (PARTITION BY f.turn ORDER BY f.n) <= q.per_key - u.used)
                             AND (f.lane % 2 = 0 OR NOT u.queued) END AS allowed
              FROM facts f
              LEFT JOIN LATERAL (
                    SELECT (SELECT count(*) FROM pgqueue.running r WHERE r.limited = q.name AND r.key = f.key) AS used,
                           EXISTS (SELECT FROM pgqueue.waiting w WHERE w.kind = 'key' AND w.key = f.turn) AS queued
                     WHERE f.turn IS NOT NULL) u ON true
             ORDER BY f.n
        LOOP
            IF job.free THEN
                tid := job.tid;
                starts_at := NULL;
                RETURN NEXT;
                CONTINUE;
            END IF;
            IF NOT job.allowed THEN
                PERFORM pgqueue.put_aside(job.tid, job.id, job.turn, q.name, job.lane, job.pos, NULL);
                aside := aside || job.turn;
                CONTINUE;
            END IF;
            EXIT WHEN found >= amount OR (job.cost > room AND NOT (found = 0 AND room = q.concurrency));
            starts_at := NULL;
            IF q.key_rate IS NOT NULL AND job.turn IS NOT NULL THEN
                moment := pgqueue.next_start(q.name, job.key, q.key_rate, q.key_rate_seconds, q.key_rate_burst, job.cost, stamp);
                IF moment > stamp + AHEAD THEN
                    PERFORM pgqueue.put_aside(job.tid, job.id, job.turn, q.name, job.lane, job.pos, moment - AHEAD);
                    aside := aside || job.turn;
                    CONTINUE;
                END IF;
                starts_at := moment;
            END IF;
            IF q.rate IS NOT NULL THEN
                moment := pgqueue.next_start(q.name, '', q.rate, q.rate_seconds, q.rate_burst, job.cost, stamp);
                EXIT WHEN moment > stamp + AHEAD;
                starts_at := greatest(starts_at, moment);
                PERFORM pgqueue.take_start(q.name, '', q.rate, q.rate_seconds, q.rate_burst, job.cost, starts_at);
            END IF;
            IF q.key_rate IS NOT NULL AND job.turn IS NOT NULL THEN
                PERFORM pgqueue.take_start(q.name, job.key, q.key_rate, q.key_rate_seconds, q.key_rate_burst, job.cost, starts_at);
                UPDATE pgqueue.waiting w SET until = pgqueue.next_start(q.name, job.key, q.key_rate, q.key_rate_seconds, q.key_rate_burst, 1, stamp) - AHEAD
                 WHERE w.ctid = (SELECT n.ctid FROM pgqueue.waiting n WHERE n.kind = 'key' AND n.key = job.turn ORDER BY n.pos LIMIT 1);
            END IF;
            tid := job.tid;
            found := found + 1;
            room := room - job.cost;
            RETURN NEXT;
        END LOOP;
        -- Whoever looks after keys is told, in case the job that is in front ends at this moment.
        INSERT INTO pgqueue.wakeup (pos, turn) SELECT nextval('pgqueue.position'), t FROM (SELECT DISTINCT t FROM unnest(aside) t) t;
        EXIT WHEN found > 0 OR cardinality(aside) = 0;
    END LOOP;
END
$$;
