-- The results of the jobs of one step of a parent, those behind `after`, in order, at most 500, and stopping early where they are
-- large. Only of those that succeeded.
CREATE OR REPLACE FUNCTION pgqueue.child_results(parent uuid, seq integer, after integer)
RETURNS TABLE (ordinal integer, result text)
LANGUAGE plpgsql STABLE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off
SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    SELECT h.ordinal, h.result
      FROM (SELECT c.*, sum(octet_length(c.result)) OVER (ORDER BY c.ordinal) AS bytes, row_number() OVER (ORDER BY c.ordinal) AS number
              FROM (SELECT c.ordinal, coalesce(o.result, 'null') AS result
                      FROM pgqueue.job c JOIN pgqueue.outcome o ON o.job_id = c.id AND o.status = 'succeeded'
                     WHERE c.parent = child_results.parent AND c.parent_seq = child_results.seq AND c.ordinal > child_results.after
                     ORDER BY c.ordinal LIMIT 500) c) h
     WHERE h.bytes <= 4194304 OR h.number = 1
     ORDER BY h.ordinal;
END
$$;
