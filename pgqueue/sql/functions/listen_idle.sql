-- Says that a housekeeper is idle and listening for the next so many seconds.
CREATE OR REPLACE FUNCTION pgqueue.listen_idle(seconds double precision) RETURNS void
LANGUAGE sql VOLATILE
AS $$
    SELECT setval('pgqueue.idle_until', (extract(epoch FROM pgqueue.clock()) * 1000 + seconds * 1000)::bigint)
$$;
