-- The invariant: every job has exactly one row over the work lists and outcome. This view shows those that do not, and is
-- empty in every snapshot. It reads everything: for tests and for pgqueue doctor.
CREATE OR REPLACE VIEW pgqueue.violations AS
SELECT coalesce(j.id, p.job_id) AS job_id, coalesce(p.places, '{}') AS places
  FROM pgqueue.job j
  FULL JOIN (SELECT u.job_id, array_agg(u.place ORDER BY u.place) AS places
               FROM (SELECT job_id, 'ready' AS place FROM pgqueue.ready
                     UNION ALL SELECT job_id, 'running' FROM pgqueue.running
                     UNION ALL SELECT job_id, 'scheduled' FROM pgqueue.scheduled
                     UNION ALL SELECT job_id, 'waiting' FROM pgqueue.waiting
                     UNION ALL SELECT job_id, 'outcome' FROM pgqueue.outcome) u
              GROUP BY u.job_id) p ON p.job_id = j.id
 WHERE j.id IS NULL OR p.job_id IS NULL OR cardinality(p.places) <> 1;
