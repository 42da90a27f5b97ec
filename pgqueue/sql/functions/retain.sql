-- Say for how long what has ended is kept: succeeded, failed and cancelled jobs (of one queue, or '': of all that have no word of their
-- own), events, ticks. seconds: infinity keeps for ever; null takes a queue's word back.
CREATE OR REPLACE FUNCTION pgqueue.retain(queue text, what text, seconds double precision) RETURNS void
LANGUAGE plpgsql VOLATILE
AS $$
BEGIN
    IF what IS NULL OR what NOT IN ('succeeded', 'failed', 'cancelled', 'events', 'ticks') OR queue IS NULL
       OR (queue <> '' AND what IN ('events', 'ticks')) THEN
        PERFORM pgqueue.refuse('PQ004', format('there is no retention of %L in queue %L', what, queue),
                               'It is of succeeded, failed and cancelled jobs, or of all events or ticks.');
    ELSIF seconds IS NULL AND queue = '' THEN
        PERFORM pgqueue.refuse('PQ004', format('only the word of a queue about %s can be taken back', what),
            'For all, say for how long. A fresh database keeps succeeded and cancelled jobs for 7 days, and all else for 30 days.');
    ELSIF seconds < 0 OR seconds = 'NaN' THEN
        PERFORM pgqueue.refuse('PQ004', format('nothing can be kept for %s seconds', seconds));
    END IF;
    IF queue <> '' THEN
        PERFORM FROM pgqueue.queue q WHERE q.name = retain.queue;
        IF NOT FOUND THEN
            PERFORM pgqueue.refuse('PQ002', format('there is no queue %L', queue));
        END IF;
    END IF;
    DELETE FROM pgqueue.retention r WHERE r.queue = retain.queue AND r.what = retain.what;
    IF seconds IS NOT NULL THEN
        INSERT INTO pgqueue.retention (queue, what, seconds) VALUES (retain.queue, retain.what, retain.seconds)
        ON CONFLICT ON CONSTRAINT retention_pkey DO UPDATE SET seconds = excluded.seconds;
    END IF;
    UPDATE pgqueue.prune_walk w SET look_at = '-infinity', reached = '-infinity';    -- soon, and from the oldest
END
$$;
