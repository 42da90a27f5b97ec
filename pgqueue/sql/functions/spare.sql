-- These jobs, and what was asked to end along with them, need not end: their requests are taken back. It waits for whoever is just
-- ending one of them, so that the caller sees which have ended after all.
CREATE OR REPLACE FUNCTION pgqueue.spare(jobs uuid[]) RETURNS void
LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $$
BEGIN
    WITH RECURSIVE along AS (
        SELECT g.id FROM unnest(jobs) g(id)
         UNION
        SELECT t.job_id FROM along a JOIN pgqueue.taken_along t ON t.parent = a.id
    ), spared AS (
        DELETE FROM pgqueue.cancel_request c
         WHERE c.job_id = ANY (ARRAY(SELECT x.job_id FROM along a JOIN pgqueue.cancel_request x ON x.job_id = a.id ORDER BY x.job_id FOR UPDATE OF x))
        RETURNING c.job_id
    )
    DELETE FROM pgqueue.taken_along t USING spared s, along a WHERE t.job_id = s.job_id AND t.parent = a.id;
END
$$;
