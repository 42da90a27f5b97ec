-- The part of rerun about children: those that the kept steps of the old job have started are the new one's too. (A gather() starts its
-- children at one step, and waits for them at a later one, which they are numbered by.) Returns the first step whose children are not
-- all there any more; null: all are. How many there were says the checkpoint of that step (see started.py).
CREATE OR REPLACE FUNCTION pgqueue.keep_children(old uuid, new uuid, from_step integer) RETURNS integer
LANGUAGE plpgsql VOLATILE
AS $$
#variable_conflict use_column
DECLARE
    starts integer[];                                        -- the steps that have started children
    lost   integer;
BEGIN
    SELECT coalesce(array_agg(c.seq), '{}') INTO starts FROM pgqueue.checkpoint c
     WHERE c.job_id = keep_children.new AND c.name = 'pgqueue.start' AND c.result IS NOT NULL;
    IF starts = '{}' THEN
        RETURN NULL;
    END IF;
    PERFORM pg_advisory_xact_lock(hashtextextended('pgqueue.kept_children', 0));            -- each prune sees this, or is seen
    INSERT INTO pgqueue.kept_children (job_id, seq, parent)
    SELECT keep_children.new, h.seq, h.parent
      FROM (SELECT j.parent_seq AS seq, j.parent FROM pgqueue.job j
             WHERE j.parent = keep_children.old AND j.ordinal = 0 AND j.id = pgqueue.child_id(j.parent, j.parent_seq, 0)
             UNION
            SELECT k.seq, k.parent FROM pgqueue.kept_children k WHERE k.job_id = keep_children.old) h
     WHERE (SELECT max(c.seq) FROM pgqueue.checkpoint c
             WHERE c.job_id = keep_children.old AND c.name = 'pgqueue.start' AND c.seq < h.seq) = ANY (starts);
    SELECT min(s.seq) INTO lost
      FROM (SELECT c.seq, coalesce(lead(c.seq) OVER (ORDER BY c.seq), 50001) AS next,
                   (SELECT sum((e.value ->> 1)::bigint) FROM json_array_elements(c.result::json) e) AS many
              FROM pgqueue.checkpoint c WHERE c.job_id = keep_children.new AND c.seq = ANY (starts)) s
      LEFT JOIN pgqueue.kept_children k ON k.job_id = keep_children.new AND k.seq > s.seq AND k.seq < s.next
     WHERE (SELECT count(*) FROM pgqueue.job c WHERE c.parent = k.parent AND c.parent_seq = k.seq) <> s.many;
    RETURN lost;
END
$$;
