-- These jobs may be about to run again: those of schedules without overlap keep the next tick from running, as before they ended. Not
-- those of a backfill, which never did. requeue calls it before it locks anything of a job, because whoever ticks and triggers also has
-- the schedule first. One that is not run again after all does no harm: the next tick looks whether it has ended.
CREATE OR REPLACE FUNCTION pgqueue.live_again(jobs uuid[]) RETURNS void
LANGUAGE plpgsql VOLATILE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    told record;
BEGIN
    FOR told IN
        SELECT s.name, array_agg(j.id) AS ids
          FROM pgqueue.job j
          JOIN pgqueue.schedule s ON s.name = j.policy #>> '{meta,schedule}' AND NOT s.overlap
          LEFT JOIN pgqueue.tick t ON t.schedule = s.name AND t.due_at = pgqueue.tick_of(j.policy) AND t.job_id = j.id
         WHERE j.id = ANY (jobs) AND j.parent IS NULL        -- children, and what on_failure enqueues, have the same meta
           AND CASE WHEN t.job_id IS NULL THEN j.name = s.workflow ELSE t.why <> 'backfill' END      -- no row: it was triggered
         GROUP BY s.name ORDER BY s.name
    LOOP
        UPDATE pgqueue.schedule s SET live = s.live || ARRAY(SELECT unnest(told.ids) EXCEPT SELECT unnest(s.live)) WHERE s.name = told.name;
    END LOOP;
END
$$;
