-- Puts the limits of a queue in force: what the App declares, and over it what an operator has chosen. Waits until nobody claims from
-- it; whoever claims next obeys.
CREATE OR REPLACE FUNCTION pgqueue.apply_limits(queue text) RETURNS void
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    said  jsonb;
    stamp timestamptz;
    old   pgqueue.queue;
    now   pgqueue.queue;
BEGIN
    PERFORM pg_advisory_xact_lock(pgqueue.queue_lock(queue));
    stamp := pgqueue.clock();
    SELECT * INTO old FROM pgqueue.queue q WHERE q.name = apply_limits.queue;
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
     WHERE q.name = apply_limits.queue RETURNING q.* INTO now;
    -- What has begun counts by the new rate as it did by the old one.
    UPDATE pgqueue.rate_register r
       SET next = stamp + greatest('0', r.next - stamp) * CASE r.key
               WHEN '' THEN now.rate_seconds / now.rate / (old.rate_seconds / old.rate)
               ELSE now.key_rate_seconds / now.key_rate / (old.key_rate_seconds / old.key_rate) END
     WHERE r.queue = now.name
       AND CASE r.key WHEN '' THEN (now.rate, now.rate_seconds) <> (old.rate, old.rate_seconds)
                      ELSE (now.key_rate, now.key_rate_seconds) <> (old.key_rate, old.key_rate_seconds) END;
    DELETE FROM pgqueue.rate_register r WHERE r.queue = now.name AND CASE r.key WHEN '' THEN now.rate ELSE now.key_rate END IS NULL;
    IF (now.key_rate, now.key_rate_seconds, now.key_rate_burst) IS DISTINCT FROM (old.key_rate, old.key_rate_seconds, old.key_rate_burst) THEN
        UPDATE pgqueue.waiting w SET until = stamp           -- they were told a moment by the old rate
         WHERE w.kind = 'key' AND w.queue = now.name AND w.until > stamp;
    END IF;
    IF now.fair_by <> coalesce(old.fair_by, '') THEN          -- those that are here already are told whom they are for
        UPDATE pgqueue.ready r SET fair = pgqueue.for_whom(now.fair_by, j.input)
          FROM pgqueue.job j WHERE r.queue = now.name AND r.lane % 2 = 1 AND j.id = r.job_id;
    END IF;
    DELETE FROM pgqueue.fair_weight w WHERE w.queue = apply_limits.queue;
    INSERT INTO pgqueue.fair_weight (queue, fair, weight)
    SELECT apply_limits.queue, e.key, e.value::integer FROM jsonb_each(coalesce(said -> 'weights', '{}')) e;
    PERFORM pgqueue.wake_idle();
END
$$;
