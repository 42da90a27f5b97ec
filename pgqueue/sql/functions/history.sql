-- The checkpoints of a job after `after`, in order, and the waits that it has begun (without result or error); at most 1,000 at a time, and
-- stopping early where they are large. Whoever replays asks again from the last one it got.
CREATE OR REPLACE FUNCTION pgqueue.history(job uuid, after integer)
RETURNS TABLE (seq integer, name text, result text, error text)
LANGUAGE plpgsql STABLE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off
AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    SELECT h.seq, h.name, h.result, h.error
      FROM (SELECT c.*, sum(octet_length(coalesce(c.result, c.error, ''))) OVER (ORDER BY c.seq) AS bytes
              FROM (SELECT c.seq, c.name, c.result, c.error FROM pgqueue.checkpoint c WHERE c.job_id = job AND c.seq > after
                     UNION ALL
                    SELECT w.seq, w.name, NULL, NULL FROM pgqueue.wait w
                      LEFT JOIN pgqueue.checkpoint c ON c.job_id = w.job_id AND c.seq = w.seq
                     WHERE w.job_id = job AND w.seq > after AND c.seq IS NULL
                     ORDER BY seq LIMIT 1000) c) h
     WHERE h.bytes <= 4194304 OR h.seq = after + 1
     ORDER BY h.seq;
END
$$;
