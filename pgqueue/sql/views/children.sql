-- The jobs that each job has started, and at which of its steps. A rerun also has those of the job before it that it has kept.
CREATE OR REPLACE VIEW pgqueue.children AS
SELECT j.parent, j.parent_seq, j.ordinal, j.id FROM pgqueue.job j WHERE j.parent IS NOT NULL
 UNION ALL
SELECT k.job_id, k.seq, j.ordinal, j.id
  FROM pgqueue.kept_children k
  JOIN pgqueue.job j ON j.parent = k.parent AND j.parent_seq = k.seq;
