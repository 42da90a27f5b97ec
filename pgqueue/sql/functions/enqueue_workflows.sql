-- Insert jobs IN THE CALLER'S TRANSACTION: they exist if and only if it commits. Takes a JSON array of objects
-- {"name": ..., "input": {...}, "queue", "id", "priority", "delay", "run_at", "key", "retry", "max_crashes", "unique"} and returns
-- the ids in the same order. The same id with the same name and input is the same job; with other content it is an error.
-- Of a job that is to be unique (see uniqueness) and is there already, it is the id of that one.
CREATE OR REPLACE FUNCTION pgqueue.enqueue_workflows(jobs json) RETURNS SETOF uuid
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off
SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $$
DECLARE
    wanted  pgqueue.job[];
    ids     uuid[];                                         -- where they are not simply those of `wanted`
    own     uuid[] := '{}';                                 -- unique ones that were inserted here
    these   uuid[];
    keyed   text[];                                         -- queues in which a key has a limit
    lined   uuid[];                                         -- due jobs of those
    stamp   timestamptz;                                    -- one for all: each job is due, or it is not
    created bigint;
    other   record;
BEGIN
    LOCK TABLE pgqueue.job IN ROW EXCLUSIVE MODE;            -- a migration that adds a column comes before this call, or behind it
    PERFORM pgqueue.durable_commit();
    SELECT array_agg(d) INTO wanted FROM pgqueue.described_jobs(jobs) d;
    stamp := pgqueue.clock();
    PERFORM FROM unnest(wanted) w WHERE w.unique_key IS NOT NULL LIMIT 1;
    IF FOUND THEN
        SELECT t.ids, t.fresh INTO ids, wanted FROM pgqueue.take_unique(wanted) t;
    END IF;
    PERFORM FROM unnest(wanted) w WHERE w.key IS NOT NULL LIMIT 1;
    IF FOUND THEN
        SELECT array_agg(q.name) INTO keyed
          FROM pgqueue.queue q WHERE q.per_key IS NOT NULL AND q.name = ANY (ARRAY(SELECT DISTINCT w.queue FROM unnest(wanted) w));
    END IF;
    LOOP
        WITH fresh AS (
            INSERT INTO pgqueue.job SELECT w.* FROM unnest(wanted) w
            ON CONFLICT (id) DO NOTHING
            RETURNING id, queue, priority, run_at, fair, unique_key
        ), now_due AS (
            INSERT INTO pgqueue.ready (queue, lane, pos, job_id, fair)
            SELECT f.queue, 2 * f.priority + 1, nextval('pgqueue.position'), f.id, f.fair
              FROM fresh f WHERE (f.run_at IS NULL OR f.run_at <= stamp) AND (f.queue = ANY (keyed)) IS NOT TRUE
        ), later AS (
            INSERT INTO pgqueue.scheduled (job_id, run_at, queue, lane)
            SELECT f.id, f.run_at, f.queue, 2 * f.priority + 1
              FROM fresh f WHERE f.run_at > stamp
        )
        SELECT count(*), array_agg(f.id) FILTER (WHERE f.unique_key IS NOT NULL),
               array_agg(f.id) FILTER (WHERE f.queue = ANY (keyed) AND (f.run_at > stamp) IS NOT TRUE)
          INTO created, these, lined FROM fresh f;
        IF lined IS NOT NULL THEN
            PERFORM pgqueue.line_up(lined);
        END IF;
        own := own || these;
        EXIT WHEN created = coalesce(cardinality(wanted), 0);
        -- Some ids existed: they must be the same jobs. One that was pruned in between is inserted in another round.
        SELECT w.id, w.name, j.id IS NULL AS gone, j.name AS present INTO other
          FROM unnest(wanted) w LEFT JOIN pgqueue.job j ON j.id = w.id
         WHERE j.id IS NULL OR j.name <> w.name OR j.input::jsonb <> w.input::jsonb
         ORDER BY j.id IS NULL LIMIT 1;
        EXIT WHEN NOT FOUND OR (other.gone AND current_setting('transaction_isolation') <> 'read committed');
        IF NOT other.gone THEN
            PERFORM pgqueue.refuse('PQ003', format('job %s exists with another name or input (%s)', other.id, other.present),
                'The same id means the same job: use another id, or enqueue the same workflow with the same input.');
        END IF;
    END LOOP;
    IF ids IS NOT NULL AND created < cardinality(wanted) THEN           -- the same id came at the same moment by another way
        DELETE FROM pgqueue.unique_job u USING unnest(wanted) w
         WHERE u.key = w.unique_key AND u.job_id = w.id AND w.id <> ALL (own);
    END IF;
    IF created > 0 THEN
        PERFORM pgqueue.wake_idle();
    END IF;
    IF ids IS NULL THEN
        RETURN QUERY SELECT w.id FROM unnest(wanted) w;
    ELSE
        RETURN QUERY SELECT i FROM unnest(ids) i;
    END IF;
END
$$;
