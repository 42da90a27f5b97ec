-- What a housekeeper has to do, in one question, because an idle host asks it every second: in how many seconds the next scheduled
-- job and the next tick are due (null: none is), and whether jobs wait, have to be cancelled, or belong to workers that are gone.
-- listen: some of its workers are idle. Then producers are asked to notify for so many seconds, before it looks whether they could
-- claim something (see has_work).
CREATE OR REPLACE FUNCTION pgqueue.look(queues text[], listen double precision, OUT work_in double precision,
    OUT promote_in double precision, OUT tick_in double precision, OUT waits boolean, OUT cancels boolean)
LANGUAGE plpgsql VOLATILE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off
SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $$
BEGIN
    IF listen IS NOT NULL THEN
        PERFORM pgqueue.listen_idle(listen);
        work_in := pgqueue.has_work(queues);
    END IF;
    SELECT extract(epoch FROM s.run_at - pgqueue.clock()) INTO promote_in FROM pgqueue.scheduled s ORDER BY s.run_at LIMIT 1;
    SELECT CASE WHEN isfinite(s.next_at) THEN extract(epoch FROM s.next_at - pgqueue.clock()) ELSE 0 END INTO tick_in
      FROM pgqueue.schedule s WHERE s.declared AND NOT s.paused AND s.next_at < 'infinity' ORDER BY s.next_at LIMIT 1;
    waits := EXISTS (SELECT FROM pgqueue.wakeup) OR EXISTS (SELECT FROM pgqueue.waiting)
             OR EXISTS (SELECT FROM pgqueue.rate_register r WHERE r.key <> '' AND r.next < pgqueue.clock_bound() - interval '1 minute');
    cancels := EXISTS (SELECT FROM pgqueue.cancel_request);
END
$$;
