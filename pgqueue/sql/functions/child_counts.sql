-- How many children jobs have, by the step that started them and by state.
CREATE OR REPLACE FUNCTION pgqueue.child_counts(parents uuid[])
RETURNS TABLE (parent uuid, parent_seq integer, state text, amount bigint)
LANGUAGE plpgsql STABLE
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    SELECT c.parent, c.parent_seq, j.state, count(*)
      FROM unnest(parents) p(id) JOIN pgqueue.children c ON c.parent = p.id JOIN pgqueue.jobs j ON j.id = c.id
     GROUP BY c.parent, c.parent_seq, j.state;
END
$$;
