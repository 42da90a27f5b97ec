-- Children of jobs, for people to look at: of each step of each parent up to `each`, and up to `amount` in all, those first that
-- somebody may have to look at. Only those in these states.
CREATE OR REPLACE FUNCTION pgqueue.child_jobs(parents uuid[], each integer, amount integer, states text[])
RETURNS TABLE (parent uuid, parent_seq integer, ordinal integer, id uuid, name text, state text, created_at timestamptz,
               run_at timestamptz, started_at timestamptz, finished_at timestamptz, error text)
LANGUAGE plpgsql STABLE
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    SELECT s.parent, s.parent_seq, s.ordinal, s.id, s.name, s.state, s.created_at, s.run_at, s.started_at, s.finished_at, v.error
      FROM (SELECT c.parent, c.parent_seq, c.ordinal, j.id, j.name, j.state, j.created_at, j.run_at, j.started_at, j.finished_at, w.weight,
                   row_number() OVER (PARTITION BY c.parent, c.parent_seq ORDER BY w.weight, c.ordinal, c.id) AS number
              FROM unnest(parents) p(id) JOIN pgqueue.children c ON c.parent = p.id JOIN pgqueue.jobs j ON j.id = c.id
             CROSS JOIN LATERAL (SELECT array_position('{failed,running,cancelled,waiting,scheduled,ready}'::text[], j.state)) AS w(weight)
             WHERE j.state = ANY (states)) s
      JOIN pgqueue.job_values v ON v.id = s.id
     WHERE s.number <= each
     ORDER BY s.weight, s.parent_seq, s.ordinal, s.id LIMIT amount;
END
$$;
