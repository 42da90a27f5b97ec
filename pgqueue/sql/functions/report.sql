-- How far jobs are, as they say themselves: the last word counts, and only from whoever holds the job.
CREATE OR REPLACE FUNCTION pgqueue.report(jobs uuid[], tokens bigint[], fractions double precision[], notes text[]) RETURNS void
LANGUAGE plpgsql VOLATILE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off
SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $$
BEGIN
    PERFORM pgqueue.quick_commit();
    INSERT INTO pgqueue.progress (job_id, fraction, note, reported_at)
    SELECT g.job, g.fraction, g.note, pgqueue.clock()
      FROM unnest(jobs, tokens, fractions, notes) AS g(job, token, fraction, note)
      JOIN pgqueue.running r ON r.job_id = g.job AND r.claim = g.token
     ORDER BY g.job
    ON CONFLICT (job_id) DO UPDATE
       SET fraction = excluded.fraction, note = excluded.note, reported_at = excluded.reported_at;
END
$$;
