-- Let a schedule rest until it is resumed: what comes due meanwhile is left out. Survives every registration of its App. by: who asks.
-- False: it was paused already.
CREATE OR REPLACE FUNCTION pgqueue.pause_schedule(schedule text, by text DEFAULT NULL) RETURNS boolean
LANGUAGE plpgsql VOLATILE
AS $$
#variable_conflict use_column
DECLARE
    s pgqueue.schedule := pgqueue.change_schedule(pause_schedule.schedule);
BEGIN
    UPDATE pgqueue.schedule o SET paused = true, paused_by = left(pause_schedule.by, 128), revision = o.revision + 1
     WHERE o.name = s.name AND NOT o.paused;
    RETURN NOT s.paused;
END
$$;
