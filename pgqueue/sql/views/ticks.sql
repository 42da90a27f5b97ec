-- The moments at which schedules were due, and what came of each.
CREATE OR REPLACE VIEW pgqueue.ticks AS
SELECT t.schedule, t.due_at, t.job_id, t.why, t.since, t.ticked_at
  FROM pgqueue.tick t;
