-- Send a message to one job, IN THE CALLER'S TRANSACTION. The job receives its messages of a topic one by one, in the order in
-- which they were sent, each exactly once. Answers sent, or why not: ended, unknown.
CREATE OR REPLACE FUNCTION pgqueue.send_message(job uuid, topic text, value json DEFAULT 'null') RETURNS text
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF topic IS NULL OR octet_length(topic) NOT BETWEEN 1 AND 512 THEN
        PERFORM pgqueue.refuse('PQ004', 'the topic of a message has 1 to 512 bytes');
    END IF;
    PERFORM pgqueue.check_value(value, 'the message');
    PERFORM pgqueue.durable_commit();
    PERFORM FROM pgqueue.job j WHERE j.id = job FOR KEY SHARE;                          -- prune waits
    IF NOT FOUND THEN
        RETURN 'unknown';
    END IF;
    PERFORM FROM pgqueue.outcome o WHERE o.job_id = job;
    IF FOUND THEN
        RETURN 'ended';
    END IF;
    INSERT INTO pgqueue.message (job_id, topic, pos, value, sent_at)
    VALUES (job, send_message.topic, nextval('pgqueue.position'), coalesce(send_message.value::text, 'null'), pgqueue.clock());
    PERFORM pgqueue.look_again(ARRAY[job]);
    RETURN 'sent';
END
$$;
