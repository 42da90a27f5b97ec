-- This host cannot tell when a schedule is due: it may not know its time zone. Another host may, so it is left to them. Where none has come
-- for five seconds: say why, and let all look again in ten, so that one which nobody can read does not keep the others from their ticks.
-- True: that was so.
CREATE OR REPLACE FUNCTION pgqueue.leave_tick(schedule text, seen bigint, problem text) RETURNS boolean
LANGUAGE plpgsql VOLATILE
AS $$
#variable_conflict use_column
BEGIN
    UPDATE pgqueue.schedule s SET next_at = pgqueue.clock() + interval '10 seconds', problem = left(leave_tick.problem, 1000),
           late_since = CASE WHEN s.problem IS NOT NULL THEN s.late_since WHEN isfinite(s.next_at) THEN s.next_at ELSE pgqueue.clock() END
     WHERE s.ctid = (SELECT o.ctid FROM pgqueue.schedule o
                      WHERE o.name = leave_tick.schedule AND o.revision = seen AND o.next_at < pgqueue.clock() - interval '5 seconds'
                        FOR UPDATE SKIP LOCKED);
    RETURN FOUND;
END
$$;
