-- What has ended since this worker began: how, and with which error.
SELECT j.id::text, j.name, j.queue, j.state, f.error
  FROM pgqueue.jobs j
  JOIN pgqueue.job_values f ON f.id = j.id
 WHERE j.finished_at >= (SELECT w.started_at FROM pgqueue.worker w WHERE w.id = {worker})
 ORDER BY j.finished_at
