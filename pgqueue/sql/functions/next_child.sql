-- The number of the first child that has not ended, of those that a parent waits for: key says which, as "seq:first". Null: all
-- have ended. (A job that was run again from the middle may have the children of the one before it: see rerun.)
CREATE OR REPLACE FUNCTION pgqueue.next_child(parent uuid, key text) RETURNS integer
LANGUAGE plpgsql STABLE STRICT
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off
SET enable_hashjoin = off SET enable_mergejoin = off SET enable_sort = off SET jit = off
AS $$
DECLARE
    holder uuid := pgqueue.children_of(next_child.parent, split_part(next_child.key, ':', 1)::integer);
BEGIN
    RETURN (SELECT c.ordinal FROM pgqueue.job c LEFT JOIN pgqueue.outcome o ON o.job_id = c.id
             WHERE c.parent = holder AND c.parent_seq = split_part(next_child.key, ':', 1)::integer
               AND c.ordinal >= split_part(next_child.key, ':', 2)::integer AND o.job_id IS NULL
             ORDER BY c.ordinal LIMIT 1);
END
$$;
