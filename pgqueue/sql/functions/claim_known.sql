-- The part of claim that takes jobs put aside by workers that did not know their workflow. Straight from `waiting` to
-- `running`: a way through `ready` would hand them to the same ignorant workers again. (In limited queues: see line_up_known.)
CREATE OR REPLACE FUNCTION pgqueue.claim_known(worker uuid, token bigint, queues text[], names text[], amount integer)
RETURNS TABLE (job_id uuid, name text, input text, queue text, lane smallint, pos bigint, policy jsonb, suspect boolean,
               seconds_left double precision, starts_in double precision, waited double precision)
LANGUAGE plpgsql VOLATILE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off
SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $$
#variable_conflict use_column
BEGIN
    PERFORM FROM pgqueue.waiting w WHERE w.kind = 'name' AND w.key = ANY (names) LIMIT 1;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    RETURN QUERY
    WITH picked AS MATERIALIZED (
        SELECT w.ctid AS tid, w.job_id FROM pgqueue.waiting w
          JOIN pgqueue.queue q ON q.name = w.queue AND NOT q.paused AND NOT q.limited
          LEFT JOIN pgqueue.cancel_request c ON c.job_id = w.job_id      -- those are for cancel_waiting()
         WHERE w.kind = 'name' AND w.key = ANY (names) AND w.queue = ANY (queues) AND c.job_id IS NULL
         LIMIT amount FOR UPDATE OF w SKIP LOCKED
    ), facts AS MATERIALIZED (                               -- as in claim: without those that a producer keeps
        SELECT p.tid, j.id, j.parent, j.unique_key, n.unique_until
          FROM picked p
          JOIN pgqueue.job j ON j.id = p.job_id
         CROSS JOIN LATERAL (SELECT CASE WHEN j.unique_key IS NOT NULL THEN j.policy #>> '{unique,until}' END) n(unique_until)
          LEFT JOIN pgqueue.unique_job u ON u.key = CASE n.unique_until WHEN 'started' THEN j.unique_key END AND u.job_id = j.id
          LEFT JOIN LATERAL (SELECT x.key FROM pgqueue.unique_job x WHERE x.key = u.key FOR UPDATE SKIP LOCKED) l ON true
         WHERE u.key IS NULL OR l.key IS NOT NULL
    ), freed AS (
        DELETE FROM pgqueue.unique_job u
         WHERE u.key = ANY (ARRAY(SELECT f.unique_key FROM facts f WHERE f.unique_until = 'started'))
           AND u.job_id = ANY (ARRAY(SELECT f.id FROM facts f WHERE f.unique_until = 'started'))
    ), gone AS (
        DELETE FROM pgqueue.waiting w WHERE w.ctid = ANY (ARRAY(SELECT f.tid FROM facts f)) RETURNING w.job_id, w.queue, w.lane
    ), started AS (
        INSERT INTO pgqueue.running (job_id, claim, worker, queue, lane, pos, started_at, parent, unique_key)
        SELECT g.job_id, token, worker, g.queue, g.lane, nextval('pgqueue.position'), pgqueue.clock(), f.parent,
               CASE f.unique_until WHEN 'ended' THEN f.unique_key END
          FROM gone g JOIN facts f ON f.id = g.job_id
        ON CONFLICT (job_id) DO NOTHING
        RETURNING job_id, queue, lane, pos
    )
    SELECT s.job_id, CASE j.version WHEN 1 THEN j.name ELSE j.name || '@' || j.version END, j.input, s.queue, s.lane, s.pos, j.policy,
           false, extract(epoch FROM (j.policy ->> 'deadline')::timestamptz - pgqueue.clock())::float8, NULL::float8,
           CASE s.lane % 2 WHEN 1 THEN greatest(0, extract(epoch FROM pgqueue.clock() - coalesce(j.run_at, j.created_at)))::float8 END
      FROM started s JOIN pgqueue.job j ON j.id = s.job_id;
END
$$;
