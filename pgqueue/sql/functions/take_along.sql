-- The part of `ended` about children: those of a job that was cancelled, or whose time is over, and that have not ended are asked to end
-- too; also those that it has kept of the job that it is a rerun of, and not those that a rerun of it, which lives, has kept. It is
-- remembered whom that was (see requeue). Somebody may have asked for one of them before: that one stays out of it. Returns how many.
CREATE OR REPLACE FUNCTION pgqueue.take_along(jobs uuid[]) RETURNS bigint
LANGUAGE plpgsql VOLATILE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off
SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $$
DECLARE
    asked bigint;
BEGIN
    WITH along AS MATERIALIZED (
        SELECT o.job_id AS parent, c.id
          FROM pgqueue.outcome o
         CROSS JOIN LATERAL (
            SELECT c.id, c.parent, c.parent_seq FROM pgqueue.job c WHERE c.parent = o.job_id
             UNION ALL
            SELECT c.id, c.parent, c.parent_seq
              FROM pgqueue.kept_children k JOIN pgqueue.job c ON c.parent = k.parent AND c.parent_seq = k.seq WHERE k.job_id = o.job_id) c
          LEFT JOIN pgqueue.outcome co ON co.job_id = c.id
          LEFT JOIN pgqueue.cancel_request r ON r.job_id = c.id
          LEFT JOIN LATERAL (
            SELECT k.job_id FROM pgqueue.kept_children k LEFT JOIN pgqueue.outcome ko ON ko.job_id = k.job_id
             WHERE k.parent = c.parent AND k.seq = c.parent_seq AND k.job_id <> o.job_id AND ko.job_id IS NULL LIMIT 1) heir ON true
          LEFT JOIN pgqueue.outcome po ON po.job_id = c.parent
         WHERE o.job_id = ANY (jobs) AND co.job_id IS NULL AND r.job_id IS NULL AND heir.job_id IS NULL
           AND (c.parent = o.job_id OR po.job_id IS NOT NULL)               -- its own parent may live again
           AND (o.status = 'cancelled' OR (o.status = 'failed' AND o.error::json ->> 'type' = 'JobTimeout'))
    ), remembered AS (
        INSERT INTO pgqueue.taken_along (parent, job_id) SELECT a.parent, a.id FROM along a ON CONFLICT DO NOTHING
    )
    INSERT INTO pgqueue.cancel_request (job_id, requested_at) SELECT a.id, pgqueue.clock() FROM along a ORDER BY a.id
    ON CONFLICT DO NOTHING;
    GET DIAGNOSTICS asked = ROW_COUNT;
    RETURN asked;
END
$$;
