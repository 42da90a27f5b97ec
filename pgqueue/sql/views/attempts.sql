-- Every run that did not succeed: when, where, which step, and why. And every requeue and rerun, and who asked for it.
CREATE OR REPLACE VIEW pgqueue.attempts AS
SELECT a.job_id, a.seq, a.kind, a.error, a.checkpoints, a.worker, a.host, a.started_at, a.ended_at, a.by
  FROM pgqueue.attempt a;
