-- One row per schedule: what operators look at.
CREATE OR REPLACE VIEW pgqueue.schedules AS
SELECT s.name, s.workflow, s.cron, s.every, s.timezone,
       CASE WHEN NOT s.declared OR s.paused OR NOT isfinite(s.next_at) THEN NULL      -- nobody has looked yet, or there is none
            WHEN s.problem IS NULL THEN s.next_at ELSE coalesce(s.late_since, s.done_until) END AS next_at,
       s.last_at, s.paused, s.misfire, s.overlap, s.origin, s.declared, s.grace, s.input, s.queue, s.priority, s.app, s.paused_by,
       s.problem, s.done_until
  FROM pgqueue.schedule s;
