-- The jobs that run, the longest first, and the moment at which their time is over, if they have a limit.
CREATE OR REPLACE VIEW pgqueue.running_jobs AS
SELECT r.job_id AS id, j.name, r.queue, r.worker, w.host, w.pid, r.started_at,
       extract(epoch FROM pgqueue.clock() - r.started_at)::float8 AS seconds, (j.policy ->> 'deadline')::timestamptz AS deadline
  FROM pgqueue.running r
  JOIN pgqueue.job j ON j.id = r.job_id
  LEFT JOIN pgqueue.worker w ON w.id = r.worker
 ORDER BY r.started_at;
