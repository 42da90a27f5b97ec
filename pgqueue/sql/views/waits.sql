-- What jobs wait for, or waited for, and where in their history. Open: there is no answer yet.
CREATE OR REPLACE VIEW pgqueue.waits AS
SELECT w.job_id, w.seq, w.name, w.kind, w.key, w.until, w.began_at, c.job_id IS NULL AS open
  FROM pgqueue.wait w
  LEFT JOIN pgqueue.checkpoint c ON c.job_id = w.job_id AND c.seq = w.seq;
