-- The invariant: every job has exactly one row over the work lists and outcome, and a unique key belongs to the job that has it, as
-- long as that job has it. This view shows the jobs of which that is not true, and is empty in every snapshot. It reads everything:
-- for tests and for pgqueue doctor.
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
 WHERE j.id IS NULL OR p.job_id IS NULL OR cardinality(p.places) <> 1
 UNION ALL
SELECT u.job_id, '{unique_job}'                              -- a key that nobody gives back
  FROM pgqueue.unique_job u
  LEFT JOIN pgqueue.job j ON j.id = u.job_id AND j.unique_key = u.key
  LEFT JOIN pgqueue.outcome o ON o.job_id = u.job_id
  LEFT JOIN pgqueue.running r ON r.job_id = u.job_id
 WHERE u.until IS NULL AND (j.id IS NULL OR o.job_id IS NOT NULL OR (j.policy #>> '{unique,until}' = 'started' AND r.job_id IS NOT NULL))
 UNION ALL
SELECT j.id, '{}'                                            -- a job that is to be unique, and has no key
  FROM pgqueue.job j
  LEFT JOIN pgqueue.unique_job u ON u.key = j.unique_key AND u.job_id = j.id
  LEFT JOIN pgqueue.outcome o ON o.job_id = j.id
 WHERE j.unique_key IS NOT NULL AND j.policy #>> '{unique,until}' = 'ended' AND u.key IS NULL AND o.job_id IS NULL;
