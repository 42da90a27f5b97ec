-- In how many seconds the first wait is over of those that have an end: an event that did not come, or a turn by the rate of a key.
-- Null: none has.
CREATE OR REPLACE FUNCTION pgqueue.next_wake() RETURNS double precision
LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off
AS $$
BEGIN
    RETURN (SELECT extract(epoch FROM w.until - pgqueue.clock())::float8 FROM pgqueue.waiting w WHERE w.until IS NOT NULL ORDER BY w.until LIMIT 1);
END
$$;
