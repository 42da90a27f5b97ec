-- Worker processes, and how many jobs each holds.
CREATE OR REPLACE VIEW pgqueue.workers AS
SELECT w.id, w.host, w.pid, w.started_at, w.beat, w.fenced_at, w.reason,
       (SELECT count(*) FROM pgqueue.running r WHERE r.worker = w.id) AS jobs
  FROM pgqueue.worker w;
