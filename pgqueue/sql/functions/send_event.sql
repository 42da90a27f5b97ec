-- Say that something has happened, IN THE CALLER'S TRANSACTION: jobs that wait for this key go on with the value when it commits, and
-- a job that comes to wait for it later finds it. The first value of a key counts. True: this was the first.
CREATE OR REPLACE FUNCTION pgqueue.send_event(key text, value json DEFAULT 'null') RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    first boolean;
BEGIN
    IF key IS NULL OR octet_length(key) NOT BETWEEN 1 AND 512 THEN
        PERFORM pgqueue.refuse('PQ004', 'the key of an event has 1 to 512 bytes');
    END IF;
    PERFORM pgqueue.check_value(value, 'the value of the event');
    PERFORM pgqueue.durable_commit();
    INSERT INTO pgqueue.event (key, value, sent_at) VALUES (send_event.key, coalesce(send_event.value::text, 'null'), pgqueue.clock())
    ON CONFLICT DO NOTHING;
    first := FOUND;
    IF first THEN
        PERFORM pgqueue.look_again('{}', ARRAY[key]);
    END IF;
    RETURN first;
END
$$;
