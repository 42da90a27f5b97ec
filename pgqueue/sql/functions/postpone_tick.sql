-- The ticks of a schedule cannot be enqueued now: say why, and look again in ten seconds. Nothing is lost by that.
CREATE OR REPLACE FUNCTION pgqueue.postpone_tick(schedule text, seen bigint, problem text) RETURNS void
LANGUAGE plpgsql VOLATILE
AS $$
#variable_conflict use_column
BEGIN
    UPDATE pgqueue.schedule s SET next_at = pgqueue.clock() + interval '10 seconds', problem = left(postpone_tick.problem, 1000),
           late_since = CASE WHEN s.problem IS NOT NULL THEN s.late_since WHEN isfinite(s.next_at) THEN s.next_at ELSE pgqueue.clock() END
     WHERE s.ctid = (SELECT o.ctid FROM pgqueue.schedule o
                      WHERE o.name = postpone_tick.schedule AND o.revision = seen FOR UPDATE SKIP LOCKED);
END
$$;
