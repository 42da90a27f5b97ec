-- How many jobs of these queues have still to end, counted up to 1,000: what --burst waits for.
CREATE OR REPLACE FUNCTION pgqueue.remaining(queues text[]) RETURNS bigint
LANGUAGE sql STABLE
AS $$
    SELECT count(*) FROM (
        SELECT FROM pgqueue.ready WHERE queue = ANY (queues)
        UNION ALL SELECT FROM pgqueue.wakeup                 -- somebody may go on in a moment
        UNION ALL SELECT FROM pgqueue.running WHERE queue = ANY (queues)
        UNION ALL SELECT FROM pgqueue.scheduled WHERE queue = ANY (queues) AND run_at <= pgqueue.clock_bound() LIMIT 1000) r
$$;
