-- The checkpoints of jobs: what each step returned, or its final error.
CREATE OR REPLACE VIEW pgqueue.steps AS
SELECT c.job_id, c.seq, c.name, CASE WHEN c.error IS NULL THEN 'succeeded' ELSE 'failed' END AS status,
       c.result, c.error, c.created_at
  FROM pgqueue.checkpoint c;
