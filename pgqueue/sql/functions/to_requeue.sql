-- Which jobs a requeue of these runs again: those of them that have ended and did not succeed; where the failure of a child was the
-- reason, the child; and the children that a cancelled one had taken along.
CREATE OR REPLACE FUNCTION pgqueue.to_requeue(jobs uuid[]) RETURNS uuid[]
LANGUAGE sql STABLE
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $$
    WITH RECURSIVE again AS (
        SELECT o.job_id, o.failed_seqs FROM pgqueue.outcome o WHERE o.job_id = ANY (jobs) AND o.status <> 'succeeded'
         UNION
        SELECT o.job_id, o.failed_seqs
          FROM again a
         CROSS JOIN LATERAL (
            SELECT c.id
              FROM unnest(a.failed_seqs) AS s(seq)
              LEFT JOIN pgqueue.wait w ON w.job_id = a.job_id AND w.seq = s.seq AND w.kind = 'job'
              JOIN pgqueue.job c ON c.parent = pgqueue.children_of(a.job_id, s.seq) AND (c.parent_seq = s.seq OR c.id::text = w.key)
             UNION ALL
            SELECT t.job_id FROM pgqueue.taken_along t WHERE t.parent = a.job_id) c(id)
          JOIN pgqueue.outcome o ON o.job_id = c.id AND o.status <> 'succeeded'
    )
    SELECT array_agg(a.job_id) FROM again a
$$;
