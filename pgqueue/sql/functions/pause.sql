-- Nobody claims from this queue any more until resume(), from the commit on. What was claimed before goes on.
CREATE OR REPLACE FUNCTION pgqueue.pause(queue text) RETURNS void
LANGUAGE plpgsql VOLATILE
AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(pgqueue.queue_lock(queue));    -- behind claims that are under way
    UPDATE pgqueue.queue q SET paused = true WHERE q.name = pause.queue;
    IF NOT FOUND THEN
        PERFORM pgqueue.refuse('PQ002', format('there is no queue %L', queue));
    END IF;
END
$$;
