-- Enqueue the job of a schedule now, beside its plan, also while it is paused or another of its jobs runs. Returns the job's id.
-- id: of the job, which makes the call safe to repeat.
CREATE OR REPLACE FUNCTION pgqueue.trigger_schedule(schedule text, id uuid DEFAULT NULL) RETURNS uuid
LANGUAGE plpgsql VOLATILE
AS $$
#variable_conflict use_column
DECLARE
    s   pgqueue.schedule := pgqueue.change_schedule(trigger_schedule.schedule);
    job uuid := coalesce(trigger_schedule.id, pgqueue.new_id());
BEGIN
    IF NOT s.declared THEN
        PERFORM pgqueue.refuse('PQ009', format('schedule %L is no longer declared by its App', s.name));
    ELSIF EXISTS (SELECT FROM pgqueue.job j WHERE j.id = job AND j.policy #>> '{meta,schedule}' = s.name) THEN
        RETURN job;
    END IF;
    job := (pgqueue.enqueue_ticks(s, ARRAY[pgqueue.clock()], job))[1];         -- of a unique one that is there already: that
    UPDATE pgqueue.schedule o SET live = pgqueue.not_ended(o.live) || job WHERE o.name = s.name AND NOT o.overlap;
    RETURN job;
END
$$;
