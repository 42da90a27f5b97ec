-- Refuses limits that cannot be meant.
CREATE OR REPLACE FUNCTION pgqueue.check_limits(said jsonb) RETURNS void
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    item record;
BEGIN
    IF jsonb_typeof(said) IS DISTINCT FROM 'object' THEN
        PERFORM pgqueue.refuse('PQ004', 'limits are a JSON object');
    END IF;
    FOR item IN SELECT e.key, e.value, jsonb_typeof(e.value) AS type FROM jsonb_each(said) e LOOP
        CONTINUE WHEN item.value IN ('null', '0') AND item.key = ANY ('{concurrency,per_key,rate,rate_per_key,fair_by,aging,weights}');
        IF item.key IN ('concurrency', 'per_key') THEN
            CONTINUE WHEN item.type = 'number' AND (item.value::numeric BETWEEN 1 AND 1000000) AND item.value::numeric % 1 = 0;
        ELSIF item.key IN ('rate', 'rate_per_key') THEN
            CONTINUE WHEN item.type = 'object' AND item.value - '{n,per,burst}'::text[] = '{}'
                 AND jsonb_typeof(item.value -> 'n') = 'number' AND (item.value ->> 'n')::numeric BETWEEN 1 AND 1000000
                 AND (item.value ->> 'n')::numeric % 1 = 0
                 AND jsonb_typeof(item.value -> 'per') = 'number' AND (item.value ->> 'per')::numeric BETWEEN 0.001 AND 31622400
                 AND jsonb_typeof(item.value -> 'burst') = 'number' AND (item.value ->> 'burst')::numeric BETWEEN 1 AND 1000000
                 AND (item.value ->> 'burst')::numeric % 1 = 0;
        ELSIF item.key = 'aging' THEN
            CONTINUE WHEN item.type = 'number' AND item.value::numeric BETWEEN 0.001 AND 31622400;
        ELSIF item.key = 'fair_by' THEN
            CONTINUE WHEN item.type = 'string' AND length(item.value #>> '{}') BETWEEN 1 AND 128;
        ELSIF item.key = 'weights' AND item.type = 'object' THEN
            PERFORM FROM jsonb_each(item.value) w
              WHERE length(w.key) > 512 OR jsonb_typeof(w.value) NOT IN ('number', 'null')
                 OR (w.value <> 'null' AND (w.value::numeric NOT BETWEEN 0 AND 1000 OR w.value::numeric % 1 <> 0));
            CONTINUE WHEN NOT FOUND;
        END IF;
        PERFORM pgqueue.refuse('PQ004', format('%s: %s is no limit of a queue', item.key, left(item.value::text, 200)),
            'concurrency and per_key are whole numbers from 1 on; rate and rate_per_key {"n": 100, "per": seconds, "burst": 1}; '
            'fair_by is the name of a parameter, up to 128 characters; aging is seconds; weights {"who": 3}, up to 1000.');
    END LOOP;
END
$$;
