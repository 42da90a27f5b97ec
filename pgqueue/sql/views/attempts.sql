-- Every run that did not succeed: when, where, which step, and why.
CREATE OR REPLACE VIEW pgqueue.attempts AS
SELECT a.job_id, a.seq, a.kind, a.error, a.checkpoints, a.worker, a.host, a.started_at, a.ended_at
  FROM pgqueue.attempt a;
