-- Delete ended jobs with all their facts: those of these that may go. Starts from the outcome (requeue goes through the same gate),
-- and never takes a child whose parent still lives, or would need it if it were requeued; nor one that a rerun of its parent needs so.
-- Waits for nobody: what somebody else has locked stays, such as a job to which an open transaction has sent a message. Returns how
-- many went.
CREATE OR REPLACE FUNCTION pgqueue.erase_jobs(jobs uuid[]) RETURNS bigint
LANGUAGE plpgsql VOLATILE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    erased bigint;
BEGIN
    IF NOT pg_try_advisory_xact_lock_shared(hashtextextended('pgqueue.kept_children', 0)) THEN      -- see keep_children
        RETURN 0;
    END IF;
    WITH free AS MATERIALIZED (
        SELECT o.ctid AS tid FROM unnest(jobs) g(id)
          JOIN pgqueue.outcome o ON o.job_id = g.id
          JOIN pgqueue.job j ON j.id = g.id
          LEFT JOIN pgqueue.job p ON p.id = j.parent
          LEFT JOIN pgqueue.outcome po ON po.job_id = j.parent
         WHERE (p.id IS NULL OR po.status = 'succeeded')
           AND NOT EXISTS (SELECT FROM pgqueue.kept_children k
                             JOIN pgqueue.job b ON b.id = k.job_id
                             LEFT JOIN pgqueue.outcome bo ON bo.job_id = k.job_id
                            WHERE k.parent = j.parent AND k.seq = j.parent_seq AND bo.status IS DISTINCT FROM 'succeeded')
         ORDER BY o.job_id FOR UPDATE OF o, j SKIP LOCKED
    ), gone AS (
        DELETE FROM pgqueue.outcome o WHERE o.ctid = ANY (ARRAY(SELECT f.tid FROM free f)) RETURNING o.job_id
    ), ids AS MATERIALIZED (
        SELECT array_agg(g.job_id) AS list FROM gone g
    ), checkpoints AS (
        DELETE FROM pgqueue.checkpoint c WHERE c.job_id = ANY ((SELECT i.list FROM ids i)::uuid[])
    ), attempts AS (
        DELETE FROM pgqueue.attempt a WHERE a.job_id = ANY ((SELECT i.list FROM ids i)::uuid[])
    ), waits AS (
        DELETE FROM pgqueue.wait w WHERE w.job_id = ANY ((SELECT i.list FROM ids i)::uuid[])
    ), messages AS (
        DELETE FROM pgqueue.message m WHERE m.job_id = ANY ((SELECT i.list FROM ids i)::uuid[])
    ), kept AS (
        DELETE FROM pgqueue.kept_children k WHERE k.job_id = ANY ((SELECT i.list FROM ids i)::uuid[])
    ), along AS (
        DELETE FROM pgqueue.taken_along t WHERE t.parent = ANY ((SELECT i.list FROM ids i)::uuid[])
    ), progress AS (
        DELETE FROM pgqueue.progress p WHERE p.job_id = ANY ((SELECT i.list FROM ids i)::uuid[])
    ), stream_ends AS (
        DELETE FROM pgqueue.stream_end e WHERE e.job_id = ANY ((SELECT i.list FROM ids i)::uuid[])
    ), streams AS (
        DELETE FROM pgqueue.stream s WHERE s.job_id = ANY ((SELECT i.list FROM ids i)::uuid[])
    ), jobs AS (
        DELETE FROM pgqueue.job j WHERE j.id = ANY ((SELECT i.list FROM ids i)::uuid[]) RETURNING j.id, j.unique_key
    ), freed AS (                                            -- of those that are unique for a time
        DELETE FROM pgqueue.unique_job u
         WHERE u.ctid = ANY (ARRAY(SELECT x.ctid FROM pgqueue.unique_job x
                                    WHERE x.key = ANY (ARRAY(SELECT j.unique_key FROM jobs j WHERE j.unique_key IS NOT NULL))
                                      AND x.job_id = ANY (ARRAY(SELECT j.id FROM jobs j WHERE j.unique_key IS NOT NULL)) FOR UPDATE SKIP LOCKED))
    )
    SELECT count(*) INTO erased FROM gone;
    -- Requests to cancel that no job is left of, also one that was made while its job was erased: it must not meet a later job of
    -- the same id.
    DELETE FROM pgqueue.cancel_request c
     WHERE c.job_id = ANY (ARRAY(SELECT r.job_id FROM pgqueue.cancel_request r LEFT JOIN pgqueue.job j ON j.id = r.job_id
                                  WHERE j.id IS NULL LIMIT 1000));
    RETURN erased;
END
$$;
