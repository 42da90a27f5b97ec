-- Workers claim from this queue again.
CREATE OR REPLACE FUNCTION pgqueue.resume(queue text) RETURNS void
LANGUAGE plpgsql VOLATILE
AS $$
BEGIN
    UPDATE pgqueue.queue q SET paused = false WHERE q.name = resume.queue;
    IF NOT FOUND THEN
        PERFORM pgqueue.refuse('PQ002', format('there is no queue %L', queue));
    END IF;
    PERFORM pgqueue.wake_idle();
END
$$;
