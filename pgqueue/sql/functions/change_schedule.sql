-- Lock a schedule, and return it. Raises where there is none.
CREATE OR REPLACE FUNCTION pgqueue.change_schedule(schedule text) RETURNS pgqueue.schedule
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    s pgqueue.schedule;
BEGIN
    PERFORM pgqueue.assert_read_committed();
    PERFORM pgqueue.durable_commit();
    SELECT * INTO s FROM pgqueue.schedule o WHERE o.name = change_schedule.schedule FOR UPDATE;
    IF NOT FOUND THEN
        PERFORM pgqueue.refuse('PQ010', format('there is no schedule %L', left(change_schedule.schedule, 200)),
                               '"pgqueue schedules" lists them.');
    END IF;
    RETURN s;
END
$$;
