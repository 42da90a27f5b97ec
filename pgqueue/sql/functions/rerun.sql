-- Run an ended job again as a NEW job, and return its id. It has the name, version, input, queue, priority, key, cost and policy of
-- the old one (a time limit begins again, expires does not), and those of its checkpoints that are before from_step: 1 runs everything
-- again. It has no parent. Of a gather() that began before from_step it has the children of the old job: they are not run again,
-- and not pruned as long as it needs them; those that the end of the old job had cancelled are requeued. by: who asks. id: of the new job, which makes the call safe to repeat.
CREATE OR REPLACE FUNCTION pgqueue.rerun(job uuid, from_step integer DEFAULT 1, by text DEFAULT NULL, id uuid DEFAULT NULL)
RETURNS uuid
LANGUAGE plpgsql VOLATILE
AS $$
#variable_conflict use_column
DECLARE
    old   pgqueue.job;
    again uuid := coalesce(rerun.id, pgqueue.new_id());
    stamp timestamptz := pgqueue.clock();
    ended boolean;
    alone uuid;                                              -- its unique key
    last  integer;
    lost  integer;
    along uuid[];
BEGIN
    PERFORM pgqueue.assert_read_committed();
    PERFORM pgqueue.durable_commit();
    PERFORM FROM pgqueue.outcome o WHERE o.job_id = rerun.job FOR KEY SHARE;            -- prune and requeue leave it alone
    ended := FOUND;
    SELECT * INTO old FROM pgqueue.job j WHERE j.id = rerun.job;
    SELECT coalesce(max(c.seq), 0) INTO last FROM pgqueue.checkpoint c WHERE c.job_id = rerun.job;
    IF old.id IS NULL THEN
        PERFORM pgqueue.refuse('PQ006', format('there is no job %s', rerun.job), 'It was pruned, or its transaction did not commit.');
    ELSIF EXISTS (SELECT FROM pgqueue.job j WHERE j.id = again AND j.policy ->> 'rerun_of' = rerun.job::text) THEN
        RETURN again;
    ELSIF NOT ended THEN
        PERFORM pgqueue.refuse('PQ009', format('job %s is active: it has not ended', rerun.job), 'Cancel it first, or wait for its end.');
    ELSIF coalesce(rerun.from_step, 0) NOT BETWEEN 1 AND least(last + 1, 50000) THEN
        PERFORM pgqueue.refuse('PQ004', format('job %s cannot run again from step %s', rerun.job, rerun.from_step),
                               format('It can from step 1 (everything) to step %s.', least(last + 1, 50000)));
    END IF;
    alone := CASE old.policy #>> '{unique,until}' WHEN 'ended' THEN old.unique_key END;
    INSERT INTO pgqueue.unique_job (key, job_id) SELECT alone, again WHERE alone IS NOT NULL ON CONFLICT (key) DO NOTHING;
    IF alone IS NOT NULL AND NOT FOUND THEN
        PERFORM pgqueue.refuse('PQ011', format('job %s cannot run again: another job is the one of its kind, and has not ended', old.id),
                               'Wait for the end of that job, or cancel it.');
    END IF;
    INSERT INTO pgqueue.job (id, name, queue, priority, input, key, unique_key, policy, version, cost, fair, created_at)
    VALUES (again, old.name, old.queue, old.priority, old.input, old.key, alone,
            (coalesce(old.policy, '{}') - '{deadline,expires_at}'::text[] - CASE WHEN alone IS NULL THEN 'unique' ELSE '' END) || jsonb_strip_nulls(jsonb_build_object('rerun_of', old.id,
                'deadline', stamp + pgqueue.time_limit(old))),
            old.version, old.cost, old.fair, stamp);
    INSERT INTO pgqueue.checkpoint (job_id, seq, name, result, error, claim, xid, created_at)
    SELECT again, c.seq, c.name, c.result, c.error, c.claim, c.xid, c.created_at
      FROM pgqueue.checkpoint c WHERE c.job_id = old.id AND c.seq < rerun.from_step;
    lost := pgqueue.keep_children(old.id, again, rerun.from_step);
    IF lost IS NOT NULL THEN
        PERFORM pgqueue.refuse('PQ009', format('the children that step %s of job %s has started were pruned', lost, old.id),
                               format('Run it again from step %s, or an earlier one.', lost));
    END IF;
    SELECT array_agg(t.job_id) INTO along                    -- what it has started and the end of the old job has taken along
      FROM pgqueue.taken_along t
      JOIN pgqueue.job c ON c.id = t.job_id
      LEFT JOIN pgqueue.kept_children k ON k.job_id = again AND k.seq = c.parent_seq AND k.parent = t.parent
     WHERE t.parent = old.id AND (c.parent_seq < rerun.from_step OR k.job_id IS NOT NULL);
    PERFORM pgqueue.spare(along);
    PERFORM pgqueue.requeue(along, rerun.by);
    DELETE FROM pgqueue.taken_along t WHERE t.parent = old.id AND t.job_id = ANY (along);
    INSERT INTO pgqueue.attempt (job_id, kind, checkpoints, error, by, ended_at)
    VALUES (old.id, 'rerun', (SELECT count(*) FROM pgqueue.checkpoint c WHERE c.job_id = old.id),
            json_build_object('type', 'Rerun', 'message', format('as job %s from step %s', again, rerun.from_step),
                              'job_id', again, 'from_step', rerun.from_step), left(rerun.by, 128), stamp);
    INSERT INTO pgqueue.ready (queue, lane, pos, job_id)                                -- the lane of those that have a history
    VALUES (old.queue, 2 * old.priority, nextval('pgqueue.position'), again);
    PERFORM pgqueue.wake_idle();
    RETURN again;
END
$$;
