-- The position last given to a ready job. A claimer that samples it learns from where on to look for younger ones. 0 where one of
-- these queues is paused or has limits: then a claim that brings nothing has not looked at all that is ready.
CREATE OR REPLACE FUNCTION pgqueue.newest_position(queues text[]) RETURNS bigint
LANGUAGE sql VOLATILE
AS $$
    SELECT CASE WHEN EXISTS (SELECT FROM pgqueue.queue q WHERE q.name = ANY (queues) AND (q.paused OR q.limited))
        THEN 0 ELSE (SELECT last_value FROM pgqueue.position) END
$$;
