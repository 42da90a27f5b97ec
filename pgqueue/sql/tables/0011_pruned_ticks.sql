-- Of each schedule: from where to where there were ticks with a job whose rows were pruned. In between nobody can tell any more whether a
-- tick had a job. It outlives the schedule, which may be dropped and made again.

CREATE TABLE pgqueue.pruned_ticks (
    schedule text PRIMARY KEY,
    first    timestamptz NOT NULL,
    last     timestamptz NOT NULL
) WITH (fillfactor = 50);

INSERT INTO pgqueue.pruned_ticks (schedule, first, last)      -- what was pruned before, nobody has noted
SELECT s.name, '-infinity', coalesce((SELECT min(t.due_at) FROM pgqueue.tick t WHERE t.schedule = s.name), s.done_until) FROM pgqueue.schedule s;

DROP FUNCTION IF EXISTS pgqueue.backfill_schedule(text, timestamptz[]);
