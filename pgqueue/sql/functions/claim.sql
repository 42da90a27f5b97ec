-- Take up to `amount` ready jobs for a worker: they leave `ready` and enter `running` under the caller's random token.
-- A job whose workflow (or version of it: names are "name" or "name@2") the worker does not know is put aside, and taken from
-- there by whoever knows it. A job that somebody asked to cancel ends here, and so does one that comes too late.
--
-- starts_in: a job of a queue with a rate may begin in so many seconds, and not before. at_once: how many jobs the worker can begin
-- at this moment; of limited queues it seldom gets more. waited: for so many seconds the job has been due; null where it comes back.
--
-- hints: for each queue its 20 lanes' lowest position worth looking at; behind it there are only dead index entries.
-- It is an optimisation and never the truth: zeros look from the start, which a claimer does now and then.
CREATE OR REPLACE FUNCTION pgqueue.claim(
    worker uuid, token bigint, queues text[], names text[], amount integer, hints bigint[], backwards boolean,
    at_once integer DEFAULT 1)
RETURNS TABLE (job_id uuid, name text, input text, queue text, lane smallint, pos bigint, policy jsonb, suspect boolean,
               seconds_left double precision, starts_in double precision, waited double precision)
LANGUAGE plpgsql VOLATILE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off
SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    lanes  smallint[] := CASE WHEN backwards THEN '{19,18,17,16,15,14,13,12,11,10,9,8,7,6,5,4,3,2,1,0}'
                              ELSE '{0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19}' END;
    wanted integer := least(amount, 1000);
    served integer;
    alone  text[];                                          -- limited queues, whose locks we have for ourselves
    q      pgqueue.queue;
    tids   tid[];
    starts timestamptz[];
    stamp  timestamptz;
    turn   smallint[];                                      -- the lanes, in the order for this queue
