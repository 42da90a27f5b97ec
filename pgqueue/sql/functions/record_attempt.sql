-- One row for a run (or one step of it) that did not succeed. Who held the job is read from its `running` row, which the
-- caller has locked. Counters are counted from these rows and carried nowhere.
CREATE OR REPLACE FUNCTION pgqueue.record_attempt(job uuid, token bigint, seq integer, kind text, error text) RETURNS void
LANGUAGE sql VOLATILE
AS $$
    INSERT INTO pgqueue.attempt (job_id, claim, seq, kind, checkpoints, error, worker, host, started_at, ended_at)
    SELECT job, token, record_attempt.seq, record_attempt.kind,
           (SELECT count(*) FROM pgqueue.checkpoint c WHERE c.job_id = job),
           record_attempt.error, r.worker, w.host, r.started_at, pgqueue.clock()
      FROM (SELECT) one
      LEFT JOIN pgqueue.running r ON r.job_id = job AND r.claim = token
      LEFT JOIN pgqueue.worker w ON w.id = r.worker
$$;
