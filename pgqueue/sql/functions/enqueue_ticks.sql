-- Enqueue the job of a schedule for each of these ticks, and return the ids in the same order. They are derived from the name and the
-- tick (unless one is chosen, for a job beside the plan), so that the same tick is the same job.
CREATE OR REPLACE FUNCTION pgqueue.enqueue_ticks(s pgqueue.schedule, ticks timestamptz[], chosen uuid DEFAULT NULL) RETURNS uuid[]
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    jobs json;
    ids  uuid[];
BEGIN
    SELECT json_agg(json_build_object(
               'name', s.workflow, 'input', s.input::json, 'queue', s.queue, 'priority', s.priority,
               'unique', (SELECT CASE w.uniqueness ->> 'on_conflict' WHEN 'error' THEN w.uniqueness - 'on_conflict' ELSE w.uniqueness END
                            FROM pgqueue.workflow w WHERE w.name = s.workflow),
               'job_id', coalesce(chosen, pgqueue.derived_id('pgqueue.schedule', s.name || '@' || trunc(extract(epoch FROM d.due_at) * 1000000))),
               'meta', json_build_object('schedule', s.name, 'due_at',
                                         replace(to_char(d.due_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US'), '.000000', '') || '+00:00'))
               ORDER BY d.place)
      INTO jobs FROM unnest(ticks) WITH ORDINALITY d(due_at, place);
    IF jobs IS NOT NULL THEN
        SELECT array_agg(e.id ORDER BY e.place) INTO ids FROM pgqueue.enqueue_workflows(jobs) WITH ORDINALITY e(id, place);
    END IF;
    RETURN coalesce(ids, '{}');
END
$$;
