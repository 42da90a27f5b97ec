-- Input, result and error of each job, as the JSON text that was stored.
CREATE OR REPLACE VIEW pgqueue.job_values AS
SELECT j.id, j.name, coalesce(o.status, 'active') AS status, j.input, o.result, o.error, o.failed_seqs, j.policy
  FROM pgqueue.job j
  LEFT JOIN pgqueue.outcome o ON o.job_id = j.id;
