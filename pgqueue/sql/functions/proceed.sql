-- A job has come to a wait (or comes back to one). Answers `stored` with the result, which is checkpointed, where what it waits for is
-- there or its time is over; `cancel` (the same, and somebody asks that the job be cancelled); `wait`, with the seconds that are left
-- (null: no limit); or `lost`. What was sent when the time of the wait was over came too late, whoever looks when. kind sleep: key is the
-- moment, or empty. A message is taken in the transaction of its checkpoint: exactly once.
CREATE OR REPLACE FUNCTION pgqueue.proceed(
    job uuid, token bigint, seen integer, seq integer, name text, kind text, key text,
    OUT answer text, OUT result text, OUT seconds double precision)
LANGUAGE plpgsql VOLATILE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off
AS $$
DECLARE
    xid   xid8 := pgqueue.fence(job, token, seen, 0);
    until timestamptz;
    holder uuid;
BEGIN
    IF xid IS NULL THEN
        answer := 'lost';
        RETURN;
    END IF;
    SELECT w.until INTO until FROM pgqueue.wait w WHERE w.job_id = job AND w.seq = proceed.seq;
    IF kind = 'sleep' THEN
        until := coalesce(until, nullif(key, '')::timestamptz);
    ELSIF kind = 'event' THEN
        SELECT json_build_object('value', e.value::json) INTO result
          FROM pgqueue.event e WHERE e.key = proceed.key AND (until IS NULL OR e.sent_at <= until);
    ELSIF kind = 'message' THEN
        DELETE FROM pgqueue.message m
         WHERE m.ctid = (SELECT n.ctid FROM pgqueue.message n WHERE n.job_id = job AND n.topic = proceed.key ORDER BY n.pos LIMIT 1)
           AND (until IS NULL OR m.sent_at <= until)
        RETURNING json_build_object('value', m.value::json) INTO result;
    ELSIF kind = 'job' THEN
        SELECT CASE WHEN j.id IS NULL THEN json_build_object('status', 'unknown') ELSE pgqueue.ending(o) END INTO result
          FROM (SELECT proceed.key::uuid AS id) g
          LEFT JOIN pgqueue.job j ON j.id = g.id
          LEFT JOIN pgqueue.outcome o ON o.job_id = j.id
         WHERE j.id IS NULL OR o.job_id IS NOT NULL;
    ELSIF kind = 'children' AND pgqueue.next_child(job, proceed.key) IS NULL THEN
        holder := pgqueue.children_of(job, split_part(proceed.key, ':', 1)::integer);
        SELECT json_build_object('parent', holder, 'failed', coalesce(json_object_agg(c.ordinal, pgqueue.ending(o)) FILTER (WHERE o.status <> 'succeeded'), '{}'))
          INTO result
          FROM pgqueue.job c JOIN pgqueue.outcome o ON o.job_id = c.id
         WHERE c.parent = holder AND c.parent_seq = split_part(proceed.key, ':', 1)::integer;
    END IF;
    IF result IS NULL AND until <= pgqueue.clock() THEN
        result := '{"timeout":true}';
    END IF;
    IF result IS NULL THEN
        answer := 'wait';
        seconds := extract(epoch FROM until - pgqueue.clock());
    ELSE
        answer := CASE WHEN pgqueue.checkpoint(job, token, seq, name, result, NULL, xid) THEN 'cancel' ELSE 'stored' END;
    END IF;
END
$$;
