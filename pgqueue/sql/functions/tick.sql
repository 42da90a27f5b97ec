-- Deal with the ticks of a schedule up to `until`: a row and a job for each of `ticks`, in one transaction with the moment of the next
-- one. Null: somebody else did, or the schedule has changed since the caller has `seen` it. Otherwise how many jobs were enqueued.
-- missed: the last of the ticks that are too late to run, the first of them is `since`. Without `missed`, the one tick stands for all
-- those from `since` on. No leader is needed: whoever locks the row first ticks, the revision tells the others that it was done, and
-- the primary keys of tick and job make a double impossible.
CREATE OR REPLACE FUNCTION pgqueue.tick(
    schedule text, seen bigint, ticks timestamptz[], until timestamptz, next timestamptz, missed timestamptz, since timestamptz)
RETURNS bigint
LANGUAGE plpgsql VOLATILE
SET lock_timeout = '100 ms'                                  -- of a unique job whose producer has not committed: the next time
AS $$
#variable_conflict use_column
DECLARE
    s     pgqueue.schedule;
    fresh timestamptz[];
    runs  timestamptz[];
    ids   uuid[];
BEGIN
    PERFORM pgqueue.assert_read_committed();
    PERFORM pgqueue.durable_commit();
    SELECT * INTO s FROM pgqueue.schedule o
     WHERE o.name = tick.schedule AND o.revision = seen AND o.declared AND NOT o.paused FOR UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    SELECT coalesce(array_agg(d.due_at ORDER BY d.due_at), '{}') INTO fresh      -- a backfill may have been there before
      FROM unnest(ticks) d(due_at) LEFT JOIN pgqueue.tick t ON t.schedule = s.name AND t.due_at = d.due_at
     WHERE t.due_at IS NULL AND d.due_at > s.done_until;
    s.live := CASE WHEN s.overlap THEN '{}' ELSE pgqueue.not_ended(s.live) END;
    runs := CASE WHEN s.overlap THEN fresh WHEN s.live = '{}' THEN fresh[1:1] ELSE '{}' END;
    ids := pgqueue.enqueue_ticks(s, runs);
    INSERT INTO pgqueue.tick (schedule, due_at, job_id, why, since, ticked_at)
    SELECT s.name, f.due_at, f.job_id,
           CASE WHEN f.job_id IS NULL THEN 'overlap' WHEN missed IS NULL AND tick.since IS NOT NULL THEN 'late' ELSE 'due' END,
           CASE WHEN missed IS NULL THEN tick.since END, pgqueue.clock()
      FROM unnest(fresh, ids) f(due_at, job_id);                                 -- those that run come first
    IF missed IS NOT NULL THEN
        INSERT INTO pgqueue.tick (schedule, due_at, why, since, ticked_at)
        VALUES (s.name, missed, 'missed', tick.since, pgqueue.clock()) ON CONFLICT DO NOTHING;
    END IF;
    UPDATE pgqueue.schedule o
       SET revision = o.revision + 1, done_until = greatest(o.done_until, until), next_at = coalesce(next, 'infinity'),
           last_at = coalesce(runs[cardinality(runs)], o.last_at), live = CASE WHEN s.overlap THEN '{}' ELSE s.live || ids END,
           problem = NULL
     WHERE o.name = s.name;
    RETURN cardinality(runs);
END
$$;
