-- The number of a queue's lock. Whoever claims from an unlimited queue shares it; who claims from a limited one, or changes its
-- limits, has it alone, until the end of the transaction.
CREATE OR REPLACE FUNCTION pgqueue.queue_lock(queue text) RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$
    SELECT hashtextextended('pgqueue.queue/' || queue, 0)
$$;
