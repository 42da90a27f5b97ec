-- The part of wake that decides: of these jobs, those go on whose time is over, or that have what they wait for. Returns how many.
CREATE OR REPLACE FUNCTION pgqueue.wake_jobs(jobs uuid[]) RETURNS bigint
LANGUAGE plpgsql VOLATILE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off
SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $$
DECLARE
    moved bigint;
BEGIN
    PERFORM pgqueue.advance_children(jobs);
    WITH over AS MATERIALIZED (
        SELECT w.ctid AS tid
          FROM (SELECT DISTINCT j AS id FROM unnest(jobs) j) g
          JOIN pgqueue.waiting w ON w.job_id = g.id
          LEFT JOIN pgqueue.event e ON e.key = CASE WHEN w.kind = 'event' THEN w.key END
          LEFT JOIN LATERAL (SELECT m.pos FROM pgqueue.message m
                              WHERE m.job_id = w.job_id AND m.topic = CASE WHEN w.kind = 'message' THEN w.key END LIMIT 1) m ON true
          LEFT JOIN pgqueue.job j ON j.id = CASE WHEN w.kind = 'job' THEN w.key::uuid END
          LEFT JOIN pgqueue.outcome o ON o.job_id = j.id
          LEFT JOIN LATERAL pgqueue.next_child(w.job_id, CASE WHEN w.kind = 'children' THEN w.key END) c ON true
         WHERE w.until <= pgqueue.clock_bound() OR e.key IS NOT NULL OR m.pos IS NOT NULL OR o.job_id IS NOT NULL
            OR (w.kind = 'job' AND j.id IS NULL) OR (w.kind = 'children' AND c IS NULL)
           FOR UPDATE OF w SKIP LOCKED
    ), gone AS (
        DELETE FROM pgqueue.waiting w WHERE w.ctid = ANY (ARRAY(SELECT o.tid FROM over o)) RETURNING w.*
    ), back AS (
        INSERT INTO pgqueue.ready (queue, lane, pos, job_id, fair)
        SELECT g.queue, CASE g.kind WHEN 'key' THEN g.lane ELSE g.lane - g.lane % 2 END, coalesce(g.pos, nextval('pgqueue.position')), g.job_id,
               (SELECT pgqueue.for_whom(q.fair_by, j.input) FROM pgqueue.queue q JOIN pgqueue.job j ON j.id = g.job_id
                 WHERE q.name = g.queue AND q.fair_by IS NOT NULL AND g.lane % 2 = 1 AND g.kind = 'key')
          FROM gone g
        RETURNING job_id
    )
    SELECT count(*) INTO moved FROM back;
    RETURN moved;
END
$$;
