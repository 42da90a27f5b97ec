-- What an operator says about a queue: keys of `chosen` replace what was chosen before, null takes a choice back, so that the App's
-- declaration holds again; {"concurrency": 0} and the like mean: no such limit, whatever the App declares. Returns what is in force.
CREATE OR REPLACE FUNCTION pgqueue.limit_queue(queue text, chosen jsonb) RETURNS jsonb
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    kept jsonb;
BEGIN
    PERFORM pgqueue.check_limits(chosen);
    PERFORM pg_advisory_xact_lock(pgqueue.queue_lock(queue));    -- first: a claim that has it may write to the row of the queue
    SELECT q.chosen INTO kept FROM pgqueue.queue q WHERE q.name = limit_queue.queue FOR UPDATE;
    IF NOT FOUND THEN
        PERFORM pgqueue.refuse('PQ002', format('there is no queue %L', queue),
                               'Declare it with App(queues=[Queue(...)]) and run "pgqueue migrate MODULE:APP".');
    END IF;
    kept := kept || limit_queue.chosen;
    kept := kept - ARRAY(SELECT e.key FROM jsonb_each(limit_queue.chosen) e WHERE e.value = 'null');
    SELECT coalesce(jsonb_object_agg(e.key, CASE WHEN e.value = '0' THEN 'null' ELSE e.value END), '{}') INTO kept FROM jsonb_each(kept) e;
    UPDATE pgqueue.queue q SET chosen = kept WHERE q.name = limit_queue.queue;
    PERFORM pgqueue.apply_limits(queue);
    RETURN (SELECT jsonb_strip_nulls(q.declared || q.chosen) FROM pgqueue.queue q WHERE q.name = limit_queue.queue);
END
$$;
