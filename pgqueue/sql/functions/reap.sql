-- Take jobs back from a worker that is fenced or gone, up to 500, skipping those that one of its sessions still holds
-- (come back for them). `started` are the jobs it had begun: they are charged with a crash, and fail when that happened
-- max_crashes times without a new checkpoint. Where several had begun, nobody knows which one it was: they are all charged, but
-- fail only after three times as often, and are marked as suspect, so that each begins alone next time. The others are given
-- back as if never taken. reason null: nobody is charged
-- (we stopped the worker ourselves). kind lost: the lease ran out and nobody knows what had begun; then only a job that
-- was alone in its worker is charged. kind timeout: we stopped it because of the time limit of `step` (0: of the whole job) of the
-- one job in `started`, which is charged with that. Removes the worker when it has nothing left. Returns what became of the jobs.
CREATE OR REPLACE FUNCTION pgqueue.reap(worker uuid, started uuid[], kind text, reason text, step integer DEFAULT NULL)
RETURNS TABLE (given_back bigint, failed bigint, still_held bigint)
LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    stamp timestamptz := pgqueue.clock();
    fenced pgqueue.worker;
    alone  boolean;
    ended  uuid[];
    turns  text[];
BEGIN
    PERFORM pgqueue.assert_read_committed();
    PERFORM FROM pgqueue.worker w WHERE w.id = reap.worker AND w.fenced_at IS NULL;
    IF FOUND THEN
        PERFORM pgqueue.refuse('PQ009', format('worker %s is alive: fence it before its jobs are taken', worker));
    END IF;
    IF kind = 'lost' THEN                                    -- does whoever fenced it know more than the caller?
        SELECT * INTO fenced FROM pgqueue.worker w WHERE w.id = reap.worker AND w.started IS NOT NULL;
        IF FOUND THEN
            started := fenced.started;
            kind := CASE WHEN fenced.overdue IS NULL THEN 'crash' ELSE 'timeout' END;
            step := fenced.overdue;
            reason := CASE WHEN cardinality(started) > 0 THEN fenced.reason END;
        END IF;
    END IF;
    SELECT count(*) = 1 INTO alone FROM pgqueue.running r WHERE r.worker = reap.worker;
    WITH held AS MATERIALIZED (
        SELECT r.ctid AS tid, r.*, c.job_id IS NOT NULL AS cancelled,
               reason IS NOT NULL AND (r.job_id = ANY (started) OR (reap.kind = 'lost' AND alone)) AS charged
          FROM pgqueue.running r
          LEFT JOIN LATERAL (SELECT x.job_id FROM pgqueue.cancel_request x WHERE x.job_id = r.job_id FOR UPDATE SKIP LOCKED) c ON true   -- see cancel_waiting
         WHERE r.worker = reap.worker
         ORDER BY r.job_id LIMIT 500
           FOR UPDATE OF r SKIP LOCKED
    ), judged AS MATERIALIZED (
        SELECT h.*, p.checkpoints,
               h.charged AND reap.kind <> 'timeout' AND p.crashes + 1 >= coalesce((j.policy ->> 'max_crashes')::integer, w.max_crashes, 3)
                             * CASE WHEN cardinality(started) > 1 THEN 3 ELSE 1 END AS poison
          FROM held h
          JOIN pgqueue.job j ON j.id = h.job_id
          LEFT JOIN pgqueue.workflow w ON w.name = j.name
         CROSS JOIN LATERAL (
            SELECT n.checkpoints, count(a.id) AS crashes
              FROM (SELECT count(*) AS checkpoints FROM pgqueue.checkpoint k WHERE k.job_id = h.job_id) n
              LEFT JOIN pgqueue.attempt a ON a.job_id = h.job_id AND a.kind = 'crash' AND a.checkpoints = n.checkpoints
                    AND a.ended_at > coalesce((SELECT max(q.ended_at) FROM pgqueue.attempt q
                                                WHERE q.job_id = h.job_id AND q.kind = 'requeue'), '-infinity')
             GROUP BY n.checkpoints) p
    ), recorded AS (
        INSERT INTO pgqueue.attempt (job_id, claim, seq, kind, checkpoints, error, worker, host, started_at, ended_at)
        SELECT d.job_id, d.claim, nullif(step, 0), CASE WHEN reap.kind = 'timeout' THEN 'timeout' WHEN d.charged THEN 'crash' ELSE 'lost' END,
               d.checkpoints, json_build_object('type', CASE reap.kind WHEN 'timeout' THEN 'StepTimeout' ELSE 'WorkerDied' END, 'message', reason), d.worker,
               (SELECT w.host FROM pgqueue.worker w WHERE w.id = d.worker), d.started_at, stamp
          FROM judged d WHERE d.charged OR (reap.kind = 'lost' AND reason IS NOT NULL)
    ), over AS (
        INSERT INTO pgqueue.outcome (job_id, status, error, claim, finished_at)
        SELECT d.job_id, CASE WHEN d.cancelled THEN 'cancelled' ELSE 'failed' END,
               CASE WHEN NOT d.cancelled THEN json_build_object('type', 'WorkerDied', 'message',
                    format('the worker process died %s times while it ran this job, the last time: %s', crash.times, reason)) END,
               d.claim, stamp
          FROM judged d
         CROSS JOIN LATERAL (SELECT count(*) + 1 AS times FROM pgqueue.attempt a
                              WHERE a.job_id = d.job_id AND a.kind = 'crash' AND a.checkpoints = d.checkpoints) crash
         WHERE d.cancelled OR d.poison
        ON CONFLICT (job_id) DO NOTHING
    ), honoured AS (
        DELETE FROM pgqueue.cancel_request c WHERE c.job_id = ANY (ARRAY(SELECT d.job_id FROM judged d WHERE d.cancelled))
    ), freed AS (
        DELETE FROM pgqueue.unique_job u
         WHERE u.key = ANY (ARRAY(SELECT d.unique_key FROM judged d WHERE d.unique_key IS NOT NULL AND (d.cancelled OR d.poison)))
           AND u.job_id = ANY (ARRAY(SELECT d.job_id FROM judged d WHERE d.unique_key IS NOT NULL))
    ), back AS (                                             -- the first of its key stays the first
        INSERT INTO pgqueue.ready (queue, lane, pos, job_id, suspect)
        SELECT d.queue, d.lane - d.lane % 2, CASE WHEN d.key IS NULL THEN nextval('pgqueue.position') ELSE d.pos END, d.job_id, d.charged OR d.suspect
          FROM judged d WHERE NOT d.cancelled AND NOT d.poison
    ), gone AS (
        DELETE FROM pgqueue.running r WHERE r.ctid = ANY (ARRAY(SELECT h.tid FROM held h))
    )
    SELECT count(*) FILTER (WHERE NOT d.poison), count(*) FILTER (WHERE d.poison),
           array_agg(d.job_id) FILTER (WHERE d.poison OR d.cancelled), array_agg(d.limited || '/' || d.key) FILTER (WHERE d.key IS NOT NULL)
      INTO given_back, failed, ended, turns FROM judged d;
    IF turns IS NOT NULL THEN
        PERFORM pgqueue.free_turns(turns);
    END IF;
    IF ended IS NOT NULL THEN
        PERFORM pgqueue.ended(ended);
    END IF;
    SELECT count(*) INTO still_held FROM pgqueue.running r WHERE r.worker = reap.worker;
    IF still_held = 0 THEN
        DELETE FROM pgqueue.worker w WHERE w.id = reap.worker;
    END IF;
    IF given_back > 0 OR still_held = 0 THEN                 -- there is something to do, or what the worker kept of a limit is free
        PERFORM pgqueue.wake_idle();
    END IF;
    RETURN NEXT;
END
$$;
