-- The ticks of a schedule cannot be enqueued by this host now: say why, and look again in ten seconds. Nothing is lost by that. Only
-- where they have been due for so many seconds: until then another host may do better. True: that was so.
CREATE OR REPLACE FUNCTION pgqueue.postpone_tick(schedule text, seen bigint, problem text, due_for double precision) RETURNS boolean
LANGUAGE plpgsql VOLATILE
AS $$
#variable_conflict use_column
BEGIN
    UPDATE pgqueue.schedule s SET next_at = pgqueue.clock() + interval '10 seconds', problem = left(postpone_tick.problem, 1000),
           late_since = CASE WHEN s.problem IS NOT NULL THEN s.late_since WHEN isfinite(s.next_at) THEN s.next_at ELSE pgqueue.clock() END
     WHERE s.ctid = (SELECT o.ctid FROM pgqueue.schedule o
                      WHERE o.name = postpone_tick.schedule AND o.revision = seen AND o.next_at <= pgqueue.clock() - make_interval(secs => due_for)
                        FOR UPDATE SKIP LOCKED);
    RETURN FOUND;
END
$$;