BEGIN
    PERFORM pgqueue.assert_read_committed();
    PERFORM pgqueue.quick_commit();
    PERFORM FROM pgqueue.worker w WHERE w.id = claim.worker AND w.fenced_at IS NULL;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    PERFORM pgqueue.line_up_known(queues, names, wanted);
    alone := pgqueue.lock_queues(queues);
    stamp := pgqueue.clock();                                -- behind the locks: of two claims the later one has the later stamp
    FOR i IN 1 .. cardinality(queues) LOOP
        EXIT WHEN wanted <= 0;
        SELECT u.* INTO q FROM pgqueue.queue u WHERE u.name = queues[i] AND NOT u.paused;
        CONTINUE WHEN NOT FOUND OR (q.limited AND q.name <> ALL (alone));      -- limited since a moment ago: next time
        tids := NULL;
        turn := lanes;
        IF q.aging IS NOT NULL THEN
            turn := pgqueue.aged_lanes(q.name, q.aging, hints[20 * (i - 1) + 1 : 20 * i]);
        END IF;
        IF q.limited THEN
            IF q.rate IS NOT NULL OR q.key_rate IS NOT NULL THEN
                PERFORM pgqueue.durable_commit();            -- a register never goes back
            END IF;
            IF backwards AND q.aging IS NULL THEN            -- but what comes back stays in front of others of its key
                turn := '{18,19,16,17,14,15,12,13,10,11,8,9,6,7,4,5,2,3,0,1}';
            END IF;
            SELECT array_agg(p.tid), array_agg(p.starts_at) INTO tids, starts
              FROM pgqueue.pick_limited(q, names, wanted, at_once, array_fill(0::bigint, '{20}'), turn, stamp) p;  -- a hint may leave out what waits here
            CONTINUE WHEN tids IS NULL;
        END IF;
        RETURN QUERY
        WITH picked AS MATERIALIZED (
            SELECT r.tid
              FROM unnest(turn) l(lane)
             CROSS JOIN LATERAL (
                SELECT r.ctid AS tid FROM pgqueue.ready r
                 WHERE r.queue = queues[i] AND r.lane = l.lane
                   AND r.pos >= hints[20 * (i - 1) + l.lane + 1]
                 ORDER BY r.pos LIMIT wanted FOR UPDATE SKIP LOCKED) r
             WHERE tids IS NULL
             LIMIT wanted
        ), gone AS (
            DELETE FROM pgqueue.ready r WHERE r.ctid = ANY (coalesce(tids, ARRAY(SELECT p.tid FROM picked p))) RETURNING r.ctid AS tid, r.*
        ), known AS MATERIALIZED (
            SELECT g.*, v.name, j.input, j.policy, j.parent, j.key, j.cost, coalesce(j.run_at, j.created_at) AS due, j.unique_key, v.unique_until,
                   CASE WHEN u.key IS NULL OR l.key IS NOT NULL THEN v.name = ANY (names) END AS mine,      -- null: somebody keeps it
                   (j.policy ->> 'deadline')::timestamptz AS deadline,
                   CASE WHEN u.key IS NOT NULL AND l.key IS NULL THEN NULL
                        WHEN c.job_id IS NOT NULL THEN 'cancelled'
                        WHEN (j.policy ->> 'deadline')::timestamptz <= stamp THEN 'timeout'
                        WHEN g.lane % 2 = 1 AND (j.policy ->> 'expires_at')::timestamptz <= stamp THEN 'expired' END AS over
              FROM gone g
              JOIN pgqueue.job j ON j.id = g.job_id
             CROSS JOIN LATERAL (SELECT CASE j.version WHEN 1 THEN j.name ELSE j.name || '@' || j.version END,
                                        CASE WHEN j.unique_key IS NOT NULL THEN j.policy #>> '{unique,until}' END) v(name, unique_until)
              LEFT JOIN LATERAL (SELECT x.job_id FROM pgqueue.cancel_request x WHERE x.job_id = g.job_id FOR UPDATE SKIP LOCKED) c ON true   -- see cancel_waiting
              LEFT JOIN pgqueue.unique_job u ON u.key = CASE v.unique_until WHEN 'started' THEN j.unique_key END AND u.job_id = j.id
              LEFT JOIN LATERAL (SELECT x.key FROM pgqueue.unique_job x WHERE x.key = u.key FOR UPDATE SKIP LOCKED) l ON true
        ), ended AS (
            INSERT INTO pgqueue.outcome (job_id, status, error, finished_at)
            SELECT k.job_id, CASE k.over WHEN 'timeout' THEN 'failed' ELSE 'cancelled' END,
                   CASE k.over WHEN 'timeout' THEN '{"type":"JobTimeout","message":"the time limit of the job is over"}'
                               WHEN 'expired' THEN '{"type":"Expired","message":"no worker began the job in time"}' END, stamp
              FROM known k WHERE k.over IS NOT NULL
            ON CONFLICT DO NOTHING
            RETURNING job_id
        ), honoured AS (
            DELETE FROM pgqueue.cancel_request c WHERE c.job_id = ANY (ARRAY(SELECT k.job_id FROM known k WHERE k.over = 'cancelled'))
        ), put_off AS (                                      -- a producer keeps it until his transaction ends
            INSERT INTO pgqueue.scheduled (job_id, run_at, queue, lane)
            SELECT k.job_id, stamp + interval '100 ms', k.queue, k.lane FROM known k WHERE k.mine IS NULL
        ), freed AS (                                        -- others may be the one of their key now
            DELETE FROM pgqueue.unique_job u
             WHERE u.key = ANY (ARRAY(SELECT k.unique_key FROM known k WHERE k.unique_until = 'started' AND (k.mine OR k.over IS NOT NULL)
                                                                          OR k.unique_until = 'ended' AND k.over IS NOT NULL))
               AND u.job_id = ANY (ARRAY(SELECT k.job_id FROM known k WHERE k.unique_until IS NOT NULL))
        ), followed AS (
            INSERT INTO pgqueue.wakeup (pos, ended) SELECT nextval('pgqueue.position'), e.job_id FROM ended e
            RETURNING pg_notify('pgqueue_wake', '')
        ), passed AS (                                       -- those behind them have their turn
            INSERT INTO pgqueue.wakeup (pos, turn)
            SELECT nextval('pgqueue.position'), t.turn
              FROM (SELECT DISTINCT k.queue || '/' || k.key AS turn FROM known k
                     WHERE q.limited AND k.key IS NOT NULL AND (k.mine AND k.over IS NULL) IS NOT TRUE) t
            RETURNING pg_notify('pgqueue_wake', '')
        ), strangers AS (
            INSERT INTO pgqueue.waiting (job_id, kind, key, queue, lane)
            SELECT k.job_id, 'name', k.name, k.queue, k.lane FROM known k WHERE NOT k.mine AND k.over IS NULL
            ON CONFLICT DO NOTHING
            RETURNING pg_notify('pgqueue', '')               -- somebody may be idle who knows it
        ), started AS (
            INSERT INTO pgqueue.running (job_id, claim, worker, queue, lane, pos, started_at, suspect, parent, limited, key, cost, unique_key)
            SELECT k.job_id, token, worker, k.queue, k.lane, k.pos, coalesce(starts[array_position(tids, k.tid)], stamp), k.suspect, k.parent,
                   CASE WHEN q.limited THEN k.queue END, CASE WHEN q.per_key IS NOT NULL THEN k.key END, CASE WHEN q.limited THEN k.cost END,
                   CASE k.unique_until WHEN 'ended' THEN k.unique_key END
              FROM known k WHERE k.mine AND k.over IS NULL
            ON CONFLICT (job_id) DO NOTHING
            RETURNING pos
        ), conflicts AS (
            SELECT nextval('pgqueue.conflict')
              FROM generate_series(1, (SELECT count(*) FROM known k WHERE k.mine AND k.over IS NULL) - (SELECT count(*) FROM started))
        )
        SELECT k.job_id, k.name, k.input, k.queue, k.lane, k.pos, k.policy, k.suspect, extract(epoch FROM k.deadline - stamp)::float8,
               extract(epoch FROM starts[array_position(tids, k.tid)] - stamp)::float8,
               CASE k.lane % 2 WHEN 1 THEN greatest(0, extract(epoch FROM stamp - k.due))::float8 END
          FROM known k
         WHERE k.mine AND k.over IS NULL                      -- and was inserted: a duplicate never goes to two workers
           AND ((SELECT count(*) FROM conflicts) = 0 OR k.pos = ANY (ARRAY(SELECT s.pos FROM started s)));
        GET DIAGNOSTICS served = ROW_COUNT;
        wanted := wanted - served;
    END LOOP;
    IF wanted > 0 THEN
        RETURN QUERY SELECT * FROM pgqueue.claim_known(worker, token, queues, names, wanted);
    END IF;
END
$$;
