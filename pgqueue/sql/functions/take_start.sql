-- A job of this cost begins then.
CREATE OR REPLACE FUNCTION pgqueue.take_start(
    queue text, key text, amount integer, seconds double precision, burst integer, cost integer, moment timestamptz) RETURNS void
LANGUAGE sql VOLATILE
AS $$
    INSERT INTO pgqueue.rate_register AS r (queue, key, next)
    VALUES (queue, key, moment + make_interval(secs => ceil(cost * seconds / amount * 1e6) / 1e6))
    ON CONFLICT (queue, key) DO UPDATE
       SET next = greatest(r.next, take_start.moment) + make_interval(secs => ceil(take_start.cost * seconds / amount * 1e6) / 1e6)
$$;
