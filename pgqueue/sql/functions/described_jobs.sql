-- The rows of job that a JSON array of descriptions asks for, with the defaults of the registered workflow.
-- Whatever is wrong with a description is said here, before anything is written.
CREATE OR REPLACE FUNCTION pgqueue.described_jobs(jobs json) RETURNS SETOF pgqueue.job
LANGUAGE plpgsql VOLATILE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $$
DECLARE
    allowed CONSTANT text[] := '{name,input,queue,id,job_id,priority,delay,run_at,key,retry,max_crashes,
        timeout,expires,meta,version,parent,parent_seq,ordinal,cost,unique}';
    limits pgqueue.installation;
    stamp  timestamptz := pgqueue.clock();
    job    pgqueue.job;
    due    timestamptz;
    how    jsonb;                                            -- how it is unique
    item   record;
BEGIN
    IF json_typeof(jobs) IS DISTINCT FROM 'array' THEN
        PERFORM pgqueue.refuse('PQ004', 'jobs must be a JSON array of objects');
    END IF;
    PERFORM pgqueue.refuse('PQ004', format('%L is not an option of enqueue', k), 'Options: ' || array_to_string(allowed, ', '))
       FROM json_array_elements(jobs) e, json_object_keys(e) k WHERE k <> ALL (allowed) LIMIT 1;
    SELECT * INTO limits FROM pgqueue.installation WHERE only_row;
    FOR item IN
        SELECT g.*, w.name AS known, w.origin, w.queue AS usual_queue, w.priority AS usual_priority, w.key AS key_parameter,
               w.version AS usual_version, w.timeout AS usual_timeout, w.uniqueness, q.name AS declared, q.fair_by
          FROM json_to_recordset(jobs) AS g(name text, input json, queue text, id text, job_id uuid, priority integer,
                                            delay interval, run_at timestamptz, key text, retry jsonb, max_crashes integer,
                                            timeout double precision, expires double precision, meta jsonb, version integer,
                                            parent uuid, parent_seq integer, ordinal integer, cost integer, "unique" jsonb)
          LEFT JOIN pgqueue.workflow w ON w.name = g.name
          LEFT JOIN pgqueue.queue q ON q.name = coalesce(g.queue, w.queue)
    LOOP
        IF item.name IS NULL OR item.name !~ '^[A-Za-z0-9_.:-]{1,128}$' THEN
            PERFORM pgqueue.refuse('PQ004', format('%L cannot be the name of a workflow', left(item.name, 200)),
                                   'Names are 1 to 128 letters, digits and _ . : -');
        ELSIF item.queue IS NULL AND item.known IS NULL THEN
            PERFORM pgqueue.refuse('PQ001', format('no workflow %L is registered', item.name),
                'Run "pgqueue migrate MODULE:APP" or start a worker to register it, or say which queue it goes to.');
        ELSIF item.declared IS NULL THEN
            PERFORM pgqueue.refuse('PQ002', format('there is no queue %L', coalesce(item.queue, item.usual_queue)),
                'Declare it with App(queues=[Queue(...)]) and run "pgqueue migrate MODULE:APP".');
        ELSIF coalesce(json_typeof(item.input), 'object') <> 'object' THEN
            PERFORM pgqueue.refuse('PQ004', 'the input of a job must be a JSON object of parameter names and values');
        ELSIF octet_length(item.input::text) > limits.max_bytes THEN
            PERFORM pgqueue.refuse('PQ005',
                format('the input has %s bytes, the limit is %s', octet_length(item.input::text), limits.max_bytes),
                'Keep large data in a table of your own and pass its key.');
        ELSIF item.priority NOT BETWEEN 0 AND 9 THEN
            PERFORM pgqueue.refuse('PQ004', format('priority %s is not between 0 (first) and 9 (last)', item.priority));
        ELSIF item.delay < interval '0' THEN
            PERFORM pgqueue.refuse('PQ004', format('the delay %s is negative', item.delay));
        ELSIF item.timeout NOT BETWEEN 0.001 AND 31622400000 OR item.expires NOT BETWEEN 0 AND 31622400000 THEN
            PERFORM pgqueue.refuse('PQ004', 'timeout and expires are seconds, up to 1000 years');
        ELSIF jsonb_typeof(item.meta) <> 'object' OR octet_length(item.meta::text) > 8192 THEN
            PERFORM pgqueue.refuse('PQ004', 'meta is a JSON object of up to 8 KiB');
        ELSIF (item.parent IS NOT NULL OR substr(item.job_id::text, 15, 1) <> '7')
              AND NOT has_table_privilege(session_user, 'pgqueue.job', 'INSERT') THEN
            PERFORM pgqueue.refuse('PQ004', 'children, and ids that are not of version 7, are for workers',
                'A producer chooses an id with the option id.');
        ELSIF item.cost NOT BETWEEN 1 AND 1000000 THEN
            PERFORM pgqueue.refuse('PQ004', format('cost %s is not between 1 and 1000000', item.cost));
        ELSIF item.version < 1 THEN
            PERFORM pgqueue.refuse('PQ004', format('version %s is less than 1', item.version));
        ELSIF item.max_crashes < 1 THEN
            PERFORM pgqueue.refuse('PQ004', format('max_crashes %s is less than 1', item.max_crashes));
        ELSIF jsonb_typeof(item.retry) <> 'object' OR item.retry - '{attempts,backoff,cap,jitter}'::text[] <> '{}'
              OR jsonb_typeof(coalesce(item.retry -> 'attempts', '1')) <> 'number' OR (item.retry ->> 'attempts')::numeric < 1
              OR jsonb_typeof(coalesce(item.retry -> 'backoff', '1')) <> 'number' OR (item.retry ->> 'backoff')::numeric NOT BETWEEN 0 AND 31622400000
              OR jsonb_typeof(coalesce(item.retry -> 'cap', '1')) <> 'number' OR (item.retry ->> 'cap')::numeric NOT BETWEEN 0 AND 31622400000
              OR jsonb_typeof(coalesce(item.retry -> 'jitter', 'true')) <> 'boolean' THEN
            PERFORM pgqueue.refuse('PQ004', format('retry %s cannot be used', item.retry),
                'An object: {"attempts": 5, "backoff": seconds, "cap": seconds, "jitter": true}, each of them optional.');
        ELSIF item.run_at IN ('infinity', '-infinity') OR item.run_at >= '9999-01-01' OR item.delay > interval '1000 years' THEN
            PERFORM pgqueue.refuse('PQ004', 'a job can be due until the year 9999');
        ELSIF octet_length(item.key) > 512 OR octet_length(item.id) NOT BETWEEN 1 AND 512 THEN
            PERFORM pgqueue.refuse('PQ004', 'a key or id has 1 to 512 bytes');
        ELSIF strpos(item.input::text, '\u') > 0 AND item.input::jsonb IS NULL THEN
            NULL;                                            -- the cast refuses NUL and lone surrogates
        END IF;
        job.id := CASE WHEN item.id IS NULL THEN coalesce(item.job_id, pgqueue.new_id())
                       ELSE pgqueue.derived_id(coalesce(item.origin, item.name), item.id) END;
        job.name := item.name;
        job.queue := item.declared;
        job.priority := coalesce(item.priority, item.usual_priority, 5);
        job.input := coalesce(item.input::text, '{}');
        job.key := coalesce(item.key, item.input ->> item.key_parameter);
        job.run_at := CASE WHEN item.delay IS NULL THEN item.run_at ELSE coalesce(item.run_at, stamp) + item.delay END;
        how := NULL;
        job.unique_key := NULL;
        IF item."unique" IS NOT NULL OR item.uniqueness IS NOT NULL THEN
            SELECT u.how, u.key INTO how, job.unique_key
              FROM pgqueue.uniqueness(coalesce(item."unique", item.uniqueness), coalesce(item.origin, item.name), item.input) u;
            IF how ->> 'on_conflict' = 'replace' AND item.id IS NOT NULL THEN
                PERFORM pgqueue.refuse('PQ004', 'a job with a chosen id is that one job for ever: it cannot be replaced',
                                       'Leave out the id, or what makes the job unique.');
            ELSIF how ? 'delay' AND job.run_at IS NOT NULL THEN
                PERFORM pgqueue.refuse('PQ004', 'a job that is put off has its delay from there', 'Leave out delay and run_at.');
            END IF;
            job.run_at := coalesce(job.run_at, stamp + make_interval(secs => (how ->> 'delay')::float8));
        END IF;
        due := greatest(job.run_at, stamp);
        job.policy := nullif(jsonb_strip_nulls(jsonb_build_object('retry', item.retry, 'max_crashes', item.max_crashes,
                'timeout', coalesce(item.timeout, item.usual_timeout),
                'deadline', due + make_interval(secs => coalesce(item.timeout, item.usual_timeout)),
                'expires_at', due + make_interval(secs => item.expires)))
            || CASE WHEN item.meta IS NULL THEN '{}' ELSE jsonb_build_object('meta', item.meta) END
            || CASE WHEN how IS NULL THEN '{}' ELSE jsonb_build_object('unique', how) END, '{}');
        job.version := coalesce(item.version, item.usual_version, 1);
        job.parent := item.parent;
        job.parent_seq := item.parent_seq;
        job.ordinal := item.ordinal;
        job.cost := coalesce(item.cost, 1);
        job.fair := pgqueue.for_whom(item.fair_by, job.input);
        job.created_at := stamp;
        RETURN NEXT job;
    END LOOP;
END
$$;
