-- What is enqueued and does not run yet, in the order in which it was enqueued. What has left its worker to wait is under way.
SELECT j.id::text, j.name, f.input, s.queue, s.priority, s.key, s.run_at, j.created_at
  FROM pgqueue.job j
  JOIN pgqueue.jobs s ON s.id = j.id
  JOIN pgqueue.job_values f ON f.id = j.id
 WHERE s.state IN ('ready', 'scheduled', 'waiting')
   AND NOT EXISTS (SELECT FROM pgqueue.waits w WHERE w.job_id = j.id AND w.open)
 ORDER BY j.created_at, j.ctid                               -- rows of one enqueue_many have the same time
