-- Nobody claims from this queue any more until resume(). What runs goes on.
CREATE OR REPLACE FUNCTION pgqueue.pause(queue text) RETURNS void
LANGUAGE plpgsql VOLATILE
AS $$
BEGIN
    UPDATE pgqueue.queue q SET paused = true WHERE q.name = pause.queue;
    IF NOT FOUND THEN
        PERFORM pgqueue.refuse('PQ002', format('there is no queue %L', queue));
    END IF;
END
$$;
