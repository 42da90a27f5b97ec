-- Whose children a job has at a step: its own; or, where it was made by rerun and has kept that step, those of the job before it.
CREATE OR REPLACE FUNCTION pgqueue.children_of(job uuid, seq integer) RETURNS uuid
LANGUAGE plpgsql STABLE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off
AS $$
BEGIN
    RETURN coalesce((SELECT k.parent FROM pgqueue.kept_children k WHERE k.job_id = job AND k.seq = children_of.seq), job);
END
$$;
