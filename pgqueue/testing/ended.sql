-- What has ended since a moment: how, and with which error.
SELECT j.id::text, j.name, j.queue, j.state, f.error
  FROM pgqueue.jobs j
  JOIN pgqueue.job_values f ON f.id = j.id
 WHERE j.finished_at >= {since}
 ORDER BY j.finished_at
