-- The part of claim for a limited queue, whose lock the caller holds: which of its ready jobs may begin, in their order, and when
-- (null: at once). They are locked. Jobs whose key has had its share are put aside, into `waiting`, so that nobody meets them again
-- before it is their turn: here, or before by pick_turns. Jobs that will not run (cancelled, too late, unknown here) cost nothing.
--
-- at_once: how many jobs the worker can begin at this moment. It gets more only of what there is plenty of: a job that was claimed
-- and has not begun uses its limit for nothing.
CREATE OR REPLACE FUNCTION pgqueue.pick_limited(q pgqueue.queue, names text[], amount integer, at_once integer, hints bigint[], lane_order smallint[], stamp timestamptz)
RETURNS TABLE (tid tid, starts_at timestamptz)
LANGUAGE plpgsql VOLATILE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off
SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    AHEAD   CONSTANT interval := '50 ms';                    -- a start may be given out so long before it
    by_key  boolean := q.per_key IS NOT NULL OR q.key_rate IS NOT NULL;
    room    bigint := 1000000000;
    found   bigint := 0;
    look    integer := 0;
    moment  timestamptz;
    tids    tid[];                                           -- jobs that are put aside, and
    turns   text[];
    untils  timestamptz[];
    jobs    uuid[];
    lanes   smallint[];
    places  bigint[];
    who     text[] := '{}';                                  -- for whom those are that begin, in a fair queue
    gots    double precision[] := '{}';
    weights integer[] := '{}';
    more    boolean;                                         -- some were in front of others, and are not any more
    allowed boolean;
    job     record;
