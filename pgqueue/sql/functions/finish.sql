-- End a job inside the transaction of its only step: its writes and its outcome are one commit. The delete is a fence of
-- its own; without the claim it is an error, and nothing commits. An outcome that exists already is a unique violation, and nothing commits.
CREATE OR REPLACE FUNCTION pgqueue.finish(job uuid, token bigint, result text, xid xid8) RETURNS boolean
LANGUAGE plpgsql VOLATILE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off
AS $$
DECLARE
    parent uuid;
    turn   text;
    alone  uuid;                                             -- its unique key
BEGIN
    IF pg_current_xact_id_if_assigned() IS DISTINCT FROM xid THEN
        PERFORM pgqueue.refuse('PQ008', 'the job ended the transaction it was given, so its outcome cannot commit with its writes',
            'Leave COMMIT and ROLLBACK to pgqueue; use savepoints (with tx.transaction()) inside a transaction.');
    END IF;
    IF current_setting('synchronous_commit') = 'off' THEN     -- asked here too: a call is a tenth of this function's time
        PERFORM pgqueue.durable_commit();
    END IF;
    DELETE FROM pgqueue.running r WHERE r.job_id = job AND r.claim = token RETURNING r.parent, r.limited || '/' || r.key, r.unique_key INTO parent, turn, alone;
    IF NOT FOUND THEN
        PERFORM pgqueue.refuse('PQ009', format('job %s is not held by this claim', job));
    END IF;
    INSERT INTO pgqueue.outcome (job_id, status, result, claim, finished_at)
    VALUES (job, 'succeeded', finish.result, token, pgqueue.clock());
    DELETE FROM pgqueue.cancel_request c WHERE c.job_id = job;
    IF alone IS NOT NULL THEN
        DELETE FROM pgqueue.unique_job u WHERE u.key = alone AND u.job_id = job;
    END IF;
    IF parent IS NOT NULL THEN
        PERFORM pgqueue.look_again(ARRAY[parent]);
    END IF;
    IF (SELECT last_value FROM pgqueue.results_until) > extract(epoch FROM pgqueue.clock()) * 1000 THEN
        PERFORM pgqueue.tell_results(ARRAY[job]);
    END IF;
    IF turn IS NOT NULL THEN
        PERFORM pgqueue.free_turns(ARRAY[turn]);
    END IF;
    RETURN true;
END
$$;
