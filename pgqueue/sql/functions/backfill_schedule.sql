-- Enqueue a job for each of these ticks of a schedule that got none: because it was paused, not yet there, or too late. Returns how
-- many that were: of the same ticks again, none. Where rows of ticks were pruned, nobody can tell which got a job: an error, unless
-- these are to run `again`.
CREATE OR REPLACE FUNCTION pgqueue.backfill_schedule(schedule text, ticks timestamptz[], again boolean DEFAULT false) RETURNS bigint
LANGUAGE plpgsql VOLATILE
AS $$
#variable_conflict use_column
DECLARE
    s       pgqueue.schedule := pgqueue.change_schedule(backfill_schedule.schedule);
    fresh   timestamptz[];
    unknown text;
BEGIN
    IF NOT s.declared THEN
        PERFORM pgqueue.refuse('PQ009', format('schedule %L is no longer declared by its App', s.name));
    ELSIF ticks IS NULL OR EXISTS (SELECT FROM unnest(ticks) d WHERE d > pgqueue.clock() OR NOT isfinite(d)) THEN
        PERFORM pgqueue.refuse('PQ004', 'a backfill is for ticks of the past');
    END IF;
    SELECT coalesce(array_agg(d.due_at ORDER BY d.due_at), '{}') INTO fresh
      FROM (SELECT DISTINCT due_at FROM unnest(ticks) u(due_at) WHERE due_at IS NOT NULL) d
      LEFT JOIN pgqueue.tick t ON t.schedule = s.name AND t.due_at = d.due_at
     WHERE t.job_id IS NULL;
    SELECT format('the ticks of schedule %L from %s to %s', s.name, min(d.due_at), max(d.due_at)) INTO unknown
      FROM pgqueue.pruned_ticks p                            -- looked at behind the rows of the ticks: a prune may be under way
      JOIN unnest(fresh) d(due_at) ON d.due_at BETWEEN p.first AND p.last
     WHERE p.schedule = s.name AND NOT coalesce(again, false)
       AND NOT EXISTS (SELECT FROM pgqueue.tick t WHERE t.schedule = s.name AND t.due_at = d.due_at)
    HAVING count(*) > 0;
    IF unknown IS NOT NULL THEN
        PERFORM pgqueue.refuse('PQ009', unknown || ' may have had jobs, which were pruned with the rows that said so',
            'Leave them out, or let them run whether they have run or not: again => true, or "pgqueue schedules backfill --again".');
    END IF;
    INSERT INTO pgqueue.tick AS old (schedule, due_at, job_id, why, ticked_at)
    SELECT s.name, f.due_at, f.job_id, 'backfill', pgqueue.clock()
      FROM unnest(fresh, pgqueue.enqueue_ticks(s, fresh)) f(due_at, job_id)
    ON CONFLICT (schedule, due_at) DO UPDATE SET job_id = excluded.job_id, why = excluded.why, ticked_at = excluded.ticked_at
     WHERE old.job_id IS NULL;
    RETURN cardinality(fresh);
END
$$;
