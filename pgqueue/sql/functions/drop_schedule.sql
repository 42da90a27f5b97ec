-- Forget a schedule: one that was made with add_schedule, or that its App declares no longer. Its jobs, and the rows of its ticks, stay.
CREATE OR REPLACE FUNCTION pgqueue.drop_schedule(schedule text) RETURNS void
LANGUAGE plpgsql VOLATILE
AS $$
#variable_conflict use_column
DECLARE
    s pgqueue.schedule := pgqueue.change_schedule(drop_schedule.schedule);
BEGIN
    IF s.origin = 'app' AND s.declared THEN
        PERFORM pgqueue.refuse('PQ009', format('schedule %L is declared by the App %s', s.name, s.app),
                               'Remove it there, or pause it.');
    END IF;
    DELETE FROM pgqueue.schedule o WHERE o.name = s.name;
END
$$;
