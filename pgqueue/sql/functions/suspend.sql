-- The part of settle for jobs that wait: they leave their worker, and nothing of them is held until they may go on. What a
-- job waits for is in its detail: {"seq", "name", "kind", "key", "seconds"} (a sleep has in its key until when, or nothing); a wait that was
-- begun before keeps its end. Answers
-- which jobs were suspended (or ended, because somebody had asked to cancel them).
CREATE OR REPLACE FUNCTION pgqueue.suspend(jobs uuid[], tokens bigint[], seen integer[], details json[]) RETURNS uuid[]
LANGUAGE plpgsql VOLATILE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off
SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $$
DECLARE
    stamp     timestamptz := pgqueue.clock();
    suspended uuid[];
    looked    uuid[];
    cancelled uuid[];
    turns     text[];
BEGIN
    WITH held AS MATERIALIZED (
        SELECT r.ctid AS tid, r.job_id, r.claim, r.queue, r.lane, r.limited || '/' || r.key AS turn, r.unique_key, d.*, c.job_id IS NOT NULL AS cancelled, (j.policy ->> 'deadline')::timestamptz AS deadline,
               CASE WHEN w.job_id IS NOT NULL THEN w.until WHEN d.kind = 'sleep' AND d.key <> '' THEN d.key::timestamptz
                    ELSE stamp + make_interval(secs => d.seconds) END AS until
          FROM unnest(jobs, tokens, seen, details) AS g(job, token, seen, detail)
         CROSS JOIN LATERAL json_to_record(g.detail) AS d(seq integer, name text, kind text, key text, seconds double precision)
          JOIN pgqueue.running r ON r.job_id = g.job AND r.claim = g.token
          JOIN pgqueue.job j ON j.id = g.job
          LEFT JOIN LATERAL (SELECT x.job_id FROM pgqueue.cancel_request x WHERE x.job_id = g.job FOR UPDATE SKIP LOCKED) c ON true       -- see cancel_waiting
          LEFT JOIN pgqueue.checkpoint k ON k.job_id = g.job AND k.seq = nullif(g.seen, 0)
          LEFT JOIN pgqueue.wait w ON w.job_id = g.job AND w.seq = d.seq
         WHERE g.seen = 0 OR k.job_id IS NOT NULL
         ORDER BY r.job_id
           FOR UPDATE OF r SKIP LOCKED
    ), begun AS (
        INSERT INTO pgqueue.wait (job_id, seq, name, kind, key, until, began_at)
        SELECT h.job_id, h.seq, h.name, h.kind, h.key, h.until, stamp FROM held h WHERE NOT h.cancelled
        ON CONFLICT DO NOTHING
    ), asleep AS (
        INSERT INTO pgqueue.scheduled (job_id, run_at, queue, lane)
        SELECT h.job_id, least(h.until, h.deadline), h.queue, h.lane - h.lane % 2
          FROM held h WHERE h.kind = 'sleep' AND NOT h.cancelled
    ), aside AS (
        INSERT INTO pgqueue.waiting (job_id, kind, key, until, queue, lane)
        SELECT h.job_id, h.kind, h.key, least(h.until, h.deadline), h.queue, h.lane - h.lane % 2
          FROM held h WHERE h.kind <> 'sleep' AND NOT h.cancelled
    ), ended AS (
        INSERT INTO pgqueue.outcome (job_id, status, claim, finished_at)
        SELECT h.job_id, 'cancelled', h.claim, stamp FROM held h WHERE h.cancelled
        ON CONFLICT (job_id) DO NOTHING
    ), honoured AS (
        DELETE FROM pgqueue.cancel_request c WHERE c.job_id = ANY (ARRAY(SELECT h.job_id FROM held h WHERE h.cancelled))
    ), freed AS (
        DELETE FROM pgqueue.unique_job u
         WHERE u.key = ANY (ARRAY(SELECT h.unique_key FROM held h WHERE h.unique_key IS NOT NULL AND h.cancelled))
           AND u.job_id = ANY (ARRAY(SELECT h.job_id FROM held h WHERE h.unique_key IS NOT NULL))
    ), gone AS (
        DELETE FROM pgqueue.running r WHERE r.ctid = ANY (ARRAY(SELECT h.tid FROM held h))
    )
    SELECT array_agg(h.job_id), array_agg(h.job_id) FILTER (WHERE h.cancelled),
           array_agg(h.job_id) FILTER (WHERE h.kind <> 'sleep' AND NOT h.cancelled), array_agg(h.turn) FILTER (WHERE h.turn IS NOT NULL)
      INTO suspended, cancelled, looked, turns FROM held h;
    IF turns IS NOT NULL THEN
        PERFORM pgqueue.free_turns(turns);
    END IF;
    IF looked IS NOT NULL THEN                               -- what it waits for may have come meanwhile
        PERFORM pgqueue.look_again(looked);
    END IF;
    IF cancelled IS NOT NULL THEN
        PERFORM pgqueue.ended(cancelled);
    END IF;
    RETURN coalesce(suspended, '{}');
END
$$;
