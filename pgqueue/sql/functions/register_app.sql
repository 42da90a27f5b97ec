-- Makes the queues and workflows of an App known to SQL producers. What operators have chosen for a queue stays in force over what the
-- App declares (see apply_limits). An App that declares no limits of a queue says nothing of those that another App declares. Called by
-- "pgqueue migrate MODULE:APP" and by every starting worker. A worker with an older version of a workflow changes nothing about it;
-- migrate does ("exact": true). The schedules are all that this App has (null: it says nothing of schedules).
CREATE OR REPLACE FUNCTION pgqueue.register_app(queues json, workflows json, app text DEFAULT NULL, schedules json DEFAULT NULL)
RETURNS void
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    said record;
BEGIN
    INSERT INTO pgqueue.queue (name, created_at)
    SELECT q.name, pgqueue.clock() FROM json_to_recordset(queues) AS q(name text) ORDER BY q.name
    ON CONFLICT DO NOTHING;
    FOR said IN SELECT q.name, coalesce(q.limits, '{}') AS limits FROM json_to_recordset(queues) AS q(name text, limits jsonb) ORDER BY q.name LOOP
        PERFORM pgqueue.check_limits(said.limits);
        PERFORM FROM pgqueue.queue q
          WHERE q.name = said.name
            AND CASE said.limits WHEN '{}' THEN q.declared <> '{}' AND coalesce(q.declared_by = app, true)
                                 ELSE (q.declared, q.declared_by) IS DISTINCT FROM (said.limits, app) END;
        IF FOUND THEN
            PERFORM pg_advisory_xact_lock(pgqueue.queue_lock(said.name));    -- before the row of the queue is written to
            UPDATE pgqueue.queue q SET declared = said.limits, declared_by = app WHERE q.name = said.name;
            PERFORM pgqueue.apply_limits(said.name);
        END IF;
    END LOOP;

    INSERT INTO pgqueue.workflow AS old (name, origin, kind, queue, priority, max_crashes, key, version, timeout, on_failure, uniqueness, registered_at)
    SELECT w.name,
           coalesce((SELECT o.origin FROM pgqueue.workflow o JOIN json_array_elements_text(w.aliases) a ON a = o.name
                      ORDER BY o.registered_at LIMIT 1), w.aliases ->> 0, w.name),
           w.kind, w.queue, w.priority, w.max_crashes, w.key, coalesce(w.version, 1), w.timeout, w.on_failure, w.uniqueness, pgqueue.clock()
      FROM json_to_recordset(workflows) AS w(name text, aliases json, kind text, queue text, priority smallint,
                                             max_crashes integer, key text, version integer, timeout double precision,
                                             on_failure text, exact boolean, uniqueness jsonb)
      LEFT JOIN pgqueue.workflow o ON o.name = w.name
     WHERE w.exact OR o.name IS NULL OR coalesce(w.version, 1) >= o.version
     ORDER BY w.name
    ON CONFLICT (name) DO UPDATE
       SET kind = excluded.kind, queue = excluded.queue, priority = excluded.priority,
           max_crashes = excluded.max_crashes, key = excluded.key, version = excluded.version, timeout = excluded.timeout,
           on_failure = excluded.on_failure, uniqueness = excluded.uniqueness
     WHERE (old.kind, old.queue, old.priority, old.max_crashes, old.key, old.version, old.timeout, old.on_failure,
            old.uniqueness)
           IS DISTINCT FROM (excluded.kind, excluded.queue, excluded.priority, excluded.max_crashes, excluded.key, excluded.version,
                             excluded.timeout, excluded.on_failure, excluded.uniqueness);

    IF app IS NOT NULL AND schedules IS NOT NULL THEN
        PERFORM pgqueue.register_schedules(app, schedules);
    END IF;
END
$$;
