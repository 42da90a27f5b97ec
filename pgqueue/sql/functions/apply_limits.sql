-- Puts the limits of a queue in force: what the App declares, and over it what an operator has chosen. Waits until nobody claims from
-- it; whoever claims next obeys.
CREATE OR REPLACE FUNCTION pgqueue.apply_limits(queue text) RETURNS void
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    said jsonb;
BEGIN
    PERFORM pg_advisory_xact_lock(pgqueue.queue_lock(queue));
    SELECT pgqueue.limits_in_force(q.declared, q.chosen) INTO said FROM pgqueue.queue q WHERE q.name = apply_limits.queue;
    UPDATE pgqueue.queue q
       SET concurrency = (said ->> 'concurrency')::integer,
           per_key = (said ->> 'per_key')::integer,
           rate = (said #>> '{rate,n}')::integer,
           rate_seconds = (said #>> '{rate,per}')::float8,
           rate_burst = (said #>> '{rate,burst}')::integer,
           key_rate = (said #>> '{rate_per_key,n}')::integer,
           key_rate_seconds = (said #>> '{rate_per_key,per}')::float8,
           key_rate_burst = (said #>> '{rate_per_key,burst}')::integer,
           fair_by = said ->> 'fair_by',
           aging = (said ->> 'aging')::float8,
           uncounted = q.uncounted OR NOT q.limited,
           limited = said ?| '{concurrency,per_key,rate,rate_per_key,fair_by}'
     WHERE q.name = apply_limits.queue;
    DELETE FROM pgqueue.fair_weight w WHERE w.queue = apply_limits.queue;
    INSERT INTO pgqueue.fair_weight (queue, fair, weight)
    SELECT apply_limits.queue, e.key, e.value::integer FROM jsonb_each(coalesce(said -> 'weights', '{}')) e;
    PERFORM pgqueue.wake_idle();
END
$$;
