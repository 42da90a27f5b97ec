-- Ready jobs, which the caller has locked, have to wait for their turns at their keys; untils: for a rate, when that will be at the
-- earliest. All at once: there may be very many in front of those that can begin.
CREATE OR REPLACE FUNCTION pgqueue.put_aside(tids tid[], turns text[], untils timestamptz[], jobs uuid[], queue text, lanes smallint[], positions bigint[])
RETURNS void
LANGUAGE plpgsql VOLATILE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off
AS $$
BEGIN
    DELETE FROM pgqueue.ready r WHERE r.ctid = ANY (tids);
    INSERT INTO pgqueue.waiting (job_id, kind, key, until, queue, lane, pos)
    SELECT p.job, 'key', p.turn, p.until, put_aside.queue, p.lane, p.pos
      FROM unnest(jobs, turns, untils, lanes, positions) p(job, turn, until, lane, pos);
    -- Whoever looks after keys is told, in case the job that is in front ends at this moment.
    INSERT INTO pgqueue.wakeup (pos, turn) SELECT nextval('pgqueue.position'), t FROM (SELECT DISTINCT t FROM unnest(turns) t) t;
END
$$;
