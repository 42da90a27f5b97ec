-- One row per job, with its state. What people query. No payloads: those are in job_values.
CREATE OR REPLACE VIEW pgqueue.jobs AS
SELECT j.id, j.name, j.queue, j.priority,
       CASE WHEN o.job_id IS NOT NULL THEN o.status
            WHEN r.job_id IS NOT NULL THEN 'running'
            WHEN s.job_id IS NOT NULL THEN 'scheduled'
            WHEN w.job_id IS NOT NULL THEN 'waiting'
            ELSE 'ready' END AS state,                       -- by elimination: `ready` has no index by job
       j.key, j.parent, j.created_at, coalesce(s.run_at, j.run_at) AS run_at,
       r.started_at, r.worker, w.kind AS waiting_for, w.key AS waiting_key, o.finished_at,
       c.job_id IS NOT NULL AS cancel_requested,
       j.version, j.parent_seq, j.ordinal, w.until AS waiting_until, c.by AS cancel_by
  FROM pgqueue.job j
  LEFT JOIN pgqueue.outcome o ON o.job_id = j.id
  LEFT JOIN pgqueue.running r ON r.job_id = j.id
  LEFT JOIN pgqueue.scheduled s ON s.job_id = j.id
  LEFT JOIN pgqueue.waiting w ON w.job_id = j.id
  LEFT JOIN pgqueue.cancel_request c ON c.job_id = j.id;
