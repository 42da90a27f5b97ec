-- Remember how far the children of waiting parents have come, so that a parent of thousands does not look at all of them each
-- time that one ends. Locks the parents first (waiting for others that do the same), so that what is read afterwards is not old.
CREATE OR REPLACE FUNCTION pgqueue.advance_children(jobs uuid[]) RETURNS void
LANGUAGE plpgsql VOLATILE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off
SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $$
BEGIN
    PERFORM FROM pgqueue.waiting w WHERE w.job_id = ANY (jobs) AND w.kind = 'children' ORDER BY w.job_id FOR UPDATE;
    IF FOUND THEN
        UPDATE pgqueue.waiting w SET key = split_part(w.key, ':', 1) || ':' || n.first
          FROM (SELECT w.job_id, pgqueue.next_child(w.job_id, w.key) AS first
                  FROM pgqueue.waiting w WHERE w.job_id = ANY (jobs) AND w.kind = 'children') n
         WHERE w.job_id = n.job_id AND n.first >= split_part(w.key, ':', 2)::integer + 100;
    END IF;
END
$$;
