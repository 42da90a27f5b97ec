-- End many claims at once. how[i] says what becomes of job i:
--   succeeded, failed, cancelled   an outcome             release   back to ready, nothing counted
--   retry                          due again after its delay, with an attempt row        suspend   waits: see suspend()
-- seen[i] is the last checkpoint that the run saw (0: none); details[i] is JSON for what did not succeed:
-- {"errors": [{"error": {...}, "seq": the step}], "delay": seconds, "failed_seqs": [...]}.
--
-- Returns only the jobs that were NOT settled: `lost` (the claim is gone: discard the result) or `busy` (a session of the
-- job still holds it: send it again). Sending the same settlement twice is safe. Rows that are locked are skipped, so that
-- a batch never waits for one stuck step.
CREATE OR REPLACE FUNCTION pgqueue.settle(
    jobs uuid[], tokens bigint[], how text[], results text[], seen integer[], details json[])
RETURNS TABLE (job_id uuid, answer text)
LANGUAGE plpgsql VOLATILE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off
SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    settled uuid[];
    badly   uuid[];
    turns   text[];
    stamp   timestamptz := pgqueue.clock();
BEGIN
    PERFORM pgqueue.assert_read_committed();
    PERFORM pgqueue.durable_commit();
    WITH held AS MATERIALIZED (
        SELECT r.ctid AS tid, r.*, g.result, g.detail, c.job_id IS NOT NULL AS asked,
               CASE WHEN g.how IN ('retry', 'release') AND c.job_id IS NOT NULL THEN 'cancelled' ELSE g.how END AS how
          FROM unnest(jobs, tokens, how, results, seen, details) AS g(job_id, token, how, result, seen, detail)
          JOIN pgqueue.running r ON r.job_id = g.job_id AND r.claim = g.token
          LEFT JOIN LATERAL (SELECT x.job_id FROM pgqueue.cancel_request x WHERE x.job_id = g.job_id FOR UPDATE SKIP LOCKED) c ON true   -- see cancel_waiting
          LEFT JOIN pgqueue.checkpoint k ON k.job_id = g.job_id AND k.seq = nullif(g.seen, 0)
         WHERE (g.seen = 0 OR k.job_id IS NOT NULL) AND g.how <> 'suspend'
         ORDER BY r.job_id
           FOR UPDATE OF r SKIP LOCKED
    ), attempts AS (
        INSERT INTO pgqueue.attempt (job_id, claim, seq, kind, checkpoints, error, worker, host, started_at, ended_at)
        SELECT h.job_id, h.claim, (e.value ->> 'seq')::integer, coalesce(e.value ->> 'kind', 'error'),
               (SELECT count(*) FROM pgqueue.checkpoint c WHERE c.job_id = h.job_id),
               e.value ->> 'error', h.worker, w.host, h.started_at, stamp
          FROM held h
         CROSS JOIN LATERAL json_array_elements(h.detail -> 'errors') e
          LEFT JOIN pgqueue.worker w ON w.id = h.worker
         WHERE h.detail IS NOT NULL
    ), ended AS (
        INSERT INTO pgqueue.outcome (job_id, status, result, error, failed_seqs, claim, finished_at)
        SELECT h.job_id, h.how, h.result, h.detail #>> '{errors,0,error}',
               CASE WHEN h.detail IS NULL THEN '{}'
                    ELSE ARRAY(SELECT s::integer FROM json_array_elements_text(h.detail -> 'failed_seqs') s) END, h.claim, stamp
          FROM held h WHERE h.how IN ('succeeded', 'failed', 'cancelled')
        ON CONFLICT (job_id) DO NOTHING
        RETURNING job_id
    ), honoured AS (
        DELETE FROM pgqueue.cancel_request c
         WHERE c.job_id = ANY (ARRAY(SELECT h.job_id FROM held h WHERE h.asked AND h.how IN ('succeeded', 'failed', 'cancelled')))
    ), freed AS (                                            -- others may be the one of their key now
        DELETE FROM pgqueue.unique_job u
         WHERE u.key = ANY (ARRAY(SELECT h.unique_key FROM held h WHERE h.unique_key IS NOT NULL AND h.how IN ('succeeded', 'failed', 'cancelled')))
           AND u.job_id = ANY (ARRAY(SELECT h.job_id FROM held h WHERE h.unique_key IS NOT NULL))
    ), back AS (                                             -- the first of its key stays the first
        INSERT INTO pgqueue.ready (queue, lane, pos, job_id, suspect)
        SELECT h.queue, h.lane - h.lane % 2, CASE WHEN h.key IS NULL THEN nextval('pgqueue.position') ELSE h.pos END, h.job_id, h.suspect
          FROM held h WHERE h.how = 'release' OR (h.how = 'retry' AND (h.detail ->> 'delay')::float8 <= 0)
    ), later AS (
        INSERT INTO pgqueue.scheduled (job_id, run_at, queue, lane)
        SELECT h.job_id, least(stamp + make_interval(secs => (h.detail ->> 'delay')::float8), (j.policy ->> 'deadline')::timestamptz),
               h.queue, h.lane - h.lane % 2
          FROM held h JOIN pgqueue.job j ON j.id = h.job_id WHERE h.how = 'retry' AND (h.detail ->> 'delay')::float8 > 0
    ), forgotten AS (                                        -- a workflow tried again runs its failed steps again
        DELETE FROM pgqueue.checkpoint c USING held h
         WHERE h.how = 'retry' AND c.job_id = h.job_id
           AND c.seq = ANY (ARRAY(SELECT s::integer FROM json_array_elements_text(h.detail -> 'failed_seqs') s))
    ), gone AS (
        DELETE FROM pgqueue.running r WHERE r.ctid = ANY (ARRAY(SELECT h.tid FROM held h))
    ), looked AS (
        INSERT INTO pgqueue.wakeup (pos, job_id)
        SELECT nextval('pgqueue.position'), h.parent FROM held h WHERE h.parent IS NOT NULL AND h.how = 'succeeded' GROUP BY h.parent
        RETURNING pg_notify('pgqueue_wake', '')
    ), conflicts AS (
        SELECT nextval('pgqueue.conflict')
          FROM generate_series(1, (SELECT count(*) FROM held h WHERE h.how IN ('succeeded', 'failed', 'cancelled'))
                                  - (SELECT count(*) FROM ended))
    )
    SELECT array_agg(h.job_id), array_agg(h.job_id) FILTER (WHERE h.how IN ('failed', 'cancelled')),
           array_agg(h.limited || '/' || h.key) FILTER (WHERE h.key IS NOT NULL) INTO settled, badly, turns FROM held h
     WHERE (SELECT count(*) FROM conflicts) >= 0;
    PERFORM pgqueue.tell_results(settled);
    IF badly IS NOT NULL THEN
        PERFORM pgqueue.ended(badly);
    END IF;
    IF turns IS NOT NULL THEN
        PERFORM pgqueue.free_turns(turns);
    END IF;
    IF 'suspend' = ANY (how) THEN
        settled := coalesce(settled, '{}') || (
            SELECT pgqueue.suspend(array_agg(g.job), array_agg(g.token), array_agg(g.seen), array_agg(g.detail))
              FROM unnest(jobs, tokens, how, seen, details) AS g(job, token, how, seen, detail) WHERE g.how = 'suspend');
    END IF;

    PERFORM pgqueue.wake_idle() FROM unnest(how, details) AS g(how, detail)      -- for whoever is idle, before they look again
      WHERE g.how = 'release' OR (g.how = 'retry' AND (g.detail ->> 'delay')::float8 < 1) LIMIT 1;
    IF coalesce(cardinality(settled), 0) < cardinality(jobs) THEN
        RETURN QUERY
        SELECT g.job_id, CASE WHEN r.job_id IS NOT NULL AND pgqueue.continues(g.job_id, g.seen) THEN 'busy' ELSE 'lost' END
          FROM unnest(jobs, tokens, seen) AS g(job_id, token, seen)
          LEFT JOIN pgqueue.running r ON r.job_id = g.job_id AND r.claim = g.token
          LEFT JOIN pgqueue.outcome o ON o.job_id = g.job_id AND o.claim = g.token
         WHERE g.job_id <> ALL (coalesce(settled, '{}')) AND o.job_id IS NULL;
    END IF;
END
$$;
