-- What follows when jobs have failed or were cancelled, in the transaction that says so: their parents are looked at, the
-- children of a cancelled one are to be cancelled too (so are those of one whose time is over), and what was registered with on_failure is enqueued.
CREATE OR REPLACE FUNCTION pgqueue.ended(jobs uuid[]) RETURNS void
LANGUAGE plpgsql VOLATILE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off
SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $$
DECLARE
    parents  uuid[];
    failures json;
BEGIN
    PERFORM pgqueue.tell_results(jobs);
    SELECT array_agg(DISTINCT j.parent) INTO parents FROM pgqueue.job j WHERE j.id = ANY (jobs) AND j.parent IS NOT NULL;
    IF parents IS NOT NULL THEN
        PERFORM pgqueue.look_again(parents);
    END IF;
    IF pgqueue.take_along(jobs) > 0 THEN
        PERFORM pg_notify('pgqueue_wake', '');
    END IF;
    SELECT json_agg(json_build_object('name', w.on_failure, 'unique', false, 'parent', j.parent, 'meta', j.policy -> 'meta', 'input', json_build_object('failure', json_build_object(
               'job_id', j.id, 'name', j.name, 'error', coalesce(o.error, '{}')::json,
               'input', CASE WHEN octet_length(j.input) < 262144 THEN j.input ELSE '{}' END::json))))
      INTO failures
      FROM pgqueue.outcome o
      JOIN pgqueue.job j ON j.id = o.job_id
      JOIN pgqueue.workflow w ON w.name = j.name
      JOIN pgqueue.workflow f ON f.name = w.on_failure       -- known, so that enqueueing it cannot fail
      JOIN pgqueue.queue q ON q.name = f.queue
     WHERE o.job_id = ANY (jobs) AND o.status = 'failed';
    IF failures IS NOT NULL THEN
        PERFORM pgqueue.enqueue_workflows(failures);
    END IF;
END
$$;
