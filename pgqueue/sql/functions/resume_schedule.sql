-- Let a paused schedule go on, with the ticks that come due from now on. False: it was not paused.
CREATE OR REPLACE FUNCTION pgqueue.resume_schedule(schedule text) RETURNS boolean
LANGUAGE plpgsql VOLATILE
AS $$
#variable_conflict use_column
DECLARE
    s pgqueue.schedule := pgqueue.change_schedule(resume_schedule.schedule);
BEGIN
    UPDATE pgqueue.schedule o
       SET paused = false, paused_by = NULL, revision = o.revision + 1, done_until = greatest(o.done_until, pgqueue.clock()),
           next_at = '-infinity', problem = NULL
     WHERE o.name = s.name AND o.paused;
    RETURN s.paused;
END
$$;
