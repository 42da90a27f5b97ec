-- One row per schedule: what operators look at.
CREATE OR REPLACE VIEW pgqueue.schedules AS
SELECT s.name, s.workflow, s.cron, s.every, s.timezone,
       CASE WHEN s.declared AND NOT s.paused AND isfinite(s.next_at) THEN s.next_at END AS next_at,      -- null: nobody has looked yet
       s.last_at, s.paused, s.misfire, s.overlap, s.origin, s.declared, s.grace, s.input, s.queue, s.priority, s.app, s.paused_by,
       s.problem, s.done_until
  FROM pgqueue.schedule s;
