-- What is in a stream of a job behind the position `after`: at most `amount` values, and fewer where they are large.
CREATE OR REPLACE FUNCTION pgqueue.read_stream(job uuid, name text, after integer, amount integer)
RETURNS TABLE (pos integer, value text)
LANGUAGE plpgsql STABLE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off
AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    SELECT h.pos, h.value
      FROM (SELECT s.pos, s.value, sum(octet_length(s.value)) OVER (ORDER BY s.pos) AS bytes
              FROM (SELECT t.pos, t.value FROM pgqueue.stream t
                     WHERE t.job_id = job AND t.name = read_stream.name AND t.pos > after ORDER BY t.pos LIMIT amount) s) h
     WHERE h.bytes <= 4194304 OR h.pos = after + 1
     ORDER BY h.pos;
END
$$;
