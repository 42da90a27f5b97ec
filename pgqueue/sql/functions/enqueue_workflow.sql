-- Insert one job IN THE CALLER'S TRANSACTION: it exists if and only if that commits. Returns its id.
--
--     BEGIN;
--     INSERT INTO orders ...;
--     SELECT pgqueue.enqueue_workflow('shop.tasks.fulfil', '{"order_id": 7}', queue => 'payments', id => 'order-7');
--     COMMIT;
--
-- id      any text: the same id enqueued again is the same job       options  retry, max_crashes, and what comes later
-- delay   not before so much time has passed                         run_at   not before this moment
CREATE OR REPLACE FUNCTION pgqueue.enqueue_workflow(
    name text, input json DEFAULT '{}', queue text DEFAULT NULL, id text DEFAULT NULL, priority integer DEFAULT NULL,
    delay interval DEFAULT NULL, run_at timestamptz DEFAULT NULL, key text DEFAULT NULL, options jsonb DEFAULT '{}')
RETURNS uuid
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    job json := json_build_object('name', name, 'input', input, 'queue', queue, 'id', id, 'priority', priority,
                                  'delay', delay, 'run_at', run_at, 'key', key);
    made uuid;
BEGIN
    IF options <> '{}' THEN
        -- json, not jsonb: the input must keep its very text
        SELECT json_object_agg(o.k, o.v) INTO job
          FROM (SELECT e.key AS k, e.value AS v FROM json_each(job) e
                UNION ALL SELECT e.key, e.value::json FROM jsonb_each(options) e) o;
    END IF;
    SELECT e INTO made FROM pgqueue.enqueue_workflows(json_build_array(job)) e;
    RETURN made;
END
$$;
