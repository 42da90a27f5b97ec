-- What an operator says about a queue: keys of `chosen` replace what was chosen before, null takes a choice back, so that the App's
-- declaration holds again; {"concurrency": 0} and the like mean: no such limit, whatever the App declares. Of weights each is replaced
-- or taken back by itself. Returns what is in force.
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
    IF jsonb_typeof(limit_queue.chosen -> 'weights') = 'object' THEN      -- each by itself
        limit_queue.chosen := jsonb_set(limit_queue.chosen, '{weights}', (
            SELECT coalesce(jsonb_object_agg(e.key, CASE WHEN e.value = '0' THEN '1' ELSE e.value END), '{}')
              FROM jsonb_each(CASE jsonb_typeof(kept -> 'weights') WHEN 'object' THEN kept -> 'weights' ELSE '{}' END
                              || (limit_queue.chosen -> 'weights')) e WHERE e.value <> 'null'));
    END IF;
    kept := kept || limit_queue.chosen;
    kept := kept - ARRAY(SELECT e.key FROM jsonb_each(limit_queue.chosen) e WHERE e.value = 'null');
    SELECT coalesce(jsonb_object_agg(e.key, CASE WHEN e.value = '0' THEN 'null' ELSE e.value END), '{}') INTO kept
      FROM jsonb_each(kept) e WHERE e.value <> '{}';
    UPDATE pgqueue.queue q SET chosen = kept WHERE q.name = limit_queue.queue;
    PERFORM pgqueue.apply_limits(queue);
    RETURN (SELECT pgqueue.limits_in_force(q.declared, q.chosen) FROM pgqueue.queue q WHERE q.name = limit_queue.queue);
END
$$;
