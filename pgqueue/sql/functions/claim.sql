-- Take up to `amount` ready jobs for a worker: they leave `ready` and enter `running` under the caller's random token.
-- A job whose workflow the worker does not know is put aside, and taken from there by whoever knows it. A job that
-- somebody asked to cancel ends here.
--
-- hints: for each queue its 20 lanes' lowest position worth looking at; behind it there are only dead index entries.
-- It is an optimisation and never the truth: zeros look from the start, which a claimer does now and then.
CREATE OR REPLACE FUNCTION pgqueue.claim(
    worker uuid, token bigint, queues text[], names text[], amount integer, hints bigint[], backwards boolean)
RETURNS TABLE (job_id uuid, name text, input text, queue text, lane smallint, pos bigint, policy jsonb, suspect boolean)
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
    stamp  timestamptz := pgqueue.clock();
BEGIN
    PERFORM pgqueue.assert_read_committed();
    PERFORM pgqueue.quick_commit();
    PERFORM FROM pgqueue.worker w WHERE w.id = claim.worker AND w.fenced_at IS NULL;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    FOR i IN 1 .. cardinality(queues) LOOP
        EXIT WHEN wanted <= 0;
        CONTINUE WHEN (SELECT q.paused FROM pgqueue.queue q WHERE q.name = queues[i]);
        RETURN QUERY
        WITH picked AS MATERIALIZED (
            SELECT r.tid
              FROM unnest(lanes) l(lane)
             CROSS JOIN LATERAL (
                SELECT r.ctid AS tid FROM pgqueue.ready r
                 WHERE r.queue = queues[i] AND r.lane = l.lane
                   AND r.pos >= hints[20 * (i - 1) + l.lane + 1]
                 ORDER BY r.pos LIMIT wanted FOR UPDATE SKIP LOCKED) r
             LIMIT wanted
        ), gone AS (
            DELETE FROM pgqueue.ready r WHERE r.ctid = ANY (ARRAY(SELECT p.tid FROM picked p)) RETURNING r.*
        ), known AS MATERIALIZED (
            SELECT g.*, j.name, j.input, j.policy, j.name = ANY (names) AS mine, c.job_id IS NOT NULL AS cancelled
              FROM gone g
              JOIN pgqueue.job j ON j.id = g.job_id
              LEFT JOIN pgqueue.cancel_request c ON c.job_id = g.job_id
        ), cancelled AS (
            INSERT INTO pgqueue.outcome (job_id, status, finished_at)
            SELECT k.job_id, 'cancelled', stamp FROM known k WHERE k.cancelled
            ON CONFLICT DO NOTHING
        ), honoured AS (
            DELETE FROM pgqueue.cancel_request c WHERE c.job_id = ANY (ARRAY(SELECT k.job_id FROM known k WHERE k.cancelled))
        ), strangers AS (
            INSERT INTO pgqueue.waiting (job_id, kind, key, queue, lane)
            SELECT k.job_id, 'name', k.name, k.queue, k.lane FROM known k WHERE NOT k.mine AND NOT k.cancelled
            ON CONFLICT DO NOTHING
        ), started AS (
            INSERT INTO pgqueue.running (job_id, claim, worker, queue, lane, pos, started_at, suspect)
            SELECT k.job_id, token, worker, k.queue, k.lane, k.pos, stamp, k.suspect FROM known k WHERE k.mine AND NOT k.cancelled
            ON CONFLICT (job_id) DO NOTHING
            RETURNING pos
        ), conflicts AS (
            SELECT nextval('pgqueue.conflict')
              FROM generate_series(1, (SELECT count(*) FROM known k WHERE k.mine AND NOT k.cancelled) - (SELECT count(*) FROM started))
        )
        SELECT k.job_id, k.name, k.input, k.queue, k.lane, k.pos, k.policy, k.suspect
          FROM known k
         WHERE k.mine AND NOT k.cancelled                     -- and was inserted: a duplicate never goes to two workers
           AND ((SELECT count(*) FROM conflicts) = 0 OR k.pos = ANY (ARRAY(SELECT s.pos FROM started s)));
        GET DIAGNOSTICS served = ROW_COUNT;
        wanted := wanted - served;
    END LOOP;
    IF wanted > 0 THEN
        RETURN QUERY SELECT * FROM pgqueue.claim_known(worker, token, queues, names, wanted);
    END IF;
END
$$;
