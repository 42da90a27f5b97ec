-- Makes the schedules of an App known, and no others of that App. What operators say stays: a pause, and schedules of their own.
-- One whose times have changed, or that was not declared for a while, counts from now on. Called by register_app.
CREATE OR REPLACE FUNCTION pgqueue.register_schedules(app text, schedules json) RETURNS void
LANGUAGE plpgsql VOLATILE
AS $$
#variable_conflict use_column
DECLARE
    stamp timestamptz := pgqueue.clock();
BEGIN
    INSERT INTO pgqueue.schedule AS old
           (name, workflow, cron, every, timezone, input, queue, priority, misfire, grace, overlap, origin, app, done_until)
    SELECT n.name, n.workflow, n.cron, n.every, n.timezone, n.input, n.queue, n.priority, n.misfire, n.grace, n.overlap,
           'app', register_schedules.app, stamp
      FROM json_to_recordset(schedules) AS n(name text, workflow text, cron text, every double precision, timezone text, input text,
                                             queue text, priority smallint, misfire text, grace double precision, overlap boolean)
     ORDER BY n.name
    ON CONFLICT (name) DO UPDATE
       SET workflow = excluded.workflow, cron = excluded.cron, every = excluded.every, timezone = excluded.timezone, input = excluded.input,
           queue = excluded.queue, priority = excluded.priority, misfire = excluded.misfire, grace = excluded.grace,
           overlap = excluded.overlap, app = excluded.app, declared = true, revision = old.revision + 1, next_at = '-infinity',
           problem = NULL,
           done_until = CASE WHEN old.declared AND (old.cron, old.every, old.timezone)
                                  IS NOT DISTINCT FROM (excluded.cron, excluded.every, excluded.timezone)
                             THEN old.done_until ELSE greatest(old.done_until, stamp) END
     WHERE old.origin = 'app'
       AND (old.workflow, old.cron, old.every, old.timezone, old.input, old.queue, old.priority, old.misfire, old.grace, old.overlap,
            old.app, old.declared)
           IS DISTINCT FROM (excluded.workflow, excluded.cron, excluded.every, excluded.timezone, excluded.input, excluded.queue,
                             excluded.priority, excluded.misfire, excluded.grace, excluded.overlap, excluded.app, true);
    UPDATE pgqueue.schedule s SET declared = false, revision = s.revision + 1
     WHERE s.name = ANY (ARRAY(SELECT o.name FROM pgqueue.schedule o
                                WHERE o.origin = 'app' AND o.app = register_schedules.app AND o.declared
                                  AND o.name NOT IN (SELECT n.name FROM json_to_recordset(schedules) AS n(name text))
                                ORDER BY o.name FOR UPDATE));
END
$$;