BEGIN
    IF q.concurrency IS NOT NULL THEN
        room := q.concurrency - pgqueue.used(q);
        amount := least(amount, room, greatest(at_once, room / 4));
        IF amount <= 0 THEN
            RETURN;
        END IF;
    END IF;
    IF q.rate IS NOT NULL THEN
        IF pgqueue.next_start(q.name, '', q.rate, q.rate_seconds, q.rate_burst, 1, stamp) > stamp + AHEAD THEN
            RETURN;
        END IF;
    END IF;
    FOR round IN 1 .. 50 LOOP                                -- one is enough, unless the jobs of busy keys are in front
        look := least(amount + 4 * look, 2000);
        tids := '{}'; turns := '{}'; untils := '{}'; jobs := '{}'; lanes := '{}'; places := '{}'; more := false;
        FOR job IN
            WITH seen AS MATERIALIZED (
                SELECT r.tid, r.lane, r.job_id, r.pos, r.n, NULL::text AS fair, NULL::float8 AS got, NULL::integer AS weight,
                       NULL::text AS turn, NULL::bigint AS place, NULL::bigint AS free, 0::bigint AS moved
                  FROM pgqueue.pick_plain(q.name, look, hints, lane_order) r WHERE NOT by_key AND q.fair_by IS NULL
                 UNION ALL
                SELECT r.tid, r.lane, r.job_id, r.pos, r.n, r.fair, r.got, r.weight, NULL, NULL, NULL, 0
                  FROM pgqueue.pick_fair(q, look, lane_order) r WHERE NOT by_key AND q.fair_by IS NOT NULL
                 UNION ALL
                SELECT r.tid, r.lane, r.job_id, r.pos, r.n, r.fair, r.got, r.weight, r.turn, r.place, r.free, r.moved
                  FROM pgqueue.pick_turns(q, look, hints, lane_order) r WHERE by_key
            )
            SELECT s.*, j.id, j.cost, j.key, u.key IS NOT NULL AND l.key IS NULL AS is_kept,
                   (c.job_id IS NOT NULL OR (CASE j.version WHEN 1 THEN j.name ELSE j.name || '@' || j.version END) <> ALL (names)
                   OR (j.policy ->> 'deadline')::timestamptz <= stamp
                   OR (s.lane % 2 = 1 AND (j.policy ->> 'expires_at')::timestamptz <= stamp)) IS TRUE AS over
              FROM seen s
              LEFT JOIN pgqueue.job j ON j.id = s.job_id
              LEFT JOIN LATERAL (SELECT x.job_id FROM pgqueue.cancel_request x WHERE x.job_id = s.job_id FOR UPDATE SKIP LOCKED) c ON true
              LEFT JOIN pgqueue.unique_job u ON u.job_id = j.id       -- as in claim: what is locked here stays so until it has begun
                    AND u.key = CASE WHEN j.unique_key IS NOT NULL AND j.policy #>> '{unique,until}' = 'started' THEN j.unique_key END
              LEFT JOIN LATERAL (SELECT x.key FROM pgqueue.unique_job x WHERE x.key = u.key FOR UPDATE SKIP LOCKED) l ON true
             WHERE j.id IS NOT NULL OR s.tid IS NULL         -- what was committed since a moment ago: next time
             ORDER BY s.n
        LOOP
            more := more OR job.moved > 0 OR job.is_kept;
            IF job.tid IS NULL THEN
                CONTINUE;
            ELSIF job.is_kept THEN
                PERFORM pgqueue.put_off(job.tid, job.id, q.name, job.lane, stamp);
                CONTINUE;
            ELSIF job.over THEN
                tid := job.tid;
                starts_at := NULL;
                RETURN NEXT;
                CONTINUE;
            END IF;
            moment := NULL;
            allowed := job.free IS NULL OR job.place <= job.free;
            IF allowed THEN
                EXIT WHEN found >= amount OR (job.cost > room AND NOT (found = 0 AND room = q.concurrency));
                IF q.key_rate IS NOT NULL AND job.turn IS NOT NULL THEN
                    moment := pgqueue.next_start(q.name, job.key, q.key_rate, q.key_rate_seconds, q.key_rate_burst, job.cost, stamp);
                END IF;
            END IF;
            IF NOT allowed OR moment > stamp + AHEAD THEN
                tids := tids || job.tid; turns := turns || job.turn; untils := untils || (moment - AHEAD);
                jobs := jobs || job.id; lanes := lanes || job.lane; places := places || job.pos;
                CONTINUE;
            END IF;
            starts_at := moment;
            IF q.rate IS NOT NULL THEN
                moment := pgqueue.next_start(q.name, '', q.rate, q.rate_seconds, q.rate_burst, job.cost, stamp);
                EXIT WHEN moment > stamp + AHEAD;
                starts_at := greatest(starts_at, moment);
                PERFORM pgqueue.take_start(q.name, '', q.rate, q.rate_seconds, q.rate_burst, job.cost, starts_at);
            END IF;
            IF q.key_rate IS NOT NULL AND job.turn IS NOT NULL THEN
                PERFORM pgqueue.take_start(q.name, job.key, q.key_rate, q.key_rate_seconds, q.key_rate_burst, job.cost, starts_at);
                UPDATE pgqueue.waiting w SET until = pgqueue.next_start(q.name, job.key, q.key_rate, q.key_rate_seconds, q.key_rate_burst, 1, stamp) - AHEAD
                 WHERE w.ctid = ANY (ARRAY(SELECT n.ctid FROM pgqueue.waiting n WHERE n.kind = 'key' AND n.key = job.turn     -- a tenth of a second
                                            ORDER BY n.pos LIMIT 1 + floor(0.1 * q.key_rate / q.key_rate_seconds)));
            END IF;
            tid := job.tid;
            found := found + 1;
            room := room - job.cost;
            IF job.fair IS NOT NULL THEN
                who := who || job.fair; gots := gots || job.got; weights := weights || job.weight;
            END IF;
            RETURN NEXT;
        END LOOP;
        IF tids <> '{}' THEN
            PERFORM pgqueue.put_aside(tids, turns, untils, jobs, q.name, lanes, places);
        END IF;
        EXIT WHEN found > 0 OR (tids = '{}' AND NOT more);
    END LOOP;
    IF who <> '{}' THEN
        PERFORM pgqueue.charge_turns(q.name, who, gots, weights);
    END IF;
END
$$;
