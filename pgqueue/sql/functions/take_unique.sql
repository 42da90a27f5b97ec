-- The part of enqueue_workflows for jobs of which some are to be unique. `ids` are the jobs that there are in the end, in the order of
-- `wanted`; `fresh` are those that are still to be inserted. Keys are taken in one order by all, so that nobody waits in a circle.
CREATE OR REPLACE FUNCTION pgqueue.take_unique(wanted pgqueue.job[], OUT ids uuid[], OUT fresh pgqueue.job[])
LANGUAGE plpgsql VOLATILE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off
SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $$
DECLARE
    job    pgqueue.job;
    holder uuid;
    place  integer;
    n      integer;
BEGIN
    ids := ARRAY(SELECT w.id FROM unnest(wanted) w);
    fresh := '{}';
    FOR n IN SELECT i FROM generate_subscripts(wanted, 1) i ORDER BY (wanted[i]).unique_key NULLS FIRST, i LOOP
        job := wanted[n];
        holder := CASE WHEN job.unique_key IS NOT NULL THEN pgqueue.unique_holder(job) END;
        ids[n] := coalesce(holder, job.id);
        place := array_position(ARRAY(SELECT f.id FROM unnest(fresh) f), holder);
        IF holder IS NULL THEN
            fresh := fresh || job;
        ELSIF place IS NOT NULL AND job.policy #>> '{unique,on_conflict}' = 'replace' THEN      -- twice in one call: the last one counts
            job.id := holder;
            fresh[place] := job;
        END IF;
    END LOOP;
END
$$;
