BEGIN;
SET LOCAL check_function_bodies = off;
-- schema.sql
-- Run at the start of every migration: the schema, and the list of numbered files that were applied.
CREATE SCHEMA IF NOT EXISTS pgqueue;

CREATE TABLE IF NOT EXISTS pgqueue.migration (
    number     integer PRIMARY KEY,
    name       text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- functions/clock.sql
-- The time, for stamps. Every other function reads time only through this and clock_bound(): tests replace both.
CREATE OR REPLACE FUNCTION pgqueue.clock() RETURNS timestamptz
LANGUAGE sql VOLATILE
AS $$ SELECT clock_timestamp() $$;

-- functions/clock_bound.sql
-- The time, for index conditions: STABLE, so that an index scan can be bounded by it.
CREATE OR REPLACE FUNCTION pgqueue.clock_bound() RETURNS timestamptz
LANGUAGE sql STABLE
AS $$ SELECT statement_timestamp() $$;

-- tables/0001_core.sql
-- The schema of pgqueue, first version.
--
-- Facts are inserted once and never updated: job, checkpoint, attempt, outcome, cancel_request.
-- Work lists are narrow and hold only live work: ready, running, scheduled, waiting.
-- The state of a job is the work list its row is in, or its outcome: exactly one of the five.
-- There are no foreign keys: their row locks would make unrelated jobs wait for each other.

CREATE TABLE pgqueue.installation (
    only_row  boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    id        uuid NOT NULL DEFAULT gen_random_uuid(),     -- makes ids derived from a text differ between databases
    max_bytes integer NOT NULL DEFAULT 1048576 CHECK (max_bytes BETWEEN 1024 AND 268435456)
);
INSERT INTO pgqueue.installation DEFAULT VALUES;

-- ------------------------------------------------------------------------------------------ configuration

CREATE TABLE pgqueue.queue (
    name       text PRIMARY KEY CHECK (name ~ '^[A-Za-z0-9_.:-]{1,128}$'),
    paused     boolean NOT NULL DEFAULT false,
    created_at timestamptz NOT NULL
);
INSERT INTO pgqueue.queue (name, created_at) VALUES ('default', clock_timestamp());

CREATE TABLE pgqueue.workflow (
    name          text PRIMARY KEY CHECK (name ~ '^[A-Za-z0-9_.:-]{1,128}$'),
    origin        text NOT NULL,                           -- its first registered name: ids are derived from it
    kind          text NOT NULL CHECK (kind IN ('workflow', 'step', 'transaction')),
    queue         text NOT NULL,
    priority      smallint NOT NULL CHECK (priority BETWEEN 0 AND 9),
    max_crashes   integer NOT NULL CHECK (max_crashes > 0),
    key           text,                                    -- the parameter whose value is the job's key
    registered_at timestamptz NOT NULL
);

-- -------------------------------------------------------------------------------------------------- facts

CREATE TABLE pgqueue.job (
    id         uuid PRIMARY KEY,
    name       text NOT NULL CHECK (name ~ '^[A-Za-z0-9_.:-]{1,128}$'),
    queue      text NOT NULL,
    priority   smallint NOT NULL CHECK (priority BETWEEN 0 AND 9),
    input      text NOT NULL,                              -- JSON as text: a replay gets the same bytes back
    key        text CHECK (octet_length(key) <= 512),
    policy     jsonb,                                      -- what this job overrides: retry, max_crashes
    run_at     timestamptz CHECK (isfinite(run_at) AND run_at < '9999-01-01'),
    parent     uuid,
    created_at timestamptz NOT NULL
);
CREATE INDEX job_parent ON pgqueue.job (parent) WHERE parent IS NOT NULL;

CREATE TABLE pgqueue.checkpoint (
    job_id     uuid NOT NULL,
    seq        integer NOT NULL CHECK (seq BETWEEN 1 AND 50000),
    name       text NOT NULL,
    result     text,
    error      text,
    claim      bigint NOT NULL,
    xid        xid8 NOT NULL,                              -- the transaction that also holds the step's writes
    created_at timestamptz NOT NULL,
    PRIMARY KEY (job_id, seq),
    CHECK ((result IS NULL) <> (error IS NULL))
);

CREATE TABLE pgqueue.attempt (
    id          uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    job_id      uuid NOT NULL,
    claim       bigint,
    seq         integer,                                   -- the step that failed; null: the job itself
    kind        text NOT NULL CHECK (kind IN ('error', 'crash', 'timeout', 'lost', 'requeue')),
    checkpoints integer NOT NULL,                          -- how many the job had then: a new one resets the crashes
    error       text,
    worker      uuid,
    host        text,
    started_at  timestamptz,
    ended_at    timestamptz NOT NULL
);
CREATE INDEX attempt_job ON pgqueue.attempt (job_id);

CREATE TABLE pgqueue.outcome (
    job_id      uuid PRIMARY KEY,                          -- a job ends once: this key is that promise
    status      text NOT NULL CHECK (status IN ('succeeded', 'failed', 'cancelled')),
    result      text,
    error       text,
    failed_seqs integer[] NOT NULL DEFAULT '{}',           -- the steps whose error ended the job: requeue runs these again
    claim       bigint,
    finished_at timestamptz NOT NULL
);
CREATE INDEX outcome_finished ON pgqueue.outcome (finished_at);

CREATE TABLE pgqueue.cancel_request (
    job_id       uuid PRIMARY KEY,
    requested_at timestamptz NOT NULL
);

-- --------------------------------------------------------------------------------------------- work lists

-- lane = 2 * priority for jobs that come back, 2 * priority + 1 for fresh ones; pos is always fresh.
CREATE TABLE pgqueue.ready (
    queue  text NOT NULL,
    lane   smallint NOT NULL CHECK (lane BETWEEN 0 AND 19),
    pos    bigint NOT NULL,
    job_id uuid NOT NULL,
    suspect boolean NOT NULL DEFAULT false,                -- its last worker died: it had better begin alone
    PRIMARY KEY (queue, lane, pos)
);

CREATE TABLE pgqueue.running (
    job_id     uuid PRIMARY KEY,                           -- one holder at any moment
    claim      bigint NOT NULL,                            -- (job_id, claim) is the fence
    worker     uuid NOT NULL,
    queue      text NOT NULL,
    lane       smallint NOT NULL,
    pos        bigint NOT NULL,
    started_at timestamptz NOT NULL,
    suspect    boolean NOT NULL DEFAULT false
);
CREATE INDEX running_worker ON pgqueue.running (worker);

CREATE TABLE pgqueue.scheduled (
    job_id uuid PRIMARY KEY,
    run_at timestamptz NOT NULL CHECK (isfinite(run_at) AND run_at < '9999-01-01'),
    queue  text NOT NULL,
    lane   smallint NOT NULL
);
CREATE INDEX scheduled_run_at ON pgqueue.scheduled (run_at);

CREATE TABLE pgqueue.waiting (
    job_id uuid PRIMARY KEY,
    kind   text NOT NULL CHECK (kind IN ('name')),
    key    text NOT NULL,
    until  timestamptz,
    queue  text NOT NULL,
    lane   smallint NOT NULL
);
CREATE INDEX waiting_key ON pgqueue.waiting (kind, key);
CREATE INDEX waiting_until ON pgqueue.waiting (until) WHERE until IS NOT NULL;

-- Work lists live by being emptied: vacuum them early, and never give the tail back under an exclusive lock.
ALTER TABLE pgqueue.ready     SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, vacuum_truncate = off);
ALTER TABLE pgqueue.running   SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, vacuum_truncate = off);
ALTER TABLE pgqueue.scheduled SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, vacuum_truncate = off);
ALTER TABLE pgqueue.waiting   SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, vacuum_truncate = off);

-- ---------------------------------------------------------------------------------------------- processes

CREATE TABLE pgqueue.worker (
    id          uuid PRIMARY KEY,                          -- one process incarnation, never reused
    host        text NOT NULL,
    boot_id     text NOT NULL,                             -- with pid_ns, pid and start_ticks: is that process still there?
    pid_ns      text NOT NULL,
    pid         integer NOT NULL,
    start_ticks bigint NOT NULL,
    beat        bigint NOT NULL DEFAULT 0,                 -- a number, not a time: leases compare no clocks
    fenced_at   timestamptz,
    reason      text,
    started     uuid[],                                    -- when it died, these had begun; null: nobody knows
    started_at  timestamptz NOT NULL
) WITH (fillfactor = 50);

CREATE SEQUENCE pgqueue.position;
CREATE SEQUENCE pgqueue.conflict;                          -- counts rows that the invariant says cannot exist
-- Until when somebody is idle and listening, in milliseconds. A sequence, because it must be read and written outside
-- transactions: a SERIALIZABLE producer must never fail because a worker went idle.
CREATE UNLOGGED SEQUENCE pgqueue.idle_until MINVALUE 0 START 0;

-- (record)
INSERT INTO pgqueue.migration (number, name) VALUES (1, 'core');
-- tables/0002_durable.sql
-- Durable workflows: jobs that wait for a time, an event, a message or another job, children, time limits, versions.

-- These have a column or a parameter more from now on.
DROP FUNCTION IF EXISTS pgqueue.reap(uuid, uuid[], text, text);
DROP FUNCTION IF EXISTS pgqueue.cancel(uuid[]);
DROP FUNCTION IF EXISTS pgqueue.claim(uuid, bigint, text[], text[], integer, bigint[], boolean);
DROP FUNCTION IF EXISTS pgqueue.claim_known(uuid, bigint, text[], text[], integer);
DROP FUNCTION IF EXISTS pgqueue.requeue(uuid[]);

ALTER TABLE pgqueue.job
    ADD COLUMN parent_seq integer,                         -- the step of the parent that it belongs to
    ADD COLUMN ordinal    integer,                         -- which of the jobs of that step
    ADD COLUMN version    integer NOT NULL DEFAULT 1 CHECK (version > 0);
DROP INDEX pgqueue.job_parent;
CREATE INDEX job_parent ON pgqueue.job (parent, parent_seq, ordinal) WHERE parent IS NOT NULL;

ALTER TABLE pgqueue.cancel_request ADD COLUMN hard boolean NOT NULL DEFAULT false;    -- kill the worker that runs it
CREATE INDEX cancel_request_hard ON pgqueue.cancel_request (job_id) WHERE hard;

ALTER TABLE pgqueue.workflow
    ADD COLUMN version    integer NOT NULL DEFAULT 1,      -- the version of jobs whose producer does not have the code
    ADD COLUMN timeout    double precision,                -- seconds
    ADD COLUMN on_failure text;                            -- the workflow that is enqueued when a job of this one fails

-- A wait of a job that left its worker: the point in its history where it waits, for what, and until when.
CREATE TABLE pgqueue.wait (
    job_id   uuid NOT NULL,
    seq      integer NOT NULL CHECK (seq BETWEEN 1 AND 50000),
    name     text NOT NULL,
    kind     text NOT NULL CHECK (kind IN ('sleep', 'event', 'message', 'job', 'children')),
    key      text NOT NULL,
    until    timestamptz CHECK (isfinite(until) AND until < '9999-01-01'),
    began_at timestamptz NOT NULL,
    PRIMARY KEY (job_id, seq)
);

CREATE INDEX wait_event ON pgqueue.wait (key) WHERE kind = 'event';

CREATE TABLE pgqueue.event (
    key     text PRIMARY KEY CHECK (octet_length(key) BETWEEN 1 AND 512),
    value   text NOT NULL,                                 -- JSON as text
    sent_at timestamptz NOT NULL
);
CREATE INDEX event_sent ON pgqueue.event (sent_at);

CREATE TABLE pgqueue.message (
    job_id  uuid NOT NULL,
    topic   text NOT NULL CHECK (octet_length(topic) BETWEEN 1 AND 512),
    pos     bigint NOT NULL,
    value   text NOT NULL,
    sent_at timestamptz NOT NULL,
    PRIMARY KEY (job_id, topic, pos)
);

-- What running jobs say of themselves: how far they are (the last word), and streams of values (all of them).
CREATE TABLE pgqueue.progress (
    job_id      uuid PRIMARY KEY,
    fraction    double precision CHECK (fraction BETWEEN 0 AND 1),
    note        text,
    reported_at timestamptz NOT NULL
) WITH (fillfactor = 50);

CREATE TABLE pgqueue.stream (
    job_id     uuid NOT NULL,
    name       text NOT NULL,
    pos        integer NOT NULL CHECK (pos > 0),           -- 1, 2, 3, ... without gaps
    value      text NOT NULL,
    written_at timestamptz NOT NULL,
    PRIMARY KEY (job_id, name, pos)
);

CREATE TABLE pgqueue.stream_end (
    job_id uuid NOT NULL,
    name   text NOT NULL CHECK (octet_length(name) BETWEEN 1 AND 512),
    last   integer NOT NULL,
    PRIMARY KEY (job_id, name)
) WITH (fillfactor = 50);

CREATE UNLOGGED SEQUENCE pgqueue.results_until MINVALUE 0 START 0;   -- until when somebody waits for results (ms)

-- "Look again": whoever writes something that a waiting job may wait for adds a row here in the same transaction, and so does
-- whoever puts a job into `waiting`. Each is looked at after its commit, so the one that commits last sees both.
CREATE TABLE pgqueue.wakeup (
    pos    bigint PRIMARY KEY,
    event  text,                                           -- at those that wait for this event
    job_id uuid,                                           -- at this job
    ended  uuid,                                           -- at what follows from the end of this job
    CHECK (num_nonnulls(event, job_id, ended) = 1)
);
ALTER TABLE pgqueue.wakeup SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, vacuum_truncate = off);

ALTER TABLE pgqueue.waiting DROP CONSTRAINT waiting_kind_check;
ALTER TABLE pgqueue.waiting ADD CONSTRAINT waiting_kind_check CHECK (kind IN ('name', 'event', 'message', 'job', 'children'));
ALTER TABLE pgqueue.running ADD COLUMN parent uuid;        -- who may wait for this job

-- Who asked for it: a person, where one did.
ALTER TABLE pgqueue.attempt ADD COLUMN by text CHECK (octet_length(by) <= 512);
ALTER TABLE pgqueue.cancel_request ADD COLUMN by text CHECK (octet_length(by) <= 512);
ALTER TABLE pgqueue.attempt DROP CONSTRAINT attempt_kind_check;
ALTER TABLE pgqueue.attempt ADD CONSTRAINT attempt_kind_check
    CHECK (kind IN ('error', 'crash', 'timeout', 'lost', 'requeue', 'rerun'));

-- A job that was made by rerun() goes on with the children that the job before it had started: at this step it has those of `parent`.
CREATE TABLE pgqueue.kept_children (
    job_id uuid NOT NULL,
    seq    integer NOT NULL,
    parent uuid NOT NULL,
    PRIMARY KEY (job_id, seq)
);
CREATE INDEX kept_children_parent ON pgqueue.kept_children (parent, seq);

-- (record)
INSERT INTO pgqueue.migration (number, name) VALUES (2, 'durable');
-- tables/0003_schedules.sql
-- Schedules: what is enqueued at which times, and the ticks that were dealt with.

DROP FUNCTION IF EXISTS pgqueue.register_app(json, json);

CREATE TABLE pgqueue.schedule (
    name       text PRIMARY KEY CHECK (name ~ '^[A-Za-z0-9_.:-]{1,128}$'),
    workflow   text NOT NULL,
    cron       text CHECK (octet_length(cron) <= 256),
    every      double precision CHECK (every BETWEEN 1 AND 31622400),         -- seconds, counted from 1970 in UTC
    timezone   text NOT NULL DEFAULT 'UTC' CHECK (octet_length(timezone) <= 128),
    input      text NOT NULL DEFAULT '{}',                 -- JSON as text
    queue      text,                                       -- null: that of the workflow
    priority   smallint CHECK (priority BETWEEN 0 AND 9),
    misfire    text NOT NULL DEFAULT 'once' CHECK (misfire IN ('skip', 'once', 'all')),
    grace      double precision NOT NULL DEFAULT 60 CHECK (grace BETWEEN 1 AND 31622400),     -- seconds a tick may be late
    overlap    boolean NOT NULL DEFAULT true,
    origin     text NOT NULL CHECK (origin IN ('app', 'operator')),
    app        text,                                       -- the App that declares it
    declared   boolean NOT NULL DEFAULT true,              -- by the App as it was registered last
    paused     boolean NOT NULL DEFAULT false,             -- by an operator: no registration changes it
    paused_by  text CHECK (octet_length(paused_by) <= 512),
    revision   bigint NOT NULL DEFAULT 1,                  -- counts the changes: who has seen an older one may not tick
    done_until timestamptz NOT NULL,                       -- all ticks up to here are dealt with; never goes back
    next_at    timestamptz NOT NULL DEFAULT '-infinity',   -- when to look again; -infinity: at once, infinity: never
    last_at    timestamptz,                                -- the last tick that got a job
    live       uuid[] NOT NULL DEFAULT '{}',               -- without overlap: its jobs that may not have ended yet
    problem    text,                                       -- why its ticks cannot be enqueued
    CHECK (num_nonnulls(cron, every) = 1)
) WITH (fillfactor = 50);
CREATE INDEX schedule_next ON pgqueue.schedule (next_at) WHERE declared AND NOT paused;
ALTER TABLE pgqueue.schedule SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000, vacuum_truncate = off);

-- A moment at which a schedule was due, and what came of it: one row, so a double is impossible.
CREATE TABLE pgqueue.tick (
    schedule  text NOT NULL,
    due_at    timestamptz NOT NULL CHECK (isfinite(due_at)),
    job_id    uuid,                                        -- null: it was left out
    why       text NOT NULL CHECK (why IN ('due', 'late', 'missed', 'overlap', 'backfill')),
    since     timestamptz,                                 -- late, missed: this row stands for all ticks from there on
    ticked_at timestamptz NOT NULL,
    PRIMARY KEY (schedule, due_at),
    CHECK ((job_id IS NULL) = (why IN ('missed', 'overlap')))
);
CREATE INDEX tick_ticked ON pgqueue.tick (ticked_at);

-- (record)
INSERT INTO pgqueue.migration (number, name) VALUES (3, 'schedules');
-- tables/0004_limits.sql
-- Limits: how many jobs of a queue, or of a key in it, may run at once, and begin in a time; and whose turn it is.

DROP FUNCTION IF EXISTS pgqueue.claim(uuid, bigint, text[], text[], integer, bigint[], boolean);
DROP FUNCTION IF EXISTS pgqueue.stats();
DROP FUNCTION IF EXISTS pgqueue.has_work(text[]);
DROP FUNCTION IF EXISTS pgqueue.claim_known(uuid, bigint, text[], text[], integer);

ALTER TABLE pgqueue.queue
    ADD COLUMN declared     jsonb NOT NULL DEFAULT '{}',   -- what the App says
    ADD COLUMN chosen       jsonb NOT NULL DEFAULT '{}',   -- what an operator has said: it wins
    -- What is in force: written by apply_limits() and nobody else. A limited queue is claimed under its lock.
    ADD COLUMN concurrency  integer CHECK (concurrency > 0),
    ADD COLUMN per_key      integer CHECK (per_key > 0),
    ADD COLUMN rate         integer CHECK (rate > 0),
    ADD COLUMN rate_seconds double precision CHECK (rate_seconds > 0),
    ADD COLUMN rate_burst   integer CHECK (rate_burst > 0),
    ADD COLUMN key_rate         integer CHECK (key_rate > 0),
    ADD COLUMN key_rate_seconds double precision CHECK (key_rate_seconds > 0),
    ADD COLUMN key_rate_burst   integer CHECK (key_rate_burst > 0),
    ADD COLUMN fair_by      text,                          -- the parameter whose value says who it is for
    ADD COLUMN limited      boolean NOT NULL DEFAULT false,
    ADD COLUMN uncounted    boolean NOT NULL DEFAULT false;  -- jobs may run that were claimed before it was limited

ALTER TABLE pgqueue.job
    ADD COLUMN cost integer NOT NULL DEFAULT 1 CHECK (cost BETWEEN 1 AND 1000000),
    ADD COLUMN fair text;

ALTER TABLE pgqueue.ready ADD COLUMN fair text;            -- who it is for, in a queue that is shared fairly
CREATE INDEX ready_fair ON pgqueue.ready (queue, lane, fair, pos) WHERE fair IS NOT NULL;

ALTER TABLE pgqueue.running
    ADD COLUMN limited text,                               -- its queue, if that has limits
    ADD COLUMN key     text,
    ADD COLUMN cost    integer;
CREATE INDEX running_limited ON pgqueue.running (limited, key) INCLUDE (cost) WHERE limited IS NOT NULL;

-- kind key: put aside, because as many jobs of its key ("queue/key") as may do run. In the order of pos it has its turn.
ALTER TABLE pgqueue.waiting DROP CONSTRAINT waiting_kind_check;
ALTER TABLE pgqueue.waiting ADD CONSTRAINT waiting_kind_check CHECK (kind IN ('name', 'event', 'message', 'job', 'children', 'key'));
ALTER TABLE pgqueue.waiting ADD COLUMN pos bigint;
CREATE INDEX waiting_turn ON pgqueue.waiting (key, pos) WHERE kind = 'key';

ALTER TABLE pgqueue.wakeup ADD COLUMN turn text;           -- at those that wait for their turn at this "queue/key"
ALTER TABLE pgqueue.wakeup DROP CONSTRAINT wakeup_check;
ALTER TABLE pgqueue.wakeup ADD CONSTRAINT wakeup_check CHECK (num_nonnulls(event, job_id, ended, turn) = 1);

-- When the next job may begin (key '': of the whole queue). It never goes back.
CREATE TABLE pgqueue.rate_register (
    queue text NOT NULL,
    key   text NOT NULL,
    next  timestamptz NOT NULL,
    PRIMARY KEY (queue, key)
) WITH (fillfactor = 50);
CREATE INDEX rate_register_next ON pgqueue.rate_register (next) WHERE key <> '';

-- Fair queues: who was served last, and who has more than one share.
CREATE TABLE pgqueue.fair_turn (
    queue text PRIMARY KEY,
    last  text NOT NULL
) WITH (fillfactor = 50);
CREATE TABLE pgqueue.fair_weight (
    queue  text NOT NULL,
    fair   text NOT NULL,
    weight integer NOT NULL CHECK (weight BETWEEN 1 AND 1000),
    PRIMARY KEY (queue, fair)
);

-- (record)
INSERT INTO pgqueue.migration (number, name) VALUES (4, 'limits');
-- views/attempts.sql
-- Every run that did not succeed: when, where, which step, and why. And every requeue and rerun, and who asked for it.
CREATE OR REPLACE VIEW pgqueue.attempts AS
SELECT a.job_id, a.seq, a.kind, a.error, a.checkpoints, a.worker, a.host, a.started_at, a.ended_at, a.by
  FROM pgqueue.attempt a;

-- views/beats.sql
-- What a housekeeper watches to see which leases are over, and which workers of its own host have no process any more.
CREATE OR REPLACE VIEW pgqueue.beats AS
SELECT w.id, w.beat, w.boot_id, w.pid_ns, w.pid, w.start_ticks FROM pgqueue.worker w WHERE w.fenced_at IS NULL;

-- views/children.sql
-- The jobs that each job has started, and at which of its steps. A rerun also has those of the job before it that it has kept.
CREATE OR REPLACE VIEW pgqueue.children AS
SELECT j.parent, j.parent_seq, j.ordinal, j.id FROM pgqueue.job j WHERE j.parent IS NOT NULL
 UNION ALL
SELECT k.job_id, k.seq, j.ordinal, j.id
  FROM pgqueue.kept_children k
  JOIN pgqueue.job j ON j.parent = k.parent AND j.parent_seq = k.seq;

-- views/job_values.sql
-- Input, result and error of each job, as the JSON text that was stored.
CREATE OR REPLACE VIEW pgqueue.job_values AS
SELECT j.id, j.name, coalesce(o.status, 'active') AS status, j.input, o.result, o.error, o.failed_seqs, j.policy
  FROM pgqueue.job j
  LEFT JOIN pgqueue.outcome o ON o.job_id = j.id;

-- views/jobs.sql
-- One row per job, with its state. What people query. No payloads: those are in job_values.
CREATE OR REPLACE VIEW pgqueue.jobs AS
SELECT j.id, j.name, j.queue, j.priority,
       CASE WHEN o.job_id IS NOT NULL THEN o.status
            WHEN r.job_id IS NOT NULL THEN 'running'
            WHEN s.job_id IS NOT NULL THEN 'scheduled'
            WHEN w.job_id IS NOT NULL THEN 'waiting'
            ELSE 'ready' END AS state,                       -- by elimination: `ready` has no index by job
       j.key, j.parent, j.created_at, coalesce(s.run_at, j.run_at) AS run_at,
       r.started_at, r.worker, w.kind AS waiting_for, w.key AS waiting_key, o.finished_at,
       c.job_id IS NOT NULL AS cancel_requested,
       j.version, j.parent_seq, j.ordinal, w.until AS waiting_until, c.by AS cancel_by
  FROM pgqueue.job j
  LEFT JOIN pgqueue.outcome o ON o.job_id = j.id
  LEFT JOIN pgqueue.running r ON r.job_id = j.id
  LEFT JOIN pgqueue.scheduled s ON s.job_id = j.id
  LEFT JOIN pgqueue.waiting w ON w.job_id = j.id
  LEFT JOIN pgqueue.cancel_request c ON c.job_id = j.id;

-- views/queues.sql
-- The queues that exist.
CREATE OR REPLACE VIEW pgqueue.queues AS
SELECT q.name, q.paused, q.created_at FROM pgqueue.queue q;

-- views/schedules.sql
-- One row per schedule: what operators look at.
CREATE OR REPLACE VIEW pgqueue.schedules AS
SELECT s.name, s.workflow, s.cron, s.every, s.timezone,
       CASE WHEN s.declared AND NOT s.paused AND isfinite(s.next_at) THEN s.next_at END AS next_at,      -- null: nobody has looked yet
       s.last_at, s.paused, s.misfire, s.overlap, s.origin, s.declared, s.grace, s.input, s.queue, s.priority, s.app, s.paused_by,
       s.problem, s.done_until
  FROM pgqueue.schedule s;

-- views/steps.sql
-- The checkpoints of jobs: what each step returned, or its final error.
CREATE OR REPLACE VIEW pgqueue.steps AS
SELECT c.job_id, c.seq, c.name, CASE WHEN c.error IS NULL THEN 'succeeded' ELSE 'failed' END AS status,
       c.result, c.error, c.created_at
  FROM pgqueue.checkpoint c;

-- views/ticks.sql
-- The moments at which schedules were due, and what came of each.
CREATE OR REPLACE VIEW pgqueue.ticks AS
SELECT t.schedule, t.due_at, t.job_id, t.why, t.since, t.ticked_at
  FROM pgqueue.tick t;

-- views/violations.sql
-- The invariant: every job has exactly one row over the work lists and outcome. This view shows those that do not, and is
-- empty in every snapshot. It reads everything: for tests and for pgqueue doctor.
CREATE OR REPLACE VIEW pgqueue.violations AS
SELECT coalesce(j.id, p.job_id) AS job_id, coalesce(p.places, '{}') AS places
  FROM pgqueue.job j
  FULL JOIN (SELECT u.job_id, array_agg(u.place ORDER BY u.place) AS places
               FROM (SELECT job_id, 'ready' AS place FROM pgqueue.ready
                     UNION ALL SELECT job_id, 'running' FROM pgqueue.running
                     UNION ALL SELECT job_id, 'scheduled' FROM pgqueue.scheduled
                     UNION ALL SELECT job_id, 'waiting' FROM pgqueue.waiting
                     UNION ALL SELECT job_id, 'outcome' FROM pgqueue.outcome) u
              GROUP BY u.job_id) p ON p.job_id = j.id
 WHERE j.id IS NULL OR p.job_id IS NULL OR cardinality(p.places) <> 1;

-- views/waits.sql
-- What jobs wait for, or waited for, and where in their history. Open: there is no answer yet.
CREATE OR REPLACE VIEW pgqueue.waits AS
SELECT w.job_id, w.seq, w.name, w.kind, w.key, w.until, w.began_at, c.job_id IS NULL AS open
  FROM pgqueue.wait w
  LEFT JOIN pgqueue.checkpoint c ON c.job_id = w.job_id AND c.seq = w.seq;

-- views/workers.sql
-- Worker processes, and how many jobs each holds.
CREATE OR REPLACE VIEW pgqueue.workers AS
SELECT w.id, w.host, w.pid, w.started_at, w.beat, w.fenced_at, w.reason,
       (SELECT count(*) FROM pgqueue.running r WHERE r.worker = w.id) AS jobs
  FROM pgqueue.worker w;

-- functions/add_schedule.sql
-- Make a schedule of one's own, which no App declares: a cron expression or an interval, for a registered workflow. Or change it; then
-- it counts from now on. The housekeepers read cron and timezone: what they cannot read is the schedule's problem, in the view schedules.
CREATE OR REPLACE FUNCTION pgqueue.add_schedule(
    name text, workflow text, cron text DEFAULT NULL, every interval DEFAULT NULL, timezone text DEFAULT 'UTC', input json DEFAULT '{}',
    queue text DEFAULT NULL, priority integer DEFAULT NULL, misfire text DEFAULT 'once', grace interval DEFAULT '1 minute',
    overlap boolean DEFAULT true)
RETURNS void
LANGUAGE plpgsql VOLATILE
AS $$
#variable_conflict use_column
DECLARE
    stamp timestamptz := pgqueue.clock();
BEGIN
    PERFORM pgqueue.assert_read_committed();
    PERFORM pgqueue.durable_commit();
    PERFORM pgqueue.described_jobs(json_build_array(json_build_object(                  -- refuses what could not be enqueued
        'name', workflow, 'input', input, 'queue', queue, 'priority', priority)));
    IF num_nonnulls(cron, every) <> 1 THEN
        PERFORM pgqueue.refuse('PQ004', 'a schedule has either a cron expression or an interval');
    ELSIF coalesce(name, '') !~ '^[A-Za-z0-9_.:-]{1,128}$' OR coalesce(misfire, '') NOT IN ('skip', 'once', 'all') OR octet_length(cron) > 256
          OR every NOT BETWEEN interval '1 second' AND interval '366 days' OR grace NOT BETWEEN interval '1 second' AND interval '366 days' THEN
        PERFORM pgqueue.refuse('PQ004', format('schedule %L cannot be as it was said', left(name, 200)),
            'A name has 1 to 128 letters, digits and _ . : -, misfire is skip, once or all, and an interval is from 1 second to 366 days.');
    END IF;
    INSERT INTO pgqueue.schedule AS old (name, workflow, cron, every, timezone, input, queue, priority, misfire, grace, overlap, origin, done_until)
    VALUES (add_schedule.name, add_schedule.workflow, add_schedule.cron, extract(epoch FROM add_schedule.every), add_schedule.timezone,
            coalesce(add_schedule.input::text, '{}'), add_schedule.queue, add_schedule.priority, add_schedule.misfire,
            extract(epoch FROM add_schedule.grace), add_schedule.overlap, 'operator', stamp)
    ON CONFLICT (name) DO UPDATE
       SET workflow = excluded.workflow, cron = excluded.cron, every = excluded.every, timezone = excluded.timezone, input = excluded.input,
           queue = excluded.queue, priority = excluded.priority, misfire = excluded.misfire, grace = excluded.grace,
           overlap = excluded.overlap, revision = old.revision + 1, done_until = greatest(old.done_until, stamp), next_at = '-infinity',
           problem = NULL
     WHERE old.origin = 'operator';
    IF NOT FOUND THEN
        PERFORM pgqueue.refuse('PQ009', format('schedule %L is declared by the App %s', name,
            (SELECT o.app FROM pgqueue.schedule o WHERE o.name = add_schedule.name)), 'Choose another name, or change it there.');
    END IF;
END
$$;

-- functions/advance_children.sql
-- Remember how far the children of waiting parents have come, so that a parent of thousands does not look at all of them each
-- time that one ends. Locks the parents first (waiting for others that do the same), so that what is read afterwards is not old.
CREATE OR REPLACE FUNCTION pgqueue.advance_children(jobs uuid[]) RETURNS void
LANGUAGE plpgsql VOLATILE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off
SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $$
BEGIN
    PERFORM FROM pgqueue.waiting w WHERE w.job_id = ANY (jobs) AND w.kind = 'children' ORDER BY w.job_id FOR UPDATE;
    IF FOUND THEN
        UPDATE pgqueue.waiting w SET key = split_part(w.key, ':', 1) || ':' || n.first
          FROM (SELECT w.job_id, pgqueue.next_child(w.job_id, w.key) AS first
                  FROM pgqueue.waiting w WHERE w.job_id = ANY (jobs) AND w.kind = 'children') n
         WHERE w.job_id = n.job_id AND n.first >= split_part(w.key, ':', 2)::integer + 100;
    END IF;
END
$$;

-- functions/apply_limits.sql
-- Puts the limits of a queue in force: what the App declares, and over it what an operator has chosen. Waits until nobody claims from
-- it; whoever claims next obeys.
CREATE OR REPLACE FUNCTION pgqueue.apply_limits(queue text) RETURNS void
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    said jsonb;
BEGIN
    PERFORM pg_advisory_xact_lock(pgqueue.queue_lock(queue));
    SELECT jsonb_strip_nulls(q.declared || q.chosen) INTO said FROM pgqueue.queue q WHERE q.name = apply_limits.queue;
    UPDATE pgqueue.queue q
       SET concurrency = (said ->> 'concurrency')::integer,
           per_key = (said ->> 'per_key')::integer,
           rate = (said #>> '{rate,n}')::integer,
           rate_seconds = (said #>> '{rate,per}')::float8,
           rate_burst = (said #>> '{rate,burst}')::integer,
           key_rate = (said #>> '{rate_per_key,n}')::integer,
           key_rate_seconds = (said #>> '{rate_per_key,per}')::float8,
           key_rate_burst = (said #>> '{rate_per_key,burst}')::integer,
           fair_by = said ->> 'fair_by',
           uncounted = q.uncounted OR NOT q.limited,
           limited = said ?| '{concurrency,per_key,rate,rate_per_key,fair_by}'
     WHERE q.name = apply_limits.queue;
    PERFORM pgqueue.wake_idle();
END
$$;

-- functions/assert_read_committed.sql
-- Verbs of several statements rely on each statement seeing what was committed before it.
CREATE OR REPLACE FUNCTION pgqueue.assert_read_committed() RETURNS void
LANGUAGE plpgsql STABLE
AS $$
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        PERFORM pgqueue.refuse('PQ007', 'this pgqueue function must run in a READ COMMITTED transaction',
                               'Begin it with BEGIN ISOLATION LEVEL READ COMMITTED.');
    END IF;
END
$$;

-- functions/attempts.sql
-- How often a step (seq), or the job itself (null), has failed. A requeue starts the count again, and for a step also a
-- new try of the whole job does.
CREATE OR REPLACE FUNCTION pgqueue.attempts(job uuid, step integer) RETURNS bigint
LANGUAGE sql STABLE
AS $$
    SELECT count(*) FROM pgqueue.attempt a
     WHERE a.job_id = job AND a.seq IS NOT DISTINCT FROM step AND a.kind IN ('error', 'timeout')
       AND a.ended_at > coalesce((SELECT max(b.ended_at) FROM pgqueue.attempt b
                                   WHERE b.job_id = job
                                     AND (b.kind = 'requeue' OR (step IS NOT NULL AND b.kind = 'error' AND b.seq IS NULL))),
                                 '-infinity')
$$;

-- functions/awaited.sql
-- Which of these jobs have ended, or do not exist. For the next so many seconds, ends are announced on the channel
-- pgqueue_results: their ids, one behind the other.
CREATE OR REPLACE FUNCTION pgqueue.awaited(jobs uuid[], seconds double precision) RETURNS SETOF uuid
LANGUAGE plpgsql VOLATILE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off
SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $$
BEGIN
    PERFORM setval('pgqueue.results_until', (extract(epoch FROM pgqueue.clock()) * 1000 + seconds * 1000)::bigint);
    RETURN QUERY
    SELECT g.id
      FROM unnest(jobs) g(id)
      LEFT JOIN pgqueue.job j ON j.id = g.id
      LEFT JOIN pgqueue.outcome o ON o.job_id = g.id
     WHERE j.id IS NULL OR o.job_id IS NOT NULL;
END
$$;

-- functions/backfill_schedule.sql
-- Enqueue a job for each of these ticks of a schedule that got none: because it was paused, not yet there, or too late. Returns how
-- many that were: of the same ticks again, none.
CREATE OR REPLACE FUNCTION pgqueue.backfill_schedule(schedule text, ticks timestamptz[]) RETURNS bigint
LANGUAGE plpgsql VOLATILE
AS $$
#variable_conflict use_column
DECLARE
    s     pgqueue.schedule := pgqueue.change_schedule(backfill_schedule.schedule);
    fresh timestamptz[];
BEGIN
    IF NOT s.declared THEN
        PERFORM pgqueue.refuse('PQ009', format('schedule %L is no longer declared by its App', s.name));
    ELSIF EXISTS (SELECT FROM unnest(ticks) d WHERE d > pgqueue.clock()) THEN
        PERFORM pgqueue.refuse('PQ004', 'a backfill is for ticks of the past');
    END IF;
    SELECT coalesce(array_agg(d.due_at ORDER BY d.due_at), '{}') INTO fresh
      FROM (SELECT DISTINCT due_at FROM unnest(ticks) u(due_at) WHERE due_at IS NOT NULL) d
      LEFT JOIN pgqueue.tick t ON t.schedule = s.name AND t.due_at = d.due_at
     WHERE t.job_id IS NULL;
    INSERT INTO pgqueue.tick AS old (schedule, due_at, job_id, why, ticked_at)
    SELECT s.name, f.due_at, f.job_id, 'backfill', pgqueue.clock()
      FROM unnest(fresh, pgqueue.enqueue_ticks(s, fresh)) f(due_at, job_id)
    ON CONFLICT (schedule, due_at) DO UPDATE SET job_id = excluded.job_id, why = excluded.why, ticked_at = excluded.ticked_at
     WHERE old.job_id IS NULL;
    RETURN cardinality(fresh);
END
$$;

-- functions/cancel.sql
-- Ask that jobs end. That is all: whoever holds or takes a job honours the request (claim, settle, reap), and
-- cancel_waiting() ends those that nobody holds. Answers per job: requested, or the status of a job that had ended, or
-- unknown. A job that is running its last step may still succeed, unless hard: then the worker that runs it is killed, and so
-- are those that run its children. by: who asks, where that is a person.
CREATE OR REPLACE FUNCTION pgqueue.cancel(jobs uuid[], hard boolean DEFAULT false, by text DEFAULT NULL)
RETURNS TABLE (job_id uuid, answer text)
LANGUAGE plpgsql VOLATILE
AS $$
#variable_conflict use_column
BEGIN
    PERFORM pgqueue.assert_read_committed();
    PERFORM pgqueue.durable_commit();
    PERFORM FROM pgqueue.job j WHERE j.id = ANY (jobs) ORDER BY j.id FOR KEY SHARE;     -- prune waits, and then sees the requests
    WITH RECURSIVE tree AS (
        SELECT j.id FROM pgqueue.job j WHERE j.id = ANY (jobs)
         UNION
        SELECT c.id FROM tree t JOIN pgqueue.job c ON c.parent = t.id WHERE cancel.hard
    )
    INSERT INTO pgqueue.cancel_request (job_id, requested_at, hard, by)
    SELECT t.id, pgqueue.clock(), cancel.hard, left(cancel.by, 128) FROM tree t LEFT JOIN pgqueue.outcome o ON o.job_id = t.id
     WHERE o.job_id IS NULL ORDER BY t.id
    ON CONFLICT (job_id) DO UPDATE SET hard = true WHERE excluded.hard;
    PERFORM pg_notify('pgqueue_wake', '');
    RETURN QUERY
    SELECT g.id, CASE WHEN j.id IS NULL THEN 'unknown' ELSE coalesce(o.status, 'requested') END
      FROM unnest(jobs) g(id)
      LEFT JOIN pgqueue.job j ON j.id = g.id
      LEFT JOIN pgqueue.outcome o ON o.job_id = g.id;
END
$$;

-- functions/cancel_waiting.sql
-- End the jobs that somebody asked to cancel and that nobody holds: scheduled and waiting ones. Driven from the requests,
-- once a second, so that a request that came at the wrong moment is honoured a moment later.
CREATE OR REPLACE FUNCTION pgqueue.cancel_waiting() RETURNS bigint
LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    cancelled uuid[];
BEGIN
    PERFORM pgqueue.assert_read_committed();
    WITH asleep AS MATERIALIZED (
        SELECT s.ctid AS tid, s.job_id FROM pgqueue.cancel_request c JOIN pgqueue.scheduled s ON s.job_id = c.job_id
         LIMIT 1000 FOR UPDATE OF s SKIP LOCKED
    ), aside AS MATERIALIZED (
        SELECT w.ctid AS tid, w.job_id FROM pgqueue.cancel_request c JOIN pgqueue.waiting w ON w.job_id = c.job_id
         LIMIT 1000 FOR UPDATE OF w SKIP LOCKED
    ), left_scheduled AS (
        DELETE FROM pgqueue.scheduled s WHERE s.ctid = ANY (ARRAY(SELECT a.tid FROM asleep a)) RETURNING s.job_id
    ), left_waiting AS (
        DELETE FROM pgqueue.waiting w WHERE w.ctid = ANY (ARRAY(SELECT a.tid FROM aside a)) RETURNING w.job_id
    ), ended AS (
        INSERT INTO pgqueue.outcome (job_id, status, finished_at)
        SELECT g.job_id, 'cancelled', pgqueue.clock()
          FROM (SELECT job_id FROM left_scheduled UNION ALL SELECT job_id FROM left_waiting) g
        ON CONFLICT DO NOTHING RETURNING job_id
    ), honoured AS (
        DELETE FROM pgqueue.cancel_request c WHERE c.job_id = ANY (ARRAY(SELECT e.job_id FROM ended e))
    )
    SELECT array_agg(e.job_id) INTO cancelled FROM ended e;
    IF cancelled IS NOT NULL THEN
        PERFORM pgqueue.ended(cancelled);
    END IF;
    RETURN coalesce(cardinality(cancelled), 0);
END
$$;

-- functions/change_schedule.sql
-- Lock a schedule, and return it. Raises where there is none.
CREATE OR REPLACE FUNCTION pgqueue.change_schedule(schedule text) RETURNS pgqueue.schedule
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    s pgqueue.schedule;
BEGIN
    PERFORM pgqueue.assert_read_committed();
    PERFORM pgqueue.durable_commit();
    SELECT * INTO s FROM pgqueue.schedule o WHERE o.name = change_schedule.schedule FOR UPDATE;
    IF NOT FOUND THEN
        PERFORM pgqueue.refuse('PQ010', format('there is no schedule %L', left(change_schedule.schedule, 200)),
                               '"pgqueue schedules" lists them.');
    END IF;
    RETURN s;
END
$$;

-- functions/check_limits.sql
-- Refuses limits that cannot be meant.
CREATE OR REPLACE FUNCTION pgqueue.check_limits(said jsonb) RETURNS void
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    item record;
BEGIN
    IF jsonb_typeof(said) IS DISTINCT FROM 'object' THEN
        PERFORM pgqueue.refuse('PQ004', 'limits are a JSON object');
    END IF;
    FOR item IN SELECT e.key, e.value, jsonb_typeof(e.value) AS type FROM jsonb_each(said) e LOOP
        CONTINUE WHEN item.value IN ('null', '0') AND item.key = ANY ('{concurrency,per_key,rate,rate_per_key,fair_by}');
        IF item.key IN ('concurrency', 'per_key') THEN
            CONTINUE WHEN item.type = 'number' AND (item.value::numeric BETWEEN 1 AND 1000000) AND item.value::numeric % 1 = 0;
        ELSIF item.key IN ('rate', 'rate_per_key') THEN
            CONTINUE WHEN item.type = 'object' AND item.value - '{n,per,burst}'::text[] = '{}'
                 AND jsonb_typeof(item.value -> 'n') = 'number' AND (item.value ->> 'n')::numeric BETWEEN 1 AND 1000000
                 AND (item.value ->> 'n')::numeric % 1 = 0
                 AND jsonb_typeof(item.value -> 'per') = 'number' AND (item.value ->> 'per')::numeric BETWEEN 0.001 AND 31622400
                 AND jsonb_typeof(item.value -> 'burst') = 'number' AND (item.value ->> 'burst')::numeric BETWEEN 1 AND 1000000
                 AND (item.value ->> 'burst')::numeric % 1 = 0;
        ELSIF item.key = 'fair_by' THEN
            CONTINUE WHEN item.type = 'string';
        END IF;
        PERFORM pgqueue.refuse('PQ004', format('%s: %s is no limit of a queue', item.key, item.value),
            'concurrency and per_key are whole numbers from 1 on; rate and rate_per_key {"n": 100, "per": seconds, "burst": 1}; '
            'fair_by is the name of a parameter.');
    END LOOP;
END
$$;

-- functions/check_value.sql
-- Refuses a JSON value that is too large, or that holds what a text cannot (NUL, lone surrogates).
CREATE OR REPLACE FUNCTION pgqueue.check_value(value json, what text) RETURNS void
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    most integer := (SELECT i.max_bytes FROM pgqueue.installation i);
BEGIN
    IF octet_length(value::text) > most THEN
        PERFORM pgqueue.refuse('PQ005', format('%s has %s bytes, the limit is %s', what, octet_length(value::text), most),
                               'Keep large data in a table of your own and pass its key.');
    ELSIF strpos(value::text, '\u') > 0 AND value::jsonb IS NULL THEN
        NULL;                                                -- the cast refuses them
    END IF;
END
$$;

-- functions/checkpoint.sql
-- Store the result of a step in the transaction that fence() began; `xid` is what fence() returned. If the step's code
-- ended that transaction behind our back, the ids differ and nothing is stored. A unique violation means that another
-- run was here: the caller rolls back. True: somebody asks that the job be cancelled, so there should be no next step.
CREATE OR REPLACE FUNCTION pgqueue.checkpoint(
    job uuid, token bigint, seq integer, name text, result text, error text, xid xid8)
RETURNS boolean
LANGUAGE plpgsql VOLATILE
AS $$
BEGIN
    IF pg_current_xact_id_if_assigned() IS DISTINCT FROM xid THEN
        PERFORM pgqueue.refuse('PQ008', 'the step ended the transaction it was given, so its checkpoint cannot commit with its writes',
            'Leave COMMIT and ROLLBACK to pgqueue; use savepoints (with tx.transaction()) inside a step.');
    END IF;
    PERFORM pgqueue.durable_commit();
    INSERT INTO pgqueue.checkpoint (job_id, seq, name, result, error, claim, xid, created_at)
    VALUES (job, checkpoint.seq, checkpoint.name, checkpoint.result, checkpoint.error, token, checkpoint.xid, pgqueue.clock());
    IF current_setting('transaction_isolation') = 'serializable' THEN
        RETURN false;                                        -- reading more here would make unrelated jobs fail each other
    END IF;
    PERFORM FROM pgqueue.cancel_request c WHERE c.job_id = job;
    RETURN FOUND;
END
$$;

-- functions/child_counts.sql
-- How many children jobs have, by the step that started them and by state.
CREATE OR REPLACE FUNCTION pgqueue.child_counts(parents uuid[])
RETURNS TABLE (parent uuid, parent_seq integer, state text, amount bigint)
LANGUAGE plpgsql STABLE
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    SELECT c.parent, c.parent_seq, j.state, count(*)
      FROM unnest(parents) p(id) JOIN pgqueue.children c ON c.parent = p.id JOIN pgqueue.jobs j ON j.id = c.id
     GROUP BY c.parent, c.parent_seq, j.state;
END
$$;

-- functions/child_id.sql
-- The id of a child that gather() starts: a UUID of version 8, from its parent and its place there. (The worker makes the same.)
CREATE OR REPLACE FUNCTION pgqueue.child_id(parent uuid, seq integer, ordinal integer) RETURNS uuid
LANGUAGE sql IMMUTABLE
AS $$
    SELECT encode(set_byte(set_byte(h, 6, get_byte(h, 6) & 15 | 128), 8, get_byte(h, 8) & 63 | 128), 'hex')::uuid
      FROM (SELECT substring(sha256(convert_to(parent || ':' || seq || ':' || ordinal, 'UTF8')) FROM 1 FOR 16)) AS s(h)
$$;

-- functions/child_jobs.sql
-- Children of jobs, for people to look at: of each step of each parent up to `each`, and up to `amount` in all, those first that
-- somebody may have to look at. Only those in these states.
CREATE OR REPLACE FUNCTION pgqueue.child_jobs(parents uuid[], each integer, amount integer, states text[])
RETURNS TABLE (parent uuid, parent_seq integer, ordinal integer, id uuid, name text, state text, created_at timestamptz,
               run_at timestamptz, started_at timestamptz, finished_at timestamptz, error text)
LANGUAGE plpgsql STABLE
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    SELECT s.parent, s.parent_seq, s.ordinal, s.id, s.name, s.state, s.created_at, s.run_at, s.started_at, s.finished_at, v.error
      FROM (SELECT c.parent, c.parent_seq, c.ordinal, j.id, j.name, j.state, j.created_at, j.run_at, j.started_at, j.finished_at, w.weight,
                   row_number() OVER (PARTITION BY c.parent, c.parent_seq ORDER BY w.weight, c.ordinal, c.id) AS number
              FROM unnest(parents) p(id) JOIN pgqueue.children c ON c.parent = p.id JOIN pgqueue.jobs j ON j.id = c.id
             CROSS JOIN LATERAL (SELECT array_position('{failed,running,cancelled,waiting,scheduled,ready}'::text[], j.state)) AS w(weight)
             WHERE j.state = ANY (states)) s
      JOIN pgqueue.job_values v ON v.id = s.id
     WHERE s.number <= each
     ORDER BY s.weight, s.parent_seq, s.ordinal, s.id LIMIT amount;
END
$$;

-- functions/child_results.sql
-- The results of the jobs of one step of a parent, those behind `after`, in order, at most 500, and stopping early where they are
-- large. Only of those that succeeded.
CREATE OR REPLACE FUNCTION pgqueue.child_results(parent uuid, seq integer, after integer)
RETURNS TABLE (ordinal integer, result text)
LANGUAGE plpgsql STABLE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off
SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    SELECT h.ordinal, h.result
      FROM (SELECT c.*, sum(octet_length(c.result)) OVER (ORDER BY c.ordinal) AS bytes, row_number() OVER (ORDER BY c.ordinal) AS number
              FROM (SELECT c.ordinal, coalesce(o.result, 'null') AS result
                      FROM pgqueue.job c JOIN pgqueue.outcome o ON o.job_id = c.id AND o.status = 'succeeded'
                     WHERE c.parent = child_results.parent AND c.parent_seq = child_results.seq AND c.ordinal > child_results.after
                     ORDER BY c.ordinal LIMIT 500) c) h
     WHERE h.bytes <= 4194304 OR h.number = 1
     ORDER BY h.ordinal;
END
$$;

-- functions/children_of.sql
-- Whose children a job has at a step: its own; or, where it was made by rerun and has kept that step, those of the job before it.
CREATE OR REPLACE FUNCTION pgqueue.children_of(job uuid, seq integer) RETURNS uuid
LANGUAGE plpgsql STABLE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off
AS $$
BEGIN
    RETURN coalesce((SELECT k.parent FROM pgqueue.kept_children k WHERE k.job_id = job AND k.seq = children_of.seq), job);
END
$$;

-- functions/claim.sql
-- Take up to `amount` ready jobs for a worker: they leave `ready` and enter `running` under the caller's random token.
-- A job whose workflow (or version of it: names are "name" or "name@2") the worker does not know is put aside, and taken from
-- there by whoever knows it. A job that somebody asked to cancel ends here, and so does one that comes too late.
--
-- starts_in: a job of a queue with a rate may begin in so many seconds, and not before. at_once: how many jobs the worker can begin
-- at this moment; of limited queues it seldom gets more.
--
-- hints: for each queue its 20 lanes' lowest position worth looking at; behind it there are only dead index entries.
-- It is an optimisation and never the truth: zeros look from the start, which a claimer does now and then.
CREATE OR REPLACE FUNCTION pgqueue.claim(
    worker uuid, token bigint, queues text[], names text[], amount integer, hints bigint[], backwards boolean,
    at_once integer DEFAULT 1)
RETURNS TABLE (job_id uuid, name text, input text, queue text, lane smallint, pos bigint, policy jsonb, suspect boolean,
               seconds_left double precision, starts_in double precision)
LANGUAGE plpgsql VOLATILE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off
SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    lanes  smallint[] := CASE WHEN backwards THEN '{19,18,17,16,15,14,13,12,11,10,9,8,7,6,5,4,3,2,1,0}'
                              ELSE '{0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19}' END;
    wanted integer := least(amount, 1000);
    served integer;
    alone  text[];                                          -- limited queues, whose locks we have for ourselves
    q      pgqueue.queue;
    tids   tid[];
    starts timestamptz[];
    stamp  timestamptz;
BEGIN
    PERFORM pgqueue.assert_read_committed();
    PERFORM pgqueue.quick_commit();
    PERFORM FROM pgqueue.worker w WHERE w.id = claim.worker AND w.fenced_at IS NULL;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    alone := pgqueue.lock_queues(queues);
    stamp := pgqueue.clock();                                -- behind the locks: of two claims the later one has the later stamp
    FOR i IN 1 .. cardinality(queues) LOOP
        EXIT WHEN wanted <= 0;
        SELECT u.* INTO q FROM pgqueue.queue u WHERE u.name = queues[i] AND NOT u.paused;
        CONTINUE WHEN NOT FOUND OR (q.limited AND q.name <> ALL (alone));      -- limited since a moment ago: next time
        tids := NULL;
        IF q.limited THEN
            IF q.rate IS NOT NULL OR q.key_rate IS NOT NULL THEN
                PERFORM pgqueue.durable_commit();            -- a register never goes back
            END IF;
            SELECT array_agg(p.tid), array_agg(p.starts_at) INTO tids, starts
              FROM pgqueue.pick_limited(q, names, wanted, at_once, array_fill(0::bigint, '{20}'), stamp) p;  -- a hint may leave out what waits here
            CONTINUE WHEN tids IS NULL;
        END IF;
        RETURN QUERY
        WITH picked AS MATERIALIZED (
            SELECT r.tid
              FROM unnest(lanes) l(lane)
             CROSS JOIN LATERAL (
                SELECT r.ctid AS tid FROM pgqueue.ready r
                 WHERE r.queue = queues[i] AND r.lane = l.lane
                   AND r.pos >= hints[20 * (i - 1) + l.lane + 1]
                 ORDER BY r.pos LIMIT wanted FOR UPDATE SKIP LOCKED) r
             WHERE tids IS NULL
             LIMIT wanted
        ), gone AS (
            DELETE FROM pgqueue.ready r WHERE r.ctid = ANY (coalesce(tids, ARRAY(SELECT p.tid FROM picked p))) RETURNING r.ctid AS tid, r.*
        ), known AS MATERIALIZED (
            SELECT g.*, v.name, j.input, j.policy, j.parent, j.key, j.cost, v.name = ANY (names) AS mine, (j.policy ->> 'deadline')::timestamptz AS deadline,
                   CASE WHEN c.job_id IS NOT NULL THEN 'cancelled'
                        WHEN (j.policy ->> 'deadline')::timestamptz <= stamp THEN 'timeout'
                        WHEN g.lane % 2 = 1 AND (j.policy ->> 'expires_at')::timestamptz <= stamp THEN 'expired' END AS over
              FROM gone g
              JOIN pgqueue.job j ON j.id = g.job_id
             CROSS JOIN LATERAL (SELECT CASE j.version WHEN 1 THEN j.name ELSE j.name || '@' || j.version END) v(name)
              LEFT JOIN pgqueue.cancel_request c ON c.job_id = g.job_id
        ), ended AS (
            INSERT INTO pgqueue.outcome (job_id, status, error, finished_at)
            SELECT k.job_id, CASE k.over WHEN 'timeout' THEN 'failed' ELSE 'cancelled' END,
                   CASE k.over WHEN 'timeout' THEN '{"type":"JobTimeout","message":"the time limit of the job is over"}'
                               WHEN 'expired' THEN '{"type":"Expired","message":"no worker began the job in time"}' END, stamp
              FROM known k WHERE k.over IS NOT NULL
            ON CONFLICT DO NOTHING
            RETURNING job_id
        ), honoured AS (
            DELETE FROM pgqueue.cancel_request c WHERE c.job_id = ANY (ARRAY(SELECT k.job_id FROM known k WHERE k.over IS NOT NULL))
        ), followed AS (
            INSERT INTO pgqueue.wakeup (pos, ended) SELECT nextval('pgqueue.position'), e.job_id FROM ended e
            RETURNING pg_notify('pgqueue_wake', '')
        ), strangers AS (
            INSERT INTO pgqueue.waiting (job_id, kind, key, queue, lane)
            SELECT k.job_id, 'name', k.name, k.queue, k.lane FROM known k WHERE NOT k.mine AND k.over IS NULL
            ON CONFLICT DO NOTHING
        ), started AS (
            INSERT INTO pgqueue.running (job_id, claim, worker, queue, lane, pos, started_at, suspect, parent, limited, key, cost)
            SELECT k.job_id, token, worker, k.queue, k.lane, k.pos, coalesce(starts[array_position(tids, k.tid)], stamp), k.suspect, k.parent,
                   CASE WHEN q.limited THEN k.queue END, CASE WHEN q.per_key IS NOT NULL THEN k.key END, CASE WHEN q.limited THEN k.cost END
              FROM known k WHERE k.mine AND k.over IS NULL
            ON CONFLICT (job_id) DO NOTHING
            RETURNING pos
        ), conflicts AS (
            SELECT nextval('pgqueue.conflict')
              FROM generate_series(1, (SELECT count(*) FROM known k WHERE k.mine AND k.over IS NULL) - (SELECT count(*) FROM started))
        )
        SELECT k.job_id, k.name, k.input, k.queue, k.lane, k.pos, k.policy, k.suspect, extract(epoch FROM k.deadline - stamp)::float8,
               extract(epoch FROM starts[array_position(tids, k.tid)] - stamp)::float8
          FROM known k
         WHERE k.mine AND k.over IS NULL                      -- and was inserted: a duplicate never goes to two workers
           AND ((SELECT count(*) FROM conflicts) = 0 OR k.pos = ANY (ARRAY(SELECT s.pos FROM started s)));
        GET DIAGNOSTICS served = ROW_COUNT;
        wanted := wanted - served;
    END LOOP;
    IF wanted > 0 THEN
        RETURN QUERY SELECT * FROM pgqueue.claim_known(worker, token, queues, names, wanted);
    END IF;
END
$$;

-- functions/claim_known.sql
-- The part of claim that takes jobs put aside by workers that did not know their workflow. Straight from `waiting` to
-- `running`: a way through `ready` would hand them to the same ignorant workers again.
CREATE OR REPLACE FUNCTION pgqueue.claim_known(worker uuid, token bigint, queues text[], names text[], amount integer)
RETURNS TABLE (job_id uuid, name text, input text, queue text, lane smallint, pos bigint, policy jsonb, suspect boolean,
               seconds_left double precision, starts_in double precision)
LANGUAGE plpgsql VOLATILE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off
SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $$
#variable_conflict use_column
BEGIN
    PERFORM FROM pgqueue.waiting w WHERE w.kind = 'name' AND w.key = ANY (names) LIMIT 1;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    -- In a limited queue they have to queue up like others.
    WITH picked AS MATERIALIZED (
        SELECT w.ctid AS tid FROM pgqueue.waiting w JOIN pgqueue.queue q ON q.name = w.queue AND q.limited
         WHERE w.kind = 'name' AND w.key = ANY (names) AND w.queue = ANY (queues) LIMIT amount FOR UPDATE OF w SKIP LOCKED
    ), gone AS (
        DELETE FROM pgqueue.waiting w WHERE w.ctid = ANY (ARRAY(SELECT p.tid FROM picked p)) RETURNING w.*
    )
    INSERT INTO pgqueue.ready (queue, lane, pos, job_id)
    SELECT g.queue, g.lane - g.lane % 2, nextval('pgqueue.position'), g.job_id FROM gone g;
    RETURN QUERY
    WITH picked AS MATERIALIZED (
        SELECT w.ctid AS tid FROM pgqueue.waiting w
          JOIN pgqueue.queue q ON q.name = w.queue AND NOT q.paused AND NOT q.limited
          LEFT JOIN pgqueue.cancel_request c ON c.job_id = w.job_id      -- those are for cancel_waiting()
         WHERE w.kind = 'name' AND w.key = ANY (names) AND w.queue = ANY (queues) AND c.job_id IS NULL
         LIMIT amount FOR UPDATE OF w SKIP LOCKED
    ), gone AS (
        DELETE FROM pgqueue.waiting w WHERE w.ctid = ANY (ARRAY(SELECT p.tid FROM picked p)) RETURNING w.*
    ), started AS (
        INSERT INTO pgqueue.running (job_id, claim, worker, queue, lane, pos, started_at, parent)
        SELECT g.job_id, token, worker, g.queue, g.lane, nextval('pgqueue.position'), pgqueue.clock(), j.parent
          FROM gone g JOIN pgqueue.job j ON j.id = g.job_id
        ON CONFLICT (job_id) DO NOTHING
        RETURNING job_id, queue, lane, pos
    )
    SELECT s.job_id, CASE j.version WHEN 1 THEN j.name ELSE j.name || '@' || j.version END, j.input, s.queue, s.lane, s.pos, j.policy,
           false, extract(epoch FROM (j.policy ->> 'deadline')::timestamptz - pgqueue.clock())::float8, NULL::float8
      FROM started s JOIN pgqueue.job j ON j.id = s.job_id;
END
$$;

-- functions/clock.sql
-- The time, for stamps. Every other function reads time only through this and clock_bound(): tests replace both.
CREATE OR REPLACE FUNCTION pgqueue.clock() RETURNS timestamptz
LANGUAGE sql VOLATILE
AS $$ SELECT clock_timestamp() $$;

-- functions/clock_bound.sql
-- The time, for index conditions: STABLE, so that an index scan can be bounded by it.
CREATE OR REPLACE FUNCTION pgqueue.clock_bound() RETURNS timestamptz
LANGUAGE sql STABLE
AS $$ SELECT statement_timestamp() $$;

-- functions/continues.sql
-- Is the last checkpoint that a run saw acknowledged still there? After a failover that lost commits a worker's memory
-- is ahead of the database, and must not be built upon.
CREATE OR REPLACE FUNCTION pgqueue.continues(job uuid, seen integer) RETURNS boolean
LANGUAGE plpgsql STABLE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off
AS $$
BEGIN
    IF seen = 0 THEN
        RETURN true;
    END IF;
    PERFORM FROM pgqueue.checkpoint c WHERE c.job_id = job AND c.seq = seen;
    RETURN FOUND;
END
$$;

-- functions/derived_id.sql
-- A UUID of version 8: the same for the same installation, origin (a workflow's first name) and text. So "order-7" may
-- be enqueued any number of times and is one job.
CREATE OR REPLACE FUNCTION pgqueue.derived_id(origin text, chosen text) RETURNS uuid
LANGUAGE sql STABLE
AS $$
    SELECT encode(set_byte(set_byte(h, 6, get_byte(h, 6) & 15 | 128), 8, get_byte(h, 8) & 63 | 128), 'hex')::uuid
      FROM pgqueue.installation i
     CROSS JOIN LATERAL (SELECT substring(sha256(uuid_send(i.id) || convert_to(origin, 'UTF8') || '\x00'::bytea
                                                 || convert_to(chosen, 'UTF8')) FROM 1 FOR 16)) AS s(h)
$$;

-- functions/described_jobs.sql
-- The rows of job that a JSON array of descriptions asks for, with the defaults of the registered workflow.
-- Whatever is wrong with a description is said here, before anything is written.
CREATE OR REPLACE FUNCTION pgqueue.described_jobs(jobs json) RETURNS SETOF pgqueue.job
LANGUAGE plpgsql VOLATILE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $$
DECLARE
    allowed CONSTANT text[] := '{name,input,queue,id,job_id,priority,delay,run_at,key,retry,max_crashes,
        timeout,expires,meta,version,parent,parent_seq,ordinal,cost}';
    limits pgqueue.installation;
    stamp  timestamptz := pgqueue.clock();
    job    pgqueue.job;
    due    timestamptz;
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
               w.version AS usual_version, w.timeout AS usual_timeout, q.name AS declared, q.fair_by
          FROM json_to_recordset(jobs) AS g(name text, input json, queue text, id text, job_id uuid, priority integer,
                                            delay interval, run_at timestamptz, key text, retry jsonb, max_crashes integer,
                                            timeout double precision, expires double precision, meta jsonb, version integer,
                                            parent uuid, parent_seq integer, ordinal integer, cost integer)
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
        due := greatest(job.run_at, stamp);
        job.policy := nullif(jsonb_strip_nulls(jsonb_build_object('retry', item.retry, 'max_crashes', item.max_crashes,
                'deadline', due + make_interval(secs => coalesce(item.timeout, item.usual_timeout)),
                'expires_at', due + make_interval(secs => item.expires)))
            || CASE WHEN item.meta IS NULL THEN '{}' ELSE jsonb_build_object('meta', item.meta) END, '{}');
        job.version := coalesce(item.version, item.usual_version, 1);
        job.parent := item.parent;
        job.parent_seq := item.parent_seq;
        job.ordinal := item.ordinal;
        job.cost := coalesce(item.cost, 1);
        job.fair := CASE WHEN item.fair_by IS NOT NULL THEN left(coalesce(item.input ->> item.fair_by, ''), 512) END;
        job.created_at := stamp;
        RETURN NEXT job;
    END LOOP;
END
$$;

-- functions/drop_schedule.sql
-- Forget a schedule: one that was made with add_schedule, or that its App declares no longer. Its jobs, and the rows of its ticks, stay.
CREATE OR REPLACE FUNCTION pgqueue.drop_schedule(schedule text) RETURNS void
LANGUAGE plpgsql VOLATILE
AS $$
#variable_conflict use_column
DECLARE
    s pgqueue.schedule := pgqueue.change_schedule(drop_schedule.schedule);
BEGIN
    IF s.origin = 'app' AND s.declared THEN
        PERFORM pgqueue.refuse('PQ009', format('schedule %L is declared by the App %s', s.name, s.app),
                               'Remove it there, or pause it.');
    END IF;
    DELETE FROM pgqueue.schedule o WHERE o.name = s.name;
END
$$;

-- functions/due_schedules.sql
-- What is due by now: up to `amount` schedules as a JSON array (null: none), the moment at which that was asked, and in how many
-- seconds the next of the others will be due (null: none). One look for both, because an idle host asks this every second.
CREATE OR REPLACE FUNCTION pgqueue.due_schedules(amount integer, OUT due json, OUT moment timestamptz, OUT next_due double precision)
LANGUAGE plpgsql VOLATILE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off
SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $$
BEGIN
    moment := pgqueue.clock();
    SELECT json_agg(s) INTO due
      FROM (SELECT s.name, s.revision, s.cron, s.every, s.timezone, s.misfire, s.grace, s.done_until
              FROM pgqueue.schedule s
             WHERE s.declared AND NOT s.paused AND s.next_at <= moment ORDER BY s.next_at LIMIT amount) s;
    SELECT extract(epoch FROM s.next_at - moment) INTO next_due
      FROM pgqueue.schedule s
     WHERE s.declared AND NOT s.paused AND s.next_at > moment AND s.next_at < 'infinity' ORDER BY s.next_at LIMIT 1;
END
$$;

-- functions/durable_commit.sql
-- The caller's transaction will wait for its commit to be on disk. Raises synchronous_commit from off, never lowers it.
CREATE OR REPLACE FUNCTION pgqueue.durable_commit() RETURNS void
LANGUAGE plpgsql VOLATILE
AS $$
BEGIN
    IF current_setting('synchronous_commit') = 'off' THEN
        PERFORM set_config('synchronous_commit', 'on', true);
    END IF;
END
$$;

-- functions/end_sessions.sql
-- End the database sessions of a worker, found by their application_name at this very moment and never by a remembered
-- pid. A dead or frozen worker may still hold locks through them. `part`: only that one of them, such as ':step:7'. Returns how
-- many were told to end.
CREATE OR REPLACE FUNCTION pgqueue.end_sessions(worker uuid, part text DEFAULT '') RETURNS bigint
LANGUAGE sql VOLATILE
AS $$
    SELECT count(*) FILTER (WHERE pg_terminate_backend(a.pid)) FROM pg_stat_activity a
     WHERE a.datname = current_database() AND a.usename = current_user AND a.pid <> pg_backend_pid()
       AND starts_with(a.application_name || ':', 'pgqueue:' || worker::text || part || ':')
$$;

-- functions/end_stalled.sql
-- End a worker's claiming session if it has stopped in the middle of a message: the transaction is open, and the server waits for
-- the rest. (A job that keeps the whole interpreter may do that to its worker.) Was there one?
CREATE OR REPLACE FUNCTION pgqueue.end_stalled(worker uuid) RETURNS boolean
LANGUAGE sql VOLATILE
AS $$
    SELECT count(*) FILTER (WHERE pg_terminate_backend(a.pid)) > 0 FROM pg_stat_activity a
     WHERE a.datname = current_database() AND a.usename = current_user
       AND a.application_name = 'pgqueue:' || worker::text || ':claims'
       AND a.state <> 'idle' AND a.wait_event = 'ClientRead'
$$;

-- functions/ended.sql
-- What follows when jobs have failed or were cancelled, in the transaction that says so: their parents are looked at, the
-- children of a cancelled one are to be cancelled too, and what was registered with on_failure is enqueued.
CREATE OR REPLACE FUNCTION pgqueue.ended(jobs uuid[]) RETURNS void
LANGUAGE plpgsql VOLATILE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off
SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $$
DECLARE
    parents  uuid[];
    failures json;
    children bigint;
BEGIN
    PERFORM pgqueue.tell_results(jobs);
    SELECT array_agg(DISTINCT j.parent) INTO parents FROM pgqueue.job j WHERE j.id = ANY (jobs) AND j.parent IS NOT NULL;
    IF parents IS NOT NULL THEN
        PERFORM pgqueue.look_again(parents);
    END IF;
    INSERT INTO pgqueue.cancel_request (job_id, requested_at)
    SELECT c.id, pgqueue.clock()
      FROM pgqueue.outcome o
      JOIN pgqueue.job c ON c.parent = o.job_id
      LEFT JOIN pgqueue.outcome co ON co.job_id = c.id
     WHERE o.job_id = ANY (jobs) AND o.status = 'cancelled' AND co.job_id IS NULL
    ON CONFLICT DO NOTHING;
    GET DIAGNOSTICS children = ROW_COUNT;
    IF children > 0 THEN
        PERFORM pg_notify('pgqueue_wake', '');
    END IF;
    SELECT json_agg(json_build_object('name', w.on_failure, 'parent', j.parent, 'meta', j.policy -> 'meta', 'input', json_build_object('failure', json_build_object(
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

-- functions/ending.sql
-- How a job ended, as JSON: {"status", "result" or "error"}.
CREATE OR REPLACE FUNCTION pgqueue.ending(o pgqueue.outcome) RETURNS json
LANGUAGE sql STABLE
AS $$
    SELECT CASE o.status WHEN 'succeeded' THEN json_build_object('status', o.status, 'result', coalesce(o.result, 'null')::json)
                         WHEN 'failed' THEN json_build_object('status', o.status, 'error', coalesce(o.error, '{}')::json)
                         ELSE json_build_object('status', o.status) END
$$;

-- functions/enqueue_ticks.sql
-- Enqueue the job of a schedule for each of these ticks, and return the ids in the same order. They are derived from the name and the
-- tick (unless one is chosen, for a job beside the plan), so that the same tick is the same job.
CREATE OR REPLACE FUNCTION pgqueue.enqueue_ticks(s pgqueue.schedule, ticks timestamptz[], chosen uuid DEFAULT NULL) RETURNS uuid[]
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    jobs json;
    ids  uuid[];
BEGIN
    SELECT json_agg(json_build_object(
               'name', s.workflow, 'input', s.input::json, 'queue', s.queue, 'priority', s.priority,
               'job_id', coalesce(chosen, pgqueue.derived_id('pgqueue.schedule', s.name || '@' || trunc(extract(epoch FROM d.due_at) * 1000000))),
               'meta', json_build_object('schedule', s.name, 'due_at',
                                         replace(to_char(d.due_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US'), '.000000', '') || '+00:00'))
               ORDER BY d.place)
      INTO jobs FROM unnest(ticks) WITH ORDINALITY d(due_at, place);
    IF jobs IS NOT NULL THEN
        SELECT array_agg(e.id ORDER BY e.place) INTO ids FROM pgqueue.enqueue_workflows(jobs) WITH ORDINALITY e(id, place);
    END IF;
    RETURN coalesce(ids, '{}');
END
$$;

-- functions/enqueue_workflow.sql
-- Insert one job IN THE CALLER'S TRANSACTION: it exists if and only if that commits. Returns its id.
--
--     BEGIN;
--     INSERT INTO orders ...;
--     SELECT pgqueue.enqueue_workflow('shop.tasks.fulfil', '{"order_id": 7}', queue => 'payments', id => 'order-7');
--     COMMIT;
--
-- id      any text: the same id enqueued again is the same job       options  retry, max_crashes, and what comes later
-- delay   not before so much time has passed                         run_at   not before this moment
CREATE OR REPLACE FUNCTION pgqueue.enqueue_workflow(
    name text, input json DEFAULT '{}', queue text DEFAULT NULL, id text DEFAULT NULL, priority integer DEFAULT NULL,
    delay interval DEFAULT NULL, run_at timestamptz DEFAULT NULL, key text DEFAULT NULL, options jsonb DEFAULT '{}')
RETURNS uuid
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    job json := json_build_object('name', name, 'input', input, 'queue', queue, 'id', id, 'priority', priority,
                                  'delay', delay, 'run_at', run_at, 'key', key);
    made uuid;
BEGIN
    IF options <> '{}' THEN
        -- json, not jsonb: the input must keep its very text
        SELECT json_object_agg(o.k, o.v) INTO job
          FROM (SELECT e.key AS k, e.value AS v FROM json_each(job) e
                UNION ALL SELECT e.key, e.value::json FROM jsonb_each(options) e) o;
    END IF;
    SELECT e INTO made FROM pgqueue.enqueue_workflows(json_build_array(job)) e;
    RETURN made;
END
$$;

-- functions/enqueue_workflows.sql
-- Insert jobs IN THE CALLER'S TRANSACTION: they exist if and only if it commits. Takes a JSON array of objects
-- {"name": ..., "input": {...}, "queue", "id", "priority", "delay", "run_at", "key", "retry", "max_crashes"} and returns
-- the ids in the same order. The same id with the same name and input is the same job; with other content it is an error.
CREATE OR REPLACE FUNCTION pgqueue.enqueue_workflows(jobs json) RETURNS SETOF uuid
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off
SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $$
DECLARE
    wanted  pgqueue.job[];
    created bigint;
    other   record;
BEGIN
    PERFORM pgqueue.durable_commit();
    SELECT array_agg(d) INTO wanted FROM pgqueue.described_jobs(jobs) d;
    LOOP
        WITH fresh AS (
            INSERT INTO pgqueue.job SELECT w.* FROM unnest(wanted) w
            ON CONFLICT (id) DO NOTHING
            RETURNING id, queue, priority, run_at, fair
        ), now_due AS (
            INSERT INTO pgqueue.ready (queue, lane, pos, job_id, fair)
            SELECT f.queue, 2 * f.priority + 1, nextval('pgqueue.position'), f.id, f.fair
              FROM fresh f WHERE f.run_at IS NULL OR f.run_at <= pgqueue.clock()
        ), later AS (
            INSERT INTO pgqueue.scheduled (job_id, run_at, queue, lane)
            SELECT f.id, f.run_at, f.queue, 2 * f.priority + 1
              FROM fresh f WHERE f.run_at > pgqueue.clock()
        )
        SELECT count(*) INTO created FROM fresh;
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
    IF created > 0 THEN
        PERFORM pgqueue.wake_idle();
    END IF;
    RETURN QUERY SELECT w.id FROM unnest(wanted) w;
END
$$;

-- functions/fence.sql
-- The first statement of every transaction that writes for a job: does this run still hold its claim? Locks the claim
-- until the transaction ends, so that nobody takes the job away in the middle. Returns the transaction's id, or null
-- where the claim is lost. `seen` is the last checkpoint this run knows of (0: none): if a failover lost it, so is the run. If
-- the client falls silent for idle_seconds inside this transaction, the server ends it: a stopped worker holds no lock for ever.
CREATE OR REPLACE FUNCTION pgqueue.fence(job uuid, token bigint, seen integer, idle_seconds double precision) RETURNS xid8
LANGUAGE plpgsql VOLATILE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off
AS $$
BEGIN
    PERFORM FROM pgqueue.running r WHERE r.job_id = job AND r.claim = token FOR KEY SHARE;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    -- Under SERIALIZABLE this read would make unrelated jobs fail each other: the caller asks continues() before it begins.
    IF seen > 0 AND current_setting('transaction_isolation') <> 'serializable'
       AND NOT pgqueue.continues(job, seen) THEN
        RETURN NULL;
    END IF;
    IF idle_seconds > 0 THEN
        PERFORM set_config('idle_in_transaction_session_timeout', ceil(idle_seconds * 1000)::text, true);
    END IF;
    RETURN pg_current_xact_id();
END
$$;

-- functions/fence_worker.sql
-- Take the lease from a worker, if its beat is still the one that was seen (null: whatever it is). True where this call
-- did it. From now on it claims nothing, and anyone can reap its jobs. `started`: the jobs that it had begun, from who saw it
-- die (null: nobody knows). They are written down with the fence, because another host may be the first to reap.
CREATE OR REPLACE FUNCTION pgqueue.fence_worker(worker uuid, seen_beat bigint, reason text, started uuid[] DEFAULT NULL)
RETURNS boolean
LANGUAGE plpgsql VOLATILE
AS $$
BEGIN
    UPDATE pgqueue.worker w SET fenced_at = pgqueue.clock(), reason = fence_worker.reason, started = fence_worker.started
     WHERE w.id = worker AND w.fenced_at IS NULL AND w.beat = coalesce(seen_beat, w.beat);
    RETURN FOUND;
END
$$;

-- functions/find_jobs.sql
-- Jobs to cancel or requeue, up to `amount`, the oldest first: those in one of these states, and (null: any) of this workflow and
-- queue, whose error has this text in its type or message, and which ended (those that have not: were created) at most `since` and
-- at least `until` ago. Either states that have an end, or others.
CREATE OR REPLACE FUNCTION pgqueue.find_jobs(
    states text[], workflow text, of_queue text, part text, since interval, until interval, amount integer)
RETURNS TABLE (job_id uuid, name text, queue text, state text, at timestamptz, error text)
LANGUAGE plpgsql STABLE
AS $$
#variable_conflict use_column
DECLARE
    earliest timestamptz := coalesce(pgqueue.clock() - since, '-infinity');
    latest   timestamptz := pgqueue.clock() - coalesce(until, '0');
BEGIN
    IF states <@ '{succeeded,failed,cancelled}'::text[] THEN
        RETURN QUERY
        SELECT j.id, j.name, j.queue, o.status, o.finished_at, e.text
          FROM pgqueue.outcome o
          JOIN pgqueue.job j ON j.id = o.job_id
         CROSS JOIN LATERAL (SELECT left(concat_ws(': ', o.error::json ->> 'type', o.error::json ->> 'message'), 16384)) AS e(text)
         WHERE o.status = ANY (states) AND o.finished_at BETWEEN earliest AND latest
           AND (workflow IS NULL OR j.name = workflow) AND (of_queue IS NULL OR j.queue = of_queue)
           AND (part IS NULL OR strpos(e.text, part) > 0)
         ORDER BY o.finished_at, o.job_id LIMIT amount;
        RETURN;
    END IF;
    RETURN QUERY
    SELECT j.id, j.name, j.queue, l.state, j.created_at, NULL::text
      FROM (SELECT r.job_id, 'ready' AS state FROM pgqueue.ready r WHERE 'ready' = ANY (states)
             UNION ALL SELECT r.job_id, 'running' FROM pgqueue.running r WHERE 'running' = ANY (states)
             UNION ALL SELECT s.job_id, 'scheduled' FROM pgqueue.scheduled s WHERE 'scheduled' = ANY (states)
             UNION ALL SELECT w.job_id, 'waiting' FROM pgqueue.waiting w WHERE 'waiting' = ANY (states)) l
      JOIN pgqueue.job j ON j.id = l.job_id
     WHERE j.created_at BETWEEN earliest AND latest
       AND (workflow IS NULL OR j.name = workflow) AND (of_queue IS NULL OR j.queue = of_queue)
     ORDER BY j.created_at, j.id LIMIT amount;
END
$$;

-- functions/finish.sql
-- End a job inside the transaction of its only step: its writes and its outcome are one commit. The delete is a fence of
-- its own; without the claim it is an error, and nothing commits. An outcome that exists already is a unique violation, and nothing commits.
CREATE OR REPLACE FUNCTION pgqueue.finish(job uuid, token bigint, result text, xid xid8) RETURNS boolean
LANGUAGE plpgsql VOLATILE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off
AS $$
DECLARE
    parent uuid;
    turn   text;
BEGIN
    IF pg_current_xact_id_if_assigned() IS DISTINCT FROM xid THEN
        PERFORM pgqueue.refuse('PQ008', 'the job ended the transaction it was given, so its outcome cannot commit with its writes',
            'Leave COMMIT and ROLLBACK to pgqueue; use savepoints (with tx.transaction()) inside a transaction.');
    END IF;
    IF current_setting('synchronous_commit') = 'off' THEN     -- asked here too: a call is a tenth of this function's time
        PERFORM pgqueue.durable_commit();
    END IF;
    DELETE FROM pgqueue.running r WHERE r.job_id = job AND r.claim = token RETURNING r.parent, r.limited || '/' || r.key INTO parent, turn;
    IF NOT FOUND THEN
        PERFORM pgqueue.refuse('PQ009', format('job %s is not held by this claim', job));
    END IF;
    INSERT INTO pgqueue.outcome (job_id, status, result, claim, finished_at)
    VALUES (job, 'succeeded', finish.result, token, pgqueue.clock());
    DELETE FROM pgqueue.cancel_request c WHERE c.job_id = job;
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

-- functions/free_turns.sql
-- Jobs of these keys have left `running`, in this transaction: those behind them have their turn. Where nobody is behind them, one
-- may be on the way there, so somebody looks again after the commit.
CREATE OR REPLACE FUNCTION pgqueue.free_turns(turns text[]) RETURNS void
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    moved text[] := ARRAY(SELECT t FROM pgqueue.next_turns(turns) t);
BEGIN
    IF moved <> '{}' THEN
        PERFORM pgqueue.wake_idle();
    END IF;
    INSERT INTO pgqueue.wakeup (pos, turn)
    SELECT nextval('pgqueue.position'), t FROM (SELECT DISTINCT t FROM unnest(turns) t WHERE t <> ALL (moved)) t;
    IF FOUND THEN
        PERFORM pg_notify('pgqueue_wake', '');
    END IF;
END
$$;

-- functions/hard_cancelled.sql
-- The claims of these workers whose jobs are to be cancelled at once.
CREATE OR REPLACE FUNCTION pgqueue.hard_cancelled(workers uuid[]) RETURNS TABLE (job_id uuid, claim bigint, worker uuid)
LANGUAGE plpgsql STABLE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $$
BEGIN
    RETURN QUERY
    SELECT r.job_id, r.claim, r.worker
      FROM pgqueue.cancel_request c JOIN pgqueue.running r ON r.job_id = c.job_id
     WHERE c.hard AND r.worker = ANY (workers);
END
$$;

-- functions/has_work.sql
-- In how many seconds could a worker claim something from these queues? 0: now; null: there is nothing. What an idle host asks, once
-- for all of its workers. Where a limit is reached nobody knows; then it is a second.
CREATE OR REPLACE FUNCTION pgqueue.has_work(queues text[]) RETURNS double precision
LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off SET jit = off
AS $$
DECLARE
    q     pgqueue.queue;
    soon  double precision;
    first double precision;
BEGIN
    FOR i IN 1 .. cardinality(queues) LOOP
        SELECT u.* INTO q FROM pgqueue.queue u WHERE u.name = queues[i] AND NOT u.paused;
        CONTINUE WHEN NOT FOUND;
        PERFORM FROM pgqueue.ready r WHERE r.queue = queues[i] LIMIT 1;
        CONTINUE WHEN NOT FOUND;
        soon := CASE WHEN q.concurrency IS NOT NULL AND pgqueue.used(q) >= q.concurrency THEN 1
                     WHEN q.rate IS NULL THEN 0
                     ELSE extract(epoch FROM pgqueue.next_start(q.name, '', q.rate, q.rate_seconds, q.rate_burst, 1, pgqueue.clock())
                                             - pgqueue.clock()) END;
        IF soon <= 0 THEN
            RETURN 0;
        END IF;
        first := least(first, soon);
    END LOOP;
    RETURN first;
END
$$;

-- functions/heartbeat.sql
-- Renew the leases of all workers of a host. Returns those that are still alive: one that is missing in the answer has
-- been fenced and must stop. Locks in the order of ids, as everything that locks several workers does.
CREATE OR REPLACE FUNCTION pgqueue.heartbeat(workers uuid[]) RETURNS SETOF uuid
LANGUAGE plpgsql VOLATILE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $$
BEGIN
    PERFORM pgqueue.quick_commit();
    RETURN QUERY
    WITH alive AS MATERIALIZED (
        SELECT w.id FROM pgqueue.worker w WHERE w.id = ANY (workers) AND w.fenced_at IS NULL ORDER BY w.id FOR UPDATE
    )
    UPDATE pgqueue.worker w SET beat = w.beat + 1 FROM alive a WHERE w.id = a.id RETURNING w.id;
END
$$;

-- functions/held_claims.sql
-- What the database believes these workers to hold. The housekeeper compares it with what they say themselves: a claim
-- whose reply was lost is in this list only, and is given back.
CREATE OR REPLACE FUNCTION pgqueue.held_claims(workers uuid[]) RETURNS TABLE (job_id uuid, claim bigint, worker uuid)
LANGUAGE sql STABLE
AS $$
    SELECT r.job_id, r.claim, r.worker FROM pgqueue.running r WHERE r.worker = ANY (workers)
$$;

-- functions/history.sql
-- The checkpoints of a job after `after`, in order, and the waits that it has begun (without result or error); at most 1,000 at a time, and
-- stopping early where they are large. Whoever replays asks again from the last one it got.
CREATE OR REPLACE FUNCTION pgqueue.history(job uuid, after integer)
RETURNS TABLE (seq integer, name text, result text, error text)
LANGUAGE plpgsql STABLE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off
AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    SELECT h.seq, h.name, h.result, h.error
      FROM (SELECT c.*, sum(octet_length(coalesce(c.result, c.error, ''))) OVER (ORDER BY c.seq) AS bytes
              FROM (SELECT c.seq, c.name, c.result, c.error FROM pgqueue.checkpoint c WHERE c.job_id = job AND c.seq > after
                     UNION ALL
                    SELECT w.seq, w.name, NULL, NULL FROM pgqueue.wait w
                      LEFT JOIN pgqueue.checkpoint c ON c.job_id = w.job_id AND c.seq = w.seq
                     WHERE w.job_id = job AND w.seq > after AND c.seq IS NULL
                     ORDER BY seq LIMIT 1000) c) h
     WHERE h.bytes <= 4194304 OR h.seq = after + 1
     ORDER BY h.seq;
END
$$;

-- functions/is_writable.sql
-- Does this server accept writes? Otherwise "read-only transaction" says nothing about the job that met it.
CREATE OR REPLACE FUNCTION pgqueue.is_writable() RETURNS boolean
LANGUAGE sql STABLE
AS $$
    SELECT NOT pg_is_in_recovery() AND current_setting('default_transaction_read_only') = 'off'
$$;

-- functions/keep_children.sql
-- The part of rerun about children: those that the kept steps of the old job have started are the new one's too. (A gather() starts its
-- children at one step, and waits for them at a later one, which they are numbered by.) Returns the first step whose children are not
-- all there any more; null: all are. Where a prune took only the last of them, that is not seen.
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
      FROM (SELECT s.seq, coalesce(lead(s.seq) OVER (ORDER BY s.seq), 50001) AS next FROM unnest(starts) s(seq)) s
      LEFT JOIN pgqueue.kept_children k ON k.job_id = keep_children.new AND k.seq > s.seq AND k.seq < s.next
     WHERE (SELECT count(*) IS DISTINCT FROM max(c.ordinal) + 1 FROM pgqueue.job c WHERE c.parent = k.parent AND c.parent_seq = k.seq);
    RETURN lost;
END
$$;

-- functions/lapsed_workers.sql
-- Workers whose jobs wait to be reaped: fenced ones, and ones that have no row any more (their claim committed after the
-- reap). Asked again and again, so that nothing depends on seeing a death at the moment it happens.
CREATE OR REPLACE FUNCTION pgqueue.lapsed_workers() RETURNS TABLE (worker uuid, reason text)
LANGUAGE sql STABLE
AS $$
    SELECT r.worker, coalesce(w.reason, 'its worker is gone')
      FROM (SELECT DISTINCT r.worker FROM pgqueue.running r) r
      LEFT JOIN pgqueue.worker w ON w.id = r.worker
     WHERE w.id IS NULL OR w.fenced_at IS NOT NULL
     UNION
    SELECT w.id, w.reason FROM pgqueue.worker w WHERE w.fenced_at IS NOT NULL
$$;

-- functions/limit_queue.sql
-- What an operator says about a queue: keys of `chosen` replace what was chosen before, null takes a choice back, so that the App's
-- declaration holds again; {"concurrency": 0} and the like mean: no such limit, whatever the App declares. Returns what is in force.
CREATE OR REPLACE FUNCTION pgqueue.limit_queue(queue text, chosen jsonb) RETURNS jsonb
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    kept jsonb;
BEGIN
    PERFORM pgqueue.check_limits(chosen);
    PERFORM pg_advisory_xact_lock(pgqueue.queue_lock(queue));    -- first: a claim that has it may write to the row of the queue
    SELECT q.chosen INTO kept FROM pgqueue.queue q WHERE q.name = limit_queue.queue FOR UPDATE;
    IF NOT FOUND THEN
        PERFORM pgqueue.refuse('PQ002', format('there is no queue %L', queue),
                               'Declare it with App(queues=[Queue(...)]) and run "pgqueue migrate MODULE:APP".');
    END IF;
    kept := kept || limit_queue.chosen;
    kept := kept - ARRAY(SELECT e.key FROM jsonb_each(limit_queue.chosen) e WHERE e.value = 'null');
    SELECT coalesce(jsonb_object_agg(e.key, CASE WHEN e.value = '0' THEN 'null' ELSE e.value END), '{}') INTO kept FROM jsonb_each(kept) e;
    UPDATE pgqueue.queue q SET chosen = kept WHERE q.name = limit_queue.queue;
    PERFORM pgqueue.apply_limits(queue);
    RETURN (SELECT jsonb_strip_nulls(q.declared || q.chosen) FROM pgqueue.queue q WHERE q.name = limit_queue.queue);
END
$$;

-- functions/limits.sql
-- One row per queue: what is in force, what of it the App declares and an operator has chosen, how much of the concurrency is in use
-- (null: it has no limits), how many jobs wait for their turn at a key (up to 10,000), and in how many seconds the next job may begin.
CREATE OR REPLACE FUNCTION pgqueue.limits()
RETURNS TABLE (queue text, paused boolean, in_force jsonb, declared jsonb, chosen jsonb, used bigint, waiting_for_key bigint,
               next_start_seconds double precision)
LANGUAGE plpgsql STABLE
SET enable_seqscan = off SET jit = off
AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    SELECT q.name, q.paused, jsonb_strip_nulls(q.declared || q.chosen), q.declared, q.chosen,
           CASE WHEN q.limited THEN (SELECT coalesce(sum(r.cost), 0)::bigint FROM pgqueue.running r WHERE r.limited = q.name) END,
           (SELECT count(*) FROM (SELECT FROM pgqueue.waiting w
                                   WHERE w.kind = 'key' AND w.key >= q.name || '/' AND w.key < q.name || '0' LIMIT 10001) c),
           CASE WHEN q.rate IS NOT NULL
                THEN extract(epoch FROM pgqueue.next_start(q.name, '', q.rate, q.rate_seconds, q.rate_burst, 1, pgqueue.clock())
                                        - pgqueue.clock())::float8 END
      FROM pgqueue.queue q ORDER BY q.name;
END
$$;

-- functions/listen_idle.sql
-- Says that a housekeeper is idle and listening for the next so many seconds.
CREATE OR REPLACE FUNCTION pgqueue.listen_idle(seconds double precision) RETURNS void
LANGUAGE sql VOLATILE
AS $$
    SELECT setval('pgqueue.idle_until', (extract(epoch FROM pgqueue.clock()) * 1000 + seconds * 1000)::bigint)
$$;

-- functions/lock_queues.sql
-- Takes the locks of these queues for a claim, all of them before anything is read, in the order of names. Returns the limited ones.
CREATE OR REPLACE FUNCTION pgqueue.lock_queues(queues text[]) RETURNS text[]
LANGUAGE plpgsql VOLATILE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off
AS $$
DECLARE
    q     record;
    alone text[] := '{}';
BEGIN
    FOR q IN SELECT u.name, u.limited FROM pgqueue.queue u WHERE u.name = ANY (queues) ORDER BY u.name LOOP
        IF q.limited THEN
            PERFORM pg_advisory_xact_lock(pgqueue.queue_lock(q.name));
            alone := alone || q.name;
        ELSE
            PERFORM pg_advisory_xact_lock_shared(pgqueue.queue_lock(q.name));
        END IF;
    END LOOP;
    RETURN alone;
END
$$;

-- functions/look_again.sql
-- Has waiting jobs looked at once this transaction has committed: these jobs, and those that wait for these events. (See the
-- table wakeup.) The housekeepers are told, and look once a second anyway.
CREATE OR REPLACE FUNCTION pgqueue.look_again(jobs uuid[], events text[] DEFAULT '{}') RETURNS void
LANGUAGE plpgsql VOLATILE
AS $$
BEGIN
    INSERT INTO pgqueue.wakeup (pos, job_id) SELECT nextval('pgqueue.position'), j FROM unnest(jobs) j GROUP BY j;
    INSERT INTO pgqueue.wakeup (pos, event) SELECT nextval('pgqueue.position'), e FROM unnest(events) e;
    PERFORM pg_notify('pgqueue_wake', '');
END
$$;

-- functions/new_id.sql
-- A UUID of version 7: time first, so that neighbours in time are neighbours in the index; the rest is random.
CREATE OR REPLACE FUNCTION pgqueue.new_id() RETURNS uuid
LANGUAGE sql VOLATILE
AS $$
    SELECT encode(set_bit(set_bit(overlay(uuid_send(gen_random_uuid())
                  PLACING substring(int8send((extract(epoch FROM pgqueue.clock()) * 1000)::bigint) FROM 3) FROM 1 FOR 6),
                  52, 1), 53, 1), 'hex')::uuid
$$;

-- functions/newest_position.sql
-- The position last given to a ready job. A claimer that samples it learns from where on to look for younger ones.
CREATE OR REPLACE FUNCTION pgqueue.newest_position() RETURNS bigint
LANGUAGE sql VOLATILE
AS $$ SELECT last_value FROM pgqueue.position $$;

-- functions/next_child.sql
-- The number of the first child that has not ended, of those that a parent waits for: key says which, as "seq:first". Null: all
-- have ended. (A job that was run again from the middle may have the children of the one before it: see rerun.)
CREATE OR REPLACE FUNCTION pgqueue.next_child(parent uuid, key text) RETURNS integer
LANGUAGE plpgsql STABLE STRICT
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off
SET enable_hashjoin = off SET enable_mergejoin = off SET enable_sort = off SET jit = off
AS $$
DECLARE
    holder uuid := pgqueue.children_of(next_child.parent, split_part(next_child.key, ':', 1)::integer);
BEGIN
    RETURN (SELECT c.ordinal FROM pgqueue.job c LEFT JOIN pgqueue.outcome o ON o.job_id = c.id
             WHERE c.parent = holder AND c.parent_seq = split_part(next_child.key, ':', 1)::integer
               AND c.ordinal >= split_part(next_child.key, ':', 2)::integer AND o.job_id IS NULL
             ORDER BY c.ordinal LIMIT 1);
END
$$;

-- functions/next_start.sql
-- When a job of this cost may begin, by the rate of a queue or of a key in it. The register holds the moment at which, without a
-- burst, the next start would be due; a burst may come so much earlier. In any time of `seconds` the costs of what begins sum up to
-- at most amount + burst - 1 (with a cost larger than burst in place of burst, if there is one).
CREATE OR REPLACE FUNCTION pgqueue.next_start(
    queue text, key text, amount integer, seconds double precision, burst integer, cost integer, stamp timestamptz) RETURNS timestamptz
LANGUAGE sql STABLE
AS $$
    SELECT greatest(stamp, (SELECT r.next FROM pgqueue.rate_register r WHERE r.queue = next_start.queue AND r.key = next_start.key)
                           - make_interval(secs => greatest(0, burst - cost) * seconds / amount))
$$;

-- functions/next_turns.sql
-- Jobs that wait for their turn at these keys ("queue/key") are ready, as many as have room there, in their order. Returns the keys
-- of which one was moved. It waits for others that move jobs of the same keys: to skip them would let the next one overtake.
CREATE OR REPLACE FUNCTION pgqueue.next_turns(turns text[]) RETURNS SETOF text
LANGUAGE plpgsql VOLATILE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off
SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $$
BEGIN
    RETURN QUERY
    WITH picked AS MATERIALIZED (
        SELECT w.tid
          FROM (SELECT DISTINCT t, split_part(t, '/', 1) AS queue, substr(t, strpos(t, '/') + 1) AS key FROM unnest(turns) t ORDER BY t) g
          LEFT JOIN pgqueue.queue q ON q.name = g.queue
         CROSS JOIN LATERAL (
            SELECT CASE WHEN q.per_key IS NOT NULL
                        THEN q.per_key - (SELECT count(*) FROM pgqueue.running r WHERE r.limited = g.queue AND r.key = g.key)
                        WHEN q.key_rate IS NOT NULL THEN 1 ELSE 1000 END AS free) room
         CROSS JOIN LATERAL (
            SELECT w.ctid AS tid FROM pgqueue.waiting w
             WHERE w.kind = 'key' AND w.key = g.t ORDER BY w.pos LIMIT greatest(room.free, 0) FOR UPDATE) w
    ), gone AS (
        DELETE FROM pgqueue.waiting w WHERE w.ctid = ANY (ARRAY(SELECT p.tid FROM picked p)) RETURNING w.*
    ), back AS (
        INSERT INTO pgqueue.ready (queue, lane, pos, job_id)
        SELECT g.queue, g.lane - g.lane % 2, g.pos, g.job_id FROM gone g
    )
    SELECT DISTINCT g.key FROM gone g;
END
$$;

-- functions/not_ended.sql
-- Those of these jobs that have not ended.
CREATE OR REPLACE FUNCTION pgqueue.not_ended(jobs uuid[]) RETURNS uuid[]
LANGUAGE sql STABLE
AS $$
    SELECT coalesce(array_agg(j.id), '{}')
      FROM pgqueue.job j LEFT JOIN pgqueue.outcome o ON o.job_id = j.id
     WHERE j.id = ANY (jobs) AND o.job_id IS NULL
$$;

-- functions/pause.sql
-- Nobody claims from this queue any more until resume(). What runs goes on.
CREATE OR REPLACE FUNCTION pgqueue.pause(queue text) RETURNS void
LANGUAGE plpgsql VOLATILE
AS $$
BEGIN
    UPDATE pgqueue.queue q SET paused = true WHERE q.name = pause.queue;
    IF NOT FOUND THEN
        PERFORM pgqueue.refuse('PQ002', format('there is no queue %L', queue));
    END IF;
END
$$;

-- functions/pause_schedule.sql
-- Let a schedule rest until it is resumed: what comes due meanwhile is left out. Survives every registration of its App. by: who asks.
-- False: it was paused already.
CREATE OR REPLACE FUNCTION pgqueue.pause_schedule(schedule text, by text DEFAULT NULL) RETURNS boolean
LANGUAGE plpgsql VOLATILE
AS $$
#variable_conflict use_column
DECLARE
    s pgqueue.schedule := pgqueue.change_schedule(pause_schedule.schedule);
BEGIN
    UPDATE pgqueue.schedule o SET paused = true, paused_by = left(pause_schedule.by, 128), revision = o.revision + 1
     WHERE o.name = s.name AND NOT o.paused;
    RETURN NOT s.paused;
END
$$;

-- functions/pick_fair.sql
-- Ready jobs of a fair queue, locked: jobs that come back first, then, in each lane, one of each for whom there are any (or as many
-- as their weight), beginning behind the one who was served last. n: their order.
CREATE OR REPLACE FUNCTION pgqueue.pick_fair(queue text, amount integer)
RETURNS TABLE (tid tid, lane smallint, pos bigint, job_id uuid, n bigint)
LANGUAGE plpgsql VOLATILE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off
SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    cursor text := (SELECT t.last FROM pgqueue.fair_turn t WHERE t.queue = pick_fair.queue);
    who    text[];
    shares integer[];
    share  numeric;
    job    record;
BEGIN
    n := 0;
    FOR l IN 0 .. 19 LOOP
        lane := l;
        FOR job IN SELECT r.ctid AS tid, r.lane, r.pos, r.job_id FROM pgqueue.ready r
                    WHERE r.queue = pick_fair.queue AND r.lane = pick_fair.lane AND r.fair IS NULL ORDER BY r.pos
                    LIMIT amount - n FOR UPDATE SKIP LOCKED LOOP
            n := n + 1;
            tid := job.tid; pos := job.pos; job_id := job.job_id;
            RETURN NEXT;
        END LOOP;
        CONTINUE WHEN n >= amount OR lane % 2 = 0;
        -- Who has jobs in this lane: those behind the one who was served last, then the others.
        WITH RECURSIVE present AS (
            (SELECT r.fair, 1 AS i, false AS again FROM pgqueue.ready r
              WHERE r.queue = pick_fair.queue AND r.lane = pick_fair.lane AND r.fair > coalesce(cursor, '') ORDER BY r.fair LIMIT 1)
             UNION ALL
            SELECT x.fair, p.i + 1, false FROM present p
             CROSS JOIN LATERAL (SELECT r.fair FROM pgqueue.ready r
                                  WHERE r.queue = pick_fair.queue AND r.lane = pick_fair.lane AND r.fair > p.fair ORDER BY r.fair LIMIT 1) x
             WHERE p.i < amount - n
        ), from_start AS (
            (SELECT r.fair, 1 AS i FROM pgqueue.ready r
              WHERE r.queue = pick_fair.queue AND r.lane = pick_fair.lane AND r.fair <= coalesce(cursor, '') ORDER BY r.fair LIMIT 1)
             UNION ALL
            SELECT x.fair, p.i + 1 FROM from_start p
             CROSS JOIN LATERAL (SELECT r.fair FROM pgqueue.ready r
                                  WHERE r.queue = pick_fair.queue AND r.lane = pick_fair.lane AND r.fair > p.fair
                                    AND r.fair <= coalesce(cursor, '') ORDER BY r.fair LIMIT 1) x
             WHERE p.i < amount - n
        ), everyone AS (
            SELECT p.fair, p.i AS i FROM present p UNION ALL SELECT f.fair, 1000000 + f.i FROM from_start f
        )
        SELECT array_agg(e.fair ORDER BY e.i), array_agg(coalesce(w.weight, 1) ORDER BY e.i) INTO who, shares
          FROM (SELECT e.fair, e.i FROM everyone e ORDER BY e.i LIMIT amount - n) e
          LEFT JOIN pgqueue.fair_weight w ON w.queue = pick_fair.queue AND w.fair = e.fair;
        CONTINUE WHEN who IS NULL;
        share := greatest(1, (amount - n) / (SELECT sum(s) FROM unnest(shares) s)::numeric);
        FOR job IN SELECT r.tid, r.pos, r.job_id, g.fair
                     FROM unnest(who, shares) WITH ORDINALITY g(fair, weight, i)
                    CROSS JOIN LATERAL (
                        SELECT r.ctid AS tid, r.pos, r.job_id FROM pgqueue.ready r
                         WHERE r.queue = pick_fair.queue AND r.lane = pick_fair.lane AND r.fair = g.fair
                         ORDER BY r.pos LIMIT floor(share * g.weight) FOR UPDATE SKIP LOCKED) r
                    ORDER BY g.i, r.pos LIMIT amount - n LOOP
            n := n + 1;
            tid := job.tid; pos := job.pos; job_id := job.job_id;
            cursor := job.fair;
            RETURN NEXT;
        END LOOP;
        EXIT WHEN n >= amount;
    END LOOP;
    IF cursor IS NOT NULL THEN
        INSERT INTO pgqueue.fair_turn (queue, last) VALUES (pick_fair.queue, cursor)
        ON CONFLICT (queue) DO UPDATE SET last = excluded.last;
    END IF;
END
$$;

-- functions/pick_limited.sql
-- The part of claim for a limited queue, whose lock the caller holds: which of its ready jobs may begin, in their order, and when
-- (null: at once). They are locked. Jobs whose key has had its share are put aside, into `waiting`, so that nobody meets them again
-- before it is their turn. Jobs that will not run (cancelled, too late, unknown here) cost nothing.
--
-- at_once: how many jobs the worker can begin at this moment. It gets more only of what there is plenty of: a job that was claimed
-- and has not begun uses its limit for nothing.
CREATE OR REPLACE FUNCTION pgqueue.pick_limited(q pgqueue.queue, names text[], amount integer, at_once integer, hints bigint[], stamp timestamptz)
RETURNS TABLE (tid tid, starts_at timestamptz)
LANGUAGE plpgsql VOLATILE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off
SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    AHEAD   CONSTANT interval := '50 ms';                    -- a start may be given out so long before it
    by_key  boolean := q.per_key IS NOT NULL;
    room    bigint := 1000000000;
    found   bigint := 0;
    look    integer;
    aside   text[];                                          -- the keys of jobs that were put aside
    moment  timestamptz;
    job     record;
BEGIN
    IF q.concurrency IS NOT NULL THEN
        room := q.concurrency - pgqueue.used(q);
        IF room <= 0 THEN
            RETURN;
        END IF;
        amount := least(amount, greatest(at_once, room / 4));
    END IF;
    IF q.rate IS NOT NULL THEN
        IF pgqueue.next_start(q.name, '', q.rate, q.rate_seconds, q.rate_burst, 1, stamp) > stamp + AHEAD THEN
            RETURN;
        END IF;
    END IF;
    look := CASE WHEN by_key OR q.key_rate IS NOT NULL THEN least(4 * amount + 100, 2000) ELSE amount END;
    FOR round IN 1 .. 50 LOOP                                -- one is enough, unless the jobs of busy keys are in front
        aside := '{}';
        FOR job IN
            WITH seen AS MATERIALIZED (
                SELECT r.* FROM pgqueue.pick_plain(q.name, look, hints) r WHERE q.fair_by IS NULL
                 UNION ALL
                SELECT r.* FROM pgqueue.pick_fair(q.name, look) r WHERE q.fair_by IS NOT NULL
            ), facts AS MATERIALIZED (
                SELECT s.*, j.id, j.cost, CASE WHEN (by_key OR q.key_rate IS NOT NULL) AND NOT f.free THEN q.name || '/' || j.key END AS turn, j.key, f.free
                  FROM seen s
                  JOIN pgqueue.job j ON j.id = s.job_id
                  LEFT JOIN pgqueue.cancel_request c ON c.job_id = s.job_id
                 CROSS JOIN LATERAL (
                    SELECT (c.job_id IS NOT NULL OR (CASE j.version WHEN 1 THEN j.name ELSE j.name || '@' || j.version END) <> ALL (names)
                           OR (j.policy ->> 'deadline')::timestamptz <= stamp
                           OR (s.lane % 2 = 1 AND (j.policy ->> 'expires_at')::timestamptz <= stamp)) IS TRUE AS free) f
            )
            SELECT f.*, u.queued,
                   CASE WHEN f.turn IS NULL THEN true
                        ELSE (NOT by_key OR row_number() OVER (PARTITION BY f.turn ORDER BY f.n) <= q.per_key - u.used)
                             AND (f.lane % 2 = 0 OR NOT u.queued) END AS allowed
              FROM facts f
              LEFT JOIN LATERAL (
                    SELECT (SELECT count(*) FROM pgqueue.running r WHERE r.limited = q.name AND r.key = f.key) AS used,
                           EXISTS (SELECT FROM pgqueue.waiting w WHERE w.kind = 'key' AND w.key = f.turn) AS queued
                     WHERE f.turn IS NOT NULL) u ON true
             ORDER BY f.n
        LOOP
            IF job.free THEN
                tid := job.tid;
                starts_at := NULL;
                RETURN NEXT;
                CONTINUE;
            END IF;
            IF NOT job.allowed THEN
                PERFORM pgqueue.put_aside(job.tid, job.id, job.turn, q.name, job.lane, job.pos, NULL);
                aside := aside || job.turn;
                CONTINUE;
            END IF;
            EXIT WHEN found >= amount OR (job.cost > room AND NOT (found = 0 AND room = q.concurrency));
            starts_at := NULL;
            IF q.key_rate IS NOT NULL AND job.turn IS NOT NULL THEN
                moment := pgqueue.next_start(q.name, job.key, q.key_rate, q.key_rate_seconds, q.key_rate_burst, job.cost, stamp);
                IF moment > stamp + AHEAD THEN
                    PERFORM pgqueue.put_aside(job.tid, job.id, job.turn, q.name, job.lane, job.pos, moment - AHEAD);
                    aside := aside || job.turn;
                    CONTINUE;
                END IF;
                starts_at := moment;
            END IF;
            IF q.rate IS NOT NULL THEN
                moment := pgqueue.next_start(q.name, '', q.rate, q.rate_seconds, q.rate_burst, job.cost, stamp);
                EXIT WHEN moment > stamp + AHEAD;
                starts_at := greatest(starts_at, moment);
                PERFORM pgqueue.take_start(q.name, '', q.rate, q.rate_seconds, q.rate_burst, job.cost, starts_at);
            END IF;
            IF q.key_rate IS NOT NULL AND job.turn IS NOT NULL THEN
                PERFORM pgqueue.take_start(q.name, job.key, q.key_rate, q.key_rate_seconds, q.key_rate_burst, job.cost, starts_at);
                UPDATE pgqueue.waiting w SET until = pgqueue.next_start(q.name, job.key, q.key_rate, q.key_rate_seconds, q.key_rate_burst, 1, stamp) - AHEAD
                 WHERE w.ctid = (SELECT n.ctid FROM pgqueue.waiting n WHERE n.kind = 'key' AND n.key = job.turn ORDER BY n.pos LIMIT 1);
            END IF;
            tid := job.tid;
            found := found + 1;
            room := room - job.cost;
            RETURN NEXT;
        END LOOP;
        -- Whoever looks after keys is told, in case the job that is in front ends at this moment.
        INSERT INTO pgqueue.wakeup (pos, turn) SELECT nextval('pgqueue.position'), t FROM (SELECT DISTINCT t FROM unnest(aside) t) t;
        EXIT WHEN found > 0 OR cardinality(aside) = 0;
    END LOOP;
END
$$;

-- functions/pick_plain.sql
-- The first ready jobs of a queue, in the order of lanes and positions, locked. n: their order. hints: as in claim, for its 20 lanes;
-- jobs that come back keep their position while they wait for their turn, so there is no hint for those.
CREATE OR REPLACE FUNCTION pgqueue.pick_plain(queue text, amount integer, hints bigint[])
RETURNS TABLE (tid tid, lane smallint, pos bigint, job_id uuid, n bigint)
LANGUAGE plpgsql VOLATILE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off
SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    SELECT r.tid, l.lane, r.pos, r.job_id, row_number() OVER ()
      FROM unnest('{0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19}'::smallint[]) l(lane)
     CROSS JOIN LATERAL (
        SELECT r.ctid AS tid, r.pos, r.job_id FROM pgqueue.ready r
         WHERE r.queue = pick_plain.queue AND r.lane = l.lane
           AND r.pos >= CASE l.lane % 2 WHEN 1 THEN hints[l.lane + 1] ELSE 0 END
         ORDER BY r.pos LIMIT amount FOR UPDATE SKIP LOCKED) r
     LIMIT amount;
END
$$;

-- functions/postpone_tick.sql
-- The ticks of a schedule cannot be enqueued now: say why, and look again in ten seconds. Nothing is lost by that.
CREATE OR REPLACE FUNCTION pgqueue.postpone_tick(schedule text, seen bigint, problem text) RETURNS void
LANGUAGE plpgsql VOLATILE
AS $$
#variable_conflict use_column
BEGIN
    UPDATE pgqueue.schedule s SET next_at = pgqueue.clock() + interval '10 seconds', problem = left(postpone_tick.problem, 1000)
     WHERE s.ctid = (SELECT o.ctid FROM pgqueue.schedule o
                      WHERE o.name = postpone_tick.schedule AND o.revision = seen FOR UPDATE SKIP LOCKED);
END
$$;

-- functions/proceed.sql
-- A job has come to a wait (or comes back to one). Answers `stored` with the result, which is checkpointed, where what it waits for is
-- there or its time is over; `cancel` (the same, and somebody asks that the job be cancelled); `wait`, with the seconds that are left
-- (null: no limit); or `lost`. kind sleep: key is not used. A message is taken in the transaction of its checkpoint: exactly once.
CREATE OR REPLACE FUNCTION pgqueue.proceed(
    job uuid, token bigint, seen integer, seq integer, name text, kind text, key text,
    OUT answer text, OUT result text, OUT seconds double precision)
LANGUAGE plpgsql VOLATILE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off
AS $$
DECLARE
    xid   xid8 := pgqueue.fence(job, token, seen, 0);
    until timestamptz;
    holder uuid;
BEGIN
    IF xid IS NULL THEN
        answer := 'lost';
        RETURN;
    END IF;
    SELECT w.until INTO until FROM pgqueue.wait w WHERE w.job_id = job AND w.seq = proceed.seq;
    IF kind = 'event' THEN
        SELECT json_build_object('value', e.value::json) INTO result FROM pgqueue.event e WHERE e.key = proceed.key;
    ELSIF kind = 'message' THEN
        DELETE FROM pgqueue.message m
         WHERE m.ctid = (SELECT n.ctid FROM pgqueue.message n WHERE n.job_id = job AND n.topic = proceed.key ORDER BY n.pos LIMIT 1)
        RETURNING json_build_object('value', m.value::json) INTO result;
    ELSIF kind = 'job' THEN
        SELECT CASE WHEN j.id IS NULL THEN json_build_object('status', 'unknown') ELSE pgqueue.ending(o) END INTO result
          FROM (SELECT proceed.key::uuid AS id) g
          LEFT JOIN pgqueue.job j ON j.id = g.id
          LEFT JOIN pgqueue.outcome o ON o.job_id = j.id
         WHERE j.id IS NULL OR o.job_id IS NOT NULL;
    ELSIF kind = 'children' AND pgqueue.next_child(job, proceed.key) IS NULL THEN
        holder := pgqueue.children_of(job, split_part(proceed.key, ':', 1)::integer);
        SELECT json_build_object('parent', holder, 'failed', coalesce(json_object_agg(c.ordinal, pgqueue.ending(o)) FILTER (WHERE o.status <> 'succeeded'), '{}'))
          INTO result
          FROM pgqueue.job c JOIN pgqueue.outcome o ON o.job_id = c.id
         WHERE c.parent = holder AND c.parent_seq = split_part(proceed.key, ':', 1)::integer;
    END IF;
    IF result IS NULL AND until <= pgqueue.clock() THEN
        result := '{"timeout":true}';
    END IF;
    IF result IS NULL THEN
        answer := 'wait';
        seconds := extract(epoch FROM until - pgqueue.clock());
    ELSE
        answer := CASE WHEN pgqueue.checkpoint(job, token, seq, name, result, NULL, xid) THEN 'cancel' ELSE 'stored' END;
    END IF;
END
$$;

-- functions/promote.sql
-- Move up to `amount` due jobs from `scheduled` to `ready`, the longest due first. Returns how many, and in how many
-- seconds the next one is due (null: none).
CREATE OR REPLACE FUNCTION pgqueue.promote(amount integer, OUT moved bigint, OUT next_due double precision)
LANGUAGE plpgsql VOLATILE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off
SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $$
BEGIN
    PERFORM pgqueue.assert_read_committed();
    PERFORM pgqueue.quick_commit();
    WITH due AS MATERIALIZED (
        SELECT s.ctid AS tid FROM pgqueue.scheduled s
         WHERE s.run_at <= pgqueue.clock_bound() ORDER BY s.run_at LIMIT amount FOR UPDATE SKIP LOCKED
    ), gone AS (
        DELETE FROM pgqueue.scheduled s WHERE s.ctid = ANY (ARRAY(SELECT d.tid FROM due d)) RETURNING s.*
    ), now_ready AS (
        INSERT INTO pgqueue.ready (queue, lane, pos, job_id, fair)
        SELECT g.queue, g.lane, nextval('pgqueue.position'), g.job_id, CASE g.lane % 2 WHEN 1 THEN j.fair END
          FROM gone g LEFT JOIN pgqueue.job j ON j.id = g.job_id ORDER BY g.run_at
        RETURNING job_id
    )
    SELECT count(*) INTO moved FROM now_ready;
    IF moved > 0 THEN
        PERFORM pgqueue.wake_idle();
    END IF;
    SELECT extract(epoch FROM s.run_at - pgqueue.clock()) INTO next_due FROM pgqueue.scheduled s ORDER BY s.run_at LIMIT 1;
END
$$;

-- functions/prune.sql
-- Delete up to `amount` ended jobs, with all their facts, that ended longer ago than `older` with one of these statuses.
-- Starts from the outcome (requeue goes through the same gate), and never takes a child whose parent still lives, nor one that a
-- rerun of its parent still needs.
-- Returns how many went: fewer than `amount` means that nothing is left to do.
CREATE OR REPLACE FUNCTION pgqueue.prune(statuses text[], older interval, amount integer) RETURNS bigint
LANGUAGE plpgsql VOLATILE
AS $$
#variable_conflict use_column
DECLARE
    pruned bigint;
BEGIN
    PERFORM pgqueue.assert_read_committed();
    IF older < interval '0' THEN
        PERFORM pgqueue.refuse('PQ004', format('the age %s is negative', older));
    END IF;
    PERFORM pg_advisory_xact_lock_shared(hashtextextended('pgqueue.kept_children', 0));     -- see keep_children
    WITH old AS MATERIALIZED (
        SELECT o.ctid AS tid FROM pgqueue.outcome o
          JOIN pgqueue.job j ON j.id = o.job_id
          LEFT JOIN pgqueue.job p ON p.id = j.parent
          LEFT JOIN pgqueue.outcome po ON po.job_id = j.parent
         WHERE o.finished_at < pgqueue.clock_bound() - older AND o.status = ANY (statuses)
           AND (p.id IS NULL OR po.job_id IS NOT NULL)
           AND NOT EXISTS (SELECT FROM pgqueue.kept_children k
                             JOIN pgqueue.job b ON b.id = k.job_id
                             LEFT JOIN pgqueue.outcome bo ON bo.job_id = k.job_id
                            WHERE k.parent = j.parent AND k.seq = j.parent_seq AND bo.job_id IS NULL)
         ORDER BY o.finished_at LIMIT amount FOR UPDATE OF o SKIP LOCKED
    ), gone AS (
        DELETE FROM pgqueue.outcome o WHERE o.ctid = ANY (ARRAY(SELECT x.tid FROM old x)) RETURNING o.job_id
    ), ids AS MATERIALIZED (
        SELECT array_agg(g.job_id) AS list FROM gone g
    ), checkpoints AS (
        DELETE FROM pgqueue.checkpoint c WHERE c.job_id = ANY ((SELECT i.list FROM ids i)::uuid[])
    ), attempts AS (
        DELETE FROM pgqueue.attempt a WHERE a.job_id = ANY ((SELECT i.list FROM ids i)::uuid[])
    ), waits AS (
        DELETE FROM pgqueue.wait w WHERE w.job_id = ANY ((SELECT i.list FROM ids i)::uuid[])
    ), messages AS (
        DELETE FROM pgqueue.message m WHERE m.job_id = ANY ((SELECT i.list FROM ids i)::uuid[])
    ), kept AS (
        DELETE FROM pgqueue.kept_children k WHERE k.job_id = ANY ((SELECT i.list FROM ids i)::uuid[])
    ), progress AS (
        DELETE FROM pgqueue.progress p WHERE p.job_id = ANY ((SELECT i.list FROM ids i)::uuid[])
    ), stream_ends AS (
        DELETE FROM pgqueue.stream_end e WHERE e.job_id = ANY ((SELECT i.list FROM ids i)::uuid[])
    ), streams AS (
        DELETE FROM pgqueue.stream s WHERE s.job_id = ANY ((SELECT i.list FROM ids i)::uuid[])
    ), jobs AS (
        DELETE FROM pgqueue.job j WHERE j.id = ANY ((SELECT i.list FROM ids i)::uuid[])
    )
    SELECT count(*) INTO pruned FROM gone;
    -- Requests to cancel that no job is left of, also one that was made while its job was pruned: it must not meet a later job of
    -- the same id.
    DELETE FROM pgqueue.cancel_request c
     WHERE c.job_id = ANY (ARRAY(SELECT r.job_id FROM pgqueue.cancel_request r LEFT JOIN pgqueue.job j ON j.id = r.job_id
                                  WHERE j.id IS NULL LIMIT 1000));
    RETURN pruned;
END
$$;

-- functions/prune_events.sql
-- Delete up to `amount` events that were sent longer ago than `older`, without those of which a job has yet to read the value, because
-- it waits for them. Returns how many went.
CREATE OR REPLACE FUNCTION pgqueue.prune_events(older interval, amount integer) RETURNS bigint
LANGUAGE plpgsql VOLATILE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $$
DECLARE
    pruned bigint;
BEGIN
    PERFORM pgqueue.assert_read_committed();
    IF older < interval '0' THEN
        PERFORM pgqueue.refuse('PQ004', format('the age %s is negative', older));
    END IF;
    WITH old AS MATERIALIZED (
        SELECT e.ctid AS tid FROM pgqueue.event e
         WHERE e.sent_at < pgqueue.clock_bound() - older
           AND NOT EXISTS (SELECT FROM pgqueue.wait w
                             LEFT JOIN pgqueue.checkpoint c ON c.job_id = w.job_id AND c.seq = w.seq
                             LEFT JOIN pgqueue.outcome o ON o.job_id = w.job_id
                            WHERE w.kind = 'event' AND w.key = e.key AND c.job_id IS NULL AND o.job_id IS NULL)
         ORDER BY e.sent_at LIMIT amount FOR UPDATE SKIP LOCKED
    ), gone AS (
        DELETE FROM pgqueue.event e WHERE e.ctid = ANY (ARRAY(SELECT o.tid FROM old o)) RETURNING 1
    )
    SELECT count(*) INTO pruned FROM gone;
    RETURN pruned;
END
$$;

-- functions/prune_ticks.sql
-- Delete up to `amount` rows of ticks that were dealt with longer ago than `older`, and whose job is no longer there. Returns how many
-- went. No schedule comes back to them: done_until is behind them.
CREATE OR REPLACE FUNCTION pgqueue.prune_ticks(older interval, amount integer) RETURNS bigint
LANGUAGE plpgsql VOLATILE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $$
DECLARE
    pruned bigint;
BEGIN
    PERFORM pgqueue.assert_read_committed();
    IF older < interval '0' THEN
        PERFORM pgqueue.refuse('PQ004', format('the age %s is negative', older));
    END IF;
    WITH old AS MATERIALIZED (
        SELECT t.ctid AS tid FROM pgqueue.tick t LEFT JOIN pgqueue.job j ON j.id = t.job_id
         WHERE t.ticked_at < pgqueue.clock_bound() - older AND j.id IS NULL
         ORDER BY t.ticked_at LIMIT amount FOR UPDATE OF t SKIP LOCKED
    ), gone AS (
        DELETE FROM pgqueue.tick t WHERE t.ctid = ANY (ARRAY(SELECT o.tid FROM old o)) RETURNING 1
    )
    SELECT count(*) INTO pruned FROM gone;
    RETURN pruned;
END
$$;

-- functions/put_aside.sql
-- A ready job has to wait for its turn at a key; until: for a rate, when that will be at the earliest.
CREATE OR REPLACE FUNCTION pgqueue.put_aside(tid tid, job uuid, turn text, queue text, lane integer, pos bigint, until timestamptz)
RETURNS void
LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off
AS $$
BEGIN
    DELETE FROM pgqueue.ready r WHERE r.ctid = put_aside.tid;
    INSERT INTO pgqueue.waiting (job_id, kind, key, until, queue, lane, pos) VALUES (job, 'key', turn, until, queue, lane, pos);
END
$$;

-- functions/queue_lock.sql
-- The number of a queue's lock. Whoever claims from an unlimited queue shares it; who claims from a limited one, or changes its
-- limits, has it alone, until the end of the transaction.
CREATE OR REPLACE FUNCTION pgqueue.queue_lock(queue text) RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$
    SELECT hashtextextended('pgqueue.queue/' || queue, 0)
$$;

-- functions/quick_commit.sql
-- For a verb whose loss in a crash of the server costs a repetition and no more (claim, promote): its commit need not
-- wait for the disk. Only where nothing was written before in this transaction.
CREATE OR REPLACE FUNCTION pgqueue.quick_commit() RETURNS void
LANGUAGE plpgsql VOLATILE
AS $$
BEGIN
    IF pg_current_xact_id_if_assigned() IS NULL THEN
        PERFORM set_config('synchronous_commit', 'off', true);
    END IF;
END
$$;

-- functions/read_stream.sql
-- What is in a stream of a job behind the position `after`: at most `amount` values, and fewer where they are large.
CREATE OR REPLACE FUNCTION pgqueue.read_stream(job uuid, name text, after integer, amount integer)
RETURNS TABLE (pos integer, value text)
LANGUAGE plpgsql STABLE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off
AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    SELECT h.pos, h.value
      FROM (SELECT s.pos, s.value, sum(octet_length(s.value)) OVER (ORDER BY s.pos) AS bytes
              FROM (SELECT t.pos, t.value FROM pgqueue.stream t
                     WHERE t.job_id = job AND t.name = read_stream.name AND t.pos > after ORDER BY t.pos LIMIT amount) s) h
     WHERE h.bytes <= 4194304 OR h.pos = after + 1
     ORDER BY h.pos;
END
$$;

-- functions/reap.sql
-- Take jobs back from a worker that is fenced or gone, up to 500, skipping those that one of its sessions still holds
-- (come back for them). `started` are the jobs it had begun: they are charged with a crash, and fail when that happened
-- max_crashes times without a new checkpoint. Where several had begun, nobody knows which one it was: they are all charged, but
-- fail only after three times as often, and are marked as suspect, so that each begins alone next time. The others are given
-- back as if never taken. reason null: nobody is charged
-- (we stopped the worker ourselves). kind lost: the lease ran out and nobody knows what had begun; then only a job that
-- was alone in its worker is charged. kind timeout: we stopped it because of the time limit of `step` (0: of the whole job) of the
-- one job in `started`, which is charged with that. Removes the worker when it has nothing left. Returns what became of the jobs.
CREATE OR REPLACE FUNCTION pgqueue.reap(worker uuid, started uuid[], kind text, reason text, step integer DEFAULT NULL)
RETURNS TABLE (given_back bigint, failed bigint, still_held bigint)
LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    stamp timestamptz := pgqueue.clock();
    fenced pgqueue.worker;
    alone  boolean;
    ended  uuid[];
    turns  text[];
BEGIN
    PERFORM pgqueue.assert_read_committed();
    PERFORM FROM pgqueue.worker w WHERE w.id = reap.worker AND w.fenced_at IS NULL;
    IF FOUND THEN
        PERFORM pgqueue.refuse('PQ009', format('worker %s is alive: fence it before its jobs are taken', worker));
    END IF;
    IF kind = 'lost' THEN                                    -- does whoever fenced it know more than the caller?
        SELECT * INTO fenced FROM pgqueue.worker w WHERE w.id = reap.worker AND w.started IS NOT NULL;
        IF FOUND THEN
            started := fenced.started;
            kind := 'crash';
            reason := CASE WHEN cardinality(started) > 0 THEN fenced.reason END;
        END IF;
    END IF;
    SELECT count(*) = 1 INTO alone FROM pgqueue.running r WHERE r.worker = reap.worker;
    WITH held AS MATERIALIZED (
        SELECT r.ctid AS tid, r.*, c.job_id IS NOT NULL AS cancelled,
               reason IS NOT NULL AND (r.job_id = ANY (started) OR (reap.kind = 'lost' AND alone)) AS charged
          FROM pgqueue.running r
          LEFT JOIN pgqueue.cancel_request c ON c.job_id = r.job_id
         WHERE r.worker = reap.worker
         ORDER BY r.job_id LIMIT 500
           FOR UPDATE OF r SKIP LOCKED
    ), judged AS MATERIALIZED (
        SELECT h.*, p.checkpoints,
               h.charged AND reap.kind <> 'timeout' AND p.crashes + 1 >= coalesce((j.policy ->> 'max_crashes')::integer, w.max_crashes, 3)
                             * CASE WHEN cardinality(started) > 1 THEN 3 ELSE 1 END AS poison
          FROM held h
          JOIN pgqueue.job j ON j.id = h.job_id
          LEFT JOIN pgqueue.workflow w ON w.name = j.name
         CROSS JOIN LATERAL (
            SELECT n.checkpoints, count(a.id) AS crashes
              FROM (SELECT count(*) AS checkpoints FROM pgqueue.checkpoint k WHERE k.job_id = h.job_id) n
              LEFT JOIN pgqueue.attempt a ON a.job_id = h.job_id AND a.kind = 'crash' AND a.checkpoints = n.checkpoints
                    AND a.ended_at > coalesce((SELECT max(q.ended_at) FROM pgqueue.attempt q
                                                WHERE q.job_id = h.job_id AND q.kind = 'requeue'), '-infinity')
             GROUP BY n.checkpoints) p
    ), recorded AS (
        INSERT INTO pgqueue.attempt (job_id, claim, seq, kind, checkpoints, error, worker, host, started_at, ended_at)
        SELECT d.job_id, d.claim, nullif(step, 0), CASE WHEN reap.kind = 'timeout' THEN 'timeout' WHEN d.charged THEN 'crash' ELSE 'lost' END,
               d.checkpoints, json_build_object('type', CASE reap.kind WHEN 'timeout' THEN 'StepTimeout' ELSE 'WorkerDied' END, 'message', reason), d.worker,
               (SELECT w.host FROM pgqueue.worker w WHERE w.id = d.worker), d.started_at, stamp
          FROM judged d WHERE d.charged OR (reap.kind = 'lost' AND reason IS NOT NULL)
    ), over AS (
        INSERT INTO pgqueue.outcome (job_id, status, error, claim, finished_at)
        SELECT d.job_id, CASE WHEN d.cancelled THEN 'cancelled' ELSE 'failed' END,
               CASE WHEN NOT d.cancelled THEN json_build_object('type', 'WorkerDied', 'message',
                    format('the worker process died %s times while it ran this job, the last time: %s', crash.times, reason)) END,
               d.claim, stamp
          FROM judged d
         CROSS JOIN LATERAL (SELECT count(*) + 1 AS times FROM pgqueue.attempt a
                              WHERE a.job_id = d.job_id AND a.kind = 'crash' AND a.checkpoints = d.checkpoints) crash
         WHERE d.cancelled OR d.poison
        ON CONFLICT (job_id) DO NOTHING
    ), honoured AS (
        DELETE FROM pgqueue.cancel_request c WHERE c.job_id = ANY (ARRAY(SELECT d.job_id FROM judged d WHERE d.cancelled OR d.poison))
    ), back AS (
        INSERT INTO pgqueue.ready (queue, lane, pos, job_id, suspect)
        SELECT d.queue, d.lane - d.lane % 2, nextval('pgqueue.position'), d.job_id, d.charged
          FROM judged d WHERE NOT d.cancelled AND NOT d.poison
    ), gone AS (
        DELETE FROM pgqueue.running r WHERE r.ctid = ANY (ARRAY(SELECT h.tid FROM held h))
    )
    SELECT count(*) FILTER (WHERE NOT d.poison), count(*) FILTER (WHERE d.poison),
           array_agg(d.job_id) FILTER (WHERE d.poison OR d.cancelled), array_agg(d.limited || '/' || d.key) FILTER (WHERE d.key IS NOT NULL)
      INTO given_back, failed, ended, turns FROM judged d;
    IF turns IS NOT NULL THEN
        PERFORM pgqueue.free_turns(turns);
    END IF;
    IF ended IS NOT NULL THEN
        PERFORM pgqueue.ended(ended);
    END IF;
    SELECT count(*) INTO still_held FROM pgqueue.running r WHERE r.worker = reap.worker;
    IF still_held = 0 THEN
        DELETE FROM pgqueue.worker w WHERE w.id = reap.worker;
    END IF;
    IF given_back > 0 THEN
        PERFORM pgqueue.wake_idle();
    END IF;
    RETURN NEXT;
END
$$;

-- functions/record_attempt.sql
-- One row for a run (or one step of it) that did not succeed. Who held the job is read from its `running` row, which the
-- caller has locked. Counters are counted from these rows and carried nowhere.
CREATE OR REPLACE FUNCTION pgqueue.record_attempt(job uuid, token bigint, seq integer, kind text, error text) RETURNS void
LANGUAGE sql VOLATILE
AS $$
    INSERT INTO pgqueue.attempt (job_id, claim, seq, kind, checkpoints, error, worker, host, started_at, ended_at)
    SELECT job, token, record_attempt.seq, record_attempt.kind,
           (SELECT count(*) FROM pgqueue.checkpoint c WHERE c.job_id = job),
           record_attempt.error, r.worker, w.host, r.started_at, pgqueue.clock()
      FROM (SELECT) one
      LEFT JOIN pgqueue.running r ON r.job_id = job AND r.claim = token
      LEFT JOIN pgqueue.worker w ON w.id = r.worker
$$;

-- functions/refuse.sql
-- Raises. An expression, so that a query can say coalesce(what it needs, refuse(why not)).
CREATE OR REPLACE FUNCTION pgqueue.refuse(code text, message text, hint text DEFAULT '') RETURNS text
LANGUAGE plpgsql STABLE
AS $$
BEGIN
    RAISE EXCEPTION USING ERRCODE = code, MESSAGE = message, HINT = hint;
END
$$;

-- functions/register_app.sql
-- Makes the queues and workflows of an App known to SQL producers. What operators have chosen for a queue stays in force over what the
-- App declares (see apply_limits). Called by "pgqueue migrate MODULE:APP" and by every starting worker. The schedules are all that
-- this App has (null: it says nothing of schedules).
CREATE OR REPLACE FUNCTION pgqueue.register_app(queues json, workflows json, app text DEFAULT NULL, schedules json DEFAULT NULL)
RETURNS void
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    said record;
BEGIN
    INSERT INTO pgqueue.queue (name, created_at)
    SELECT q.name, pgqueue.clock() FROM json_to_recordset(queues) AS q(name text) ORDER BY q.name
    ON CONFLICT DO NOTHING;
    FOR said IN SELECT q.name, coalesce(q.limits, '{}') AS limits FROM json_to_recordset(queues) AS q(name text, limits jsonb) ORDER BY q.name LOOP
        PERFORM pgqueue.check_limits(said.limits);
        PERFORM FROM pgqueue.queue q WHERE q.name = said.name AND q.declared <> said.limits;
        IF FOUND THEN
            PERFORM pg_advisory_xact_lock(pgqueue.queue_lock(said.name));    -- before the row of the queue is written to
            UPDATE pgqueue.queue q SET declared = said.limits WHERE q.name = said.name;
            PERFORM pgqueue.apply_limits(said.name);
        END IF;
    END LOOP;

    INSERT INTO pgqueue.workflow AS old (name, origin, kind, queue, priority, max_crashes, key, version, timeout, on_failure, registered_at)
    SELECT w.name,
           coalesce((SELECT o.origin FROM pgqueue.workflow o JOIN json_array_elements_text(w.aliases) a ON a = o.name
                      ORDER BY o.registered_at LIMIT 1), w.aliases ->> 0, w.name),
           w.kind, w.queue, w.priority, w.max_crashes, w.key, coalesce(w.version, 1), w.timeout, w.on_failure, pgqueue.clock()
      FROM json_to_recordset(workflows) AS w(name text, aliases json, kind text, queue text, priority smallint,
                                             max_crashes integer, key text, version integer, timeout double precision,
                                             on_failure text)
     ORDER BY w.name
    ON CONFLICT (name) DO UPDATE
       SET kind = excluded.kind, queue = excluded.queue, priority = excluded.priority,
           max_crashes = excluded.max_crashes, key = excluded.key, version = excluded.version, timeout = excluded.timeout,
           on_failure = excluded.on_failure
     WHERE (old.kind, old.queue, old.priority, old.max_crashes, old.key, old.version, old.timeout, old.on_failure)
           IS DISTINCT FROM (excluded.kind, excluded.queue, excluded.priority, excluded.max_crashes, excluded.key, excluded.version,
                             excluded.timeout, excluded.on_failure);

    IF app IS NOT NULL AND schedules IS NOT NULL THEN
        PERFORM pgqueue.register_schedules(app, schedules);
    END IF;
END
$$;

-- functions/register_schedules.sql
-- Makes the schedules of an App known, and no others of that App. What operators say stays: a pause, and schedules of their own.
-- One whose times have changed, or that was not declared for a while, counts from now on. Called by register_app.
CREATE OR REPLACE FUNCTION pgqueue.register_schedules(app text, schedules json) RETURNS void
LANGUAGE plpgsql VOLATILE
AS $$
#variable_conflict use_column
DECLARE
    stamp timestamptz := pgqueue.clock();
BEGIN
    INSERT INTO pgqueue.schedule AS old
           (name, workflow, cron, every, timezone, input, queue, priority, misfire, grace, overlap, origin, app, done_until)
    SELECT n.name, n.workflow, n.cron, n.every, n.timezone, n.input, n.queue, n.priority, n.misfire, n.grace, n.overlap,
           'app', register_schedules.app, stamp
      FROM json_to_recordset(schedules) AS n(name text, workflow text, cron text, every double precision, timezone text, input text,
                                             queue text, priority smallint, misfire text, grace double precision, overlap boolean)
     ORDER BY n.name
    ON CONFLICT (name) DO UPDATE
       SET workflow = excluded.workflow, cron = excluded.cron, every = excluded.every, timezone = excluded.timezone, input = excluded.input,
           queue = excluded.queue, priority = excluded.priority, misfire = excluded.misfire, grace = excluded.grace,
           overlap = excluded.overlap, app = excluded.app, declared = true, revision = old.revision + 1, next_at = '-infinity',
           problem = NULL,
           done_until = CASE WHEN old.declared AND (old.cron, old.every, old.timezone)
                                  IS NOT DISTINCT FROM (excluded.cron, excluded.every, excluded.timezone)
                             THEN old.done_until ELSE greatest(old.done_until, stamp) END
     WHERE old.origin = 'app'
       AND (old.workflow, old.cron, old.every, old.timezone, old.input, old.queue, old.priority, old.misfire, old.grace, old.overlap,
            old.app, old.declared)
           IS DISTINCT FROM (excluded.workflow, excluded.cron, excluded.every, excluded.timezone, excluded.input, excluded.queue,
                             excluded.priority, excluded.misfire, excluded.grace, excluded.overlap, excluded.app, true);
    UPDATE pgqueue.schedule s SET declared = false, revision = s.revision + 1
     WHERE s.name = ANY (ARRAY(SELECT o.name FROM pgqueue.schedule o
                                WHERE o.origin = 'app' AND o.app = register_schedules.app AND o.declared
                                  AND o.name NOT IN (SELECT n.name FROM json_to_recordset(schedules) AS n(name text))
                                ORDER BY o.name FOR UPDATE));
END
$$;

-- functions/register_worker.sql
-- A worker process introduces itself, before its first claim. Returns the limit for results in bytes.
CREATE OR REPLACE FUNCTION pgqueue.register_worker(
    worker uuid, host text, boot_id text, pid_ns text, pid integer, start_ticks bigint)
RETURNS integer
LANGUAGE plpgsql VOLATILE
AS $$
BEGIN
    INSERT INTO pgqueue.worker (id, host, boot_id, pid_ns, pid, start_ticks, started_at)
    VALUES (worker, host, boot_id, pid_ns, pid, start_ticks, pgqueue.clock());
    RETURN (SELECT i.max_bytes FROM pgqueue.installation i);
END
$$;

-- functions/remaining.sql
-- How many jobs of these queues have still to end, counted up to 1,000: what --burst waits for.
CREATE OR REPLACE FUNCTION pgqueue.remaining(queues text[]) RETURNS bigint
LANGUAGE sql STABLE
AS $$
    SELECT count(*) FROM (
        SELECT FROM pgqueue.ready WHERE queue = ANY (queues)
        UNION ALL SELECT FROM pgqueue.wakeup                 -- somebody may go on in a moment
        UNION ALL SELECT FROM pgqueue.running WHERE queue = ANY (queues)
        UNION ALL SELECT FROM pgqueue.scheduled WHERE queue = ANY (queues) AND run_at <= pgqueue.clock_bound() LIMIT 1000) r
$$;

-- functions/report.sql
-- How far jobs are, as they say themselves: the last word counts, and only from whoever holds the job.
CREATE OR REPLACE FUNCTION pgqueue.report(jobs uuid[], tokens bigint[], fractions double precision[], notes text[]) RETURNS void
LANGUAGE plpgsql VOLATILE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off
SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $$
BEGIN
    PERFORM pgqueue.quick_commit();
    INSERT INTO pgqueue.progress (job_id, fraction, note, reported_at)
    SELECT g.job, g.fraction, g.note, pgqueue.clock()
      FROM unnest(jobs, tokens, fractions, notes) AS g(job, token, fraction, note)
      JOIN pgqueue.running r ON r.job_id = g.job AND r.claim = g.token
     ORDER BY g.job
    ON CONFLICT (job_id) DO UPDATE
       SET fraction = excluded.fraction, note = excluded.note, reported_at = excluded.reported_at;
END
$$;

-- functions/requeue.sql
-- Run ended jobs again, from where they stopped: their outcome goes, and of their checkpoints exactly those whose error
-- ended them. by: who asks, where that is a person. Answers per job: requeued, succeeded (it stays so), active (it has not ended), unknown.
CREATE OR REPLACE FUNCTION pgqueue.requeue(jobs uuid[], by text DEFAULT NULL) RETURNS TABLE (job_id uuid, answer text)
LANGUAGE plpgsql VOLATILE
AS $$
#variable_conflict use_column
DECLARE
    again uuid[];
BEGIN
    PERFORM pgqueue.assert_read_committed();
    PERFORM pgqueue.durable_commit();
    WITH RECURSIVE failed AS (                               -- where a child's failure was the reason, the child runs again too
        SELECT o.job_id, o.failed_seqs FROM pgqueue.outcome o WHERE o.job_id = ANY (jobs) AND o.status <> 'succeeded'
         UNION
        SELECT o.job_id, o.failed_seqs
          FROM failed f
         CROSS JOIN LATERAL unnest(f.failed_seqs) AS s(seq)
          LEFT JOIN pgqueue.wait w ON w.job_id = f.job_id AND w.seq = s.seq AND w.kind = 'job'
          JOIN pgqueue.job c ON c.parent = pgqueue.children_of(f.job_id, s.seq) AND (c.parent_seq = s.seq OR c.id::text = w.key)
          JOIN pgqueue.outcome o ON o.job_id = c.id AND o.status <> 'succeeded'
    )
    SELECT array_agg(f.job_id) INTO again FROM failed f;
    WITH ended AS (
        DELETE FROM pgqueue.outcome o WHERE o.job_id = ANY (again) AND o.status <> 'succeeded' RETURNING o.*
    ), forgotten AS (
        DELETE FROM pgqueue.checkpoint c USING ended e WHERE c.job_id = e.job_id AND c.seq = ANY (e.failed_seqs)
    ), unwaited AS (
        DELETE FROM pgqueue.wait w USING ended e WHERE w.job_id = e.job_id AND w.seq = ANY (e.failed_seqs)
    ), recorded AS (
        INSERT INTO pgqueue.attempt (job_id, kind, checkpoints, error, by, ended_at)
        SELECT e.job_id, 'requeue', (SELECT count(*) FROM pgqueue.checkpoint c WHERE c.job_id = e.job_id), e.error,
               left(requeue.by, 128), pgqueue.clock()
          FROM ended e
    ), unasked AS (
        DELETE FROM pgqueue.cancel_request c USING ended e WHERE c.job_id = e.job_id
    ), back AS (
        INSERT INTO pgqueue.ready (queue, lane, pos, job_id)
        SELECT j.queue, 2 * j.priority, nextval('pgqueue.position'), j.id FROM ended e JOIN pgqueue.job j ON j.id = e.job_id
    )
    SELECT coalesce(array_agg(e.job_id), '{}') INTO again FROM ended e;
    PERFORM pgqueue.wake_idle();
    RETURN QUERY
    SELECT g.id, CASE WHEN g.id = ANY (again) THEN 'requeued' WHEN j.id IS NULL THEN 'unknown'
                      ELSE coalesce(o.status, 'active') END
      FROM unnest(jobs) g(id)
      LEFT JOIN pgqueue.job j ON j.id = g.id
      LEFT JOIN pgqueue.outcome o ON o.job_id = g.id;
END
$$;

-- functions/rerun.sql
-- Run an ended job again as a NEW job, and return its id. It has the name, version, input, queue, priority, key and policy of the
-- old one (a time limit begins again, expires does not), and those of its checkpoints that are before from_step: 1 runs everything
-- again. It has no parent. Of a gather() that began before from_step it has the children of the old job: they are not run again,
-- and not pruned as long as it needs them. by: who asks. id: of the new job, which makes the call safe to repeat.
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
    last  integer;
    lost  integer;
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
    INSERT INTO pgqueue.job (id, name, queue, priority, input, key, policy, version, created_at)
    VALUES (again, old.name, old.queue, old.priority, old.input, old.key,
            (coalesce(old.policy, '{}') - '{deadline,expires_at}'::text[]) || jsonb_strip_nulls(jsonb_build_object('rerun_of', old.id,
                'deadline', stamp + ((old.policy ->> 'deadline')::timestamptz - greatest(old.run_at, old.created_at)))),
            old.version, stamp);
    INSERT INTO pgqueue.checkpoint (job_id, seq, name, result, error, claim, xid, created_at)
    SELECT again, c.seq, c.name, c.result, c.error, c.claim, c.xid, c.created_at
      FROM pgqueue.checkpoint c WHERE c.job_id = old.id AND c.seq < rerun.from_step;
    lost := pgqueue.keep_children(old.id, again, rerun.from_step);
    IF lost IS NOT NULL THEN
        PERFORM pgqueue.refuse('PQ009', format('the children that step %s of job %s has started were pruned', lost, old.id),
                               format('Run it again from step %s, or an earlier one.', lost));
    END IF;
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

-- functions/resolve.sql
-- After a connection was lost: did its last transaction commit? Waits until the old session has let go of the job (FOR
-- UPDATE: KEY SHARE would be granted at once beside another KEY SHARE), so that what is read afterwards is final. Answers
-- `held` (still ours: replay from the checkpoints), `settled` (this claim's outcome is there), or `lost`.
CREATE OR REPLACE FUNCTION pgqueue.resolve(job uuid, token bigint) RETURNS text
LANGUAGE plpgsql VOLATILE
SET lock_timeout = '1s'
AS $$
BEGIN
    PERFORM pgqueue.assert_read_committed();
    PERFORM FROM pgqueue.running r WHERE r.job_id = job AND r.claim = token FOR UPDATE;
    IF FOUND THEN
        RETURN 'held';
    END IF;
    PERFORM FROM pgqueue.outcome o WHERE o.job_id = job AND o.claim = token;
    RETURN CASE WHEN FOUND THEN 'settled' ELSE 'lost' END;
END
$$;

-- functions/resume.sql
-- Workers claim from this queue again.
CREATE OR REPLACE FUNCTION pgqueue.resume(queue text) RETURNS void
LANGUAGE plpgsql VOLATILE
AS $$
BEGIN
    UPDATE pgqueue.queue q SET paused = false WHERE q.name = resume.queue;
    IF NOT FOUND THEN
        PERFORM pgqueue.refuse('PQ002', format('there is no queue %L', queue));
    END IF;
    PERFORM pgqueue.wake_idle();
END
$$;

-- functions/resume_schedule.sql
-- Let a paused schedule go on, with the ticks that come due from now on. False: it was not paused.
CREATE OR REPLACE FUNCTION pgqueue.resume_schedule(schedule text) RETURNS boolean
LANGUAGE plpgsql VOLATILE
AS $$
#variable_conflict use_column
DECLARE
    s pgqueue.schedule := pgqueue.change_schedule(resume_schedule.schedule);
BEGIN
    UPDATE pgqueue.schedule o
       SET paused = false, paused_by = NULL, revision = o.revision + 1, done_until = greatest(o.done_until, pgqueue.clock()),
           next_at = '-infinity'
     WHERE o.name = s.name AND o.paused;
    RETURN s.paused;
END
$$;

-- functions/send_event.sql
-- Say that something has happened, IN THE CALLER'S TRANSACTION: jobs that wait for this key go on with the value when it commits, and
-- a job that comes to wait for it later finds it. The first value of a key counts. True: this was the first.
CREATE OR REPLACE FUNCTION pgqueue.send_event(key text, value json DEFAULT 'null') RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    first boolean;
BEGIN
    IF key IS NULL OR octet_length(key) NOT BETWEEN 1 AND 512 THEN
        PERFORM pgqueue.refuse('PQ004', 'the key of an event has 1 to 512 bytes');
    END IF;
    PERFORM pgqueue.check_value(value, 'the value of the event');
    PERFORM pgqueue.durable_commit();
    INSERT INTO pgqueue.event (key, value, sent_at) VALUES (send_event.key, coalesce(send_event.value::text, 'null'), pgqueue.clock())
    ON CONFLICT DO NOTHING;
    first := FOUND;
    IF first THEN
        PERFORM pgqueue.look_again('{}', ARRAY[key]);
    END IF;
    RETURN first;
END
$$;

-- functions/send_message.sql
-- Send a message to one job, IN THE CALLER'S TRANSACTION. The job receives its messages of a topic one by one, in the order in
-- which they were sent, each exactly once. Answers sent, or why not: ended, unknown.
CREATE OR REPLACE FUNCTION pgqueue.send_message(job uuid, topic text, value json DEFAULT 'null') RETURNS text
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF topic IS NULL OR octet_length(topic) NOT BETWEEN 1 AND 512 THEN
        PERFORM pgqueue.refuse('PQ004', 'the topic of a message has 1 to 512 bytes');
    END IF;
    PERFORM pgqueue.check_value(value, 'the message');
    PERFORM pgqueue.durable_commit();
    PERFORM FROM pgqueue.job j WHERE j.id = job FOR KEY SHARE;                          -- prune waits
    IF NOT FOUND THEN
        RETURN 'unknown';
    END IF;
    PERFORM FROM pgqueue.outcome o WHERE o.job_id = job;
    IF FOUND THEN
        RETURN 'ended';
    END IF;
    INSERT INTO pgqueue.message (job_id, topic, pos, value, sent_at)
    VALUES (job, send_message.topic, nextval('pgqueue.position'), coalesce(send_message.value::text, 'null'), pgqueue.clock());
    PERFORM pgqueue.look_again(ARRAY[job]);
    RETURN 'sent';
END
$$;

-- functions/settle.sql
-- End many claims at once. how[i] says what becomes of job i:
--   succeeded, failed, cancelled   an outcome             release   back to ready, nothing counted
--   retry                          due again after its delay, with an attempt row        suspend   waits: see suspend()
-- seen[i] is the last checkpoint that the run saw (0: none); details[i] is JSON for what did not succeed:
-- {"errors": [{"error": {...}, "seq": the step}], "delay": seconds, "failed_seqs": [...]}.
--
-- Returns only the jobs that were NOT settled: `lost` (the claim is gone: discard the result) or `busy` (a session of the
-- job still holds it: send it again). Sending the same settlement twice is safe. Rows that are locked are skipped, so that
-- a batch never waits for one stuck step.
CREATE OR REPLACE FUNCTION pgqueue.settle(
    jobs uuid[], tokens bigint[], how text[], results text[], seen integer[], details json[])
RETURNS TABLE (job_id uuid, answer text)
LANGUAGE plpgsql VOLATILE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off
SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    settled uuid[];
    badly   uuid[];
    turns   text[];
    stamp   timestamptz := pgqueue.clock();
BEGIN
    PERFORM pgqueue.assert_read_committed();
    PERFORM pgqueue.durable_commit();
    WITH held AS MATERIALIZED (
        SELECT r.ctid AS tid, r.*, g.result, g.detail,
               CASE WHEN g.how IN ('retry', 'release') AND c.job_id IS NOT NULL THEN 'cancelled' ELSE g.how END AS how
          FROM unnest(jobs, tokens, how, results, seen, details) AS g(job_id, token, how, result, seen, detail)
          JOIN pgqueue.running r ON r.job_id = g.job_id AND r.claim = g.token
          LEFT JOIN pgqueue.cancel_request c ON c.job_id = g.job_id
          LEFT JOIN pgqueue.checkpoint k ON k.job_id = g.job_id AND k.seq = nullif(g.seen, 0)
         WHERE (g.seen = 0 OR k.job_id IS NOT NULL) AND g.how <> 'suspend'
         ORDER BY r.job_id
           FOR UPDATE OF r SKIP LOCKED
    ), attempts AS (
        INSERT INTO pgqueue.attempt (job_id, claim, seq, kind, checkpoints, error, worker, host, started_at, ended_at)
        SELECT h.job_id, h.claim, (e.value ->> 'seq')::integer, coalesce(e.value ->> 'kind', 'error'),
               (SELECT count(*) FROM pgqueue.checkpoint c WHERE c.job_id = h.job_id),
               e.value ->> 'error', h.worker, w.host, h.started_at, stamp
          FROM held h
         CROSS JOIN LATERAL json_array_elements(h.detail -> 'errors') e
          LEFT JOIN pgqueue.worker w ON w.id = h.worker
         WHERE h.detail IS NOT NULL
    ), ended AS (
        INSERT INTO pgqueue.outcome (job_id, status, result, error, failed_seqs, claim, finished_at)
        SELECT h.job_id, h.how, h.result, h.detail #>> '{errors,0,error}',
               CASE WHEN h.detail IS NULL THEN '{}'
                    ELSE ARRAY(SELECT s::integer FROM json_array_elements_text(h.detail -> 'failed_seqs') s) END, h.claim, stamp
          FROM held h WHERE h.how IN ('succeeded', 'failed', 'cancelled')
        ON CONFLICT (job_id) DO NOTHING
        RETURNING job_id
    ), honoured AS (
        DELETE FROM pgqueue.cancel_request c
         WHERE c.job_id = ANY (ARRAY(SELECT h.job_id FROM held h WHERE h.how IN ('succeeded', 'failed', 'cancelled')))
    ), back AS (
        INSERT INTO pgqueue.ready (queue, lane, pos, job_id, suspect)
        SELECT h.queue, h.lane - h.lane % 2, nextval('pgqueue.position'), h.job_id, h.suspect
          FROM held h WHERE h.how = 'release' OR (h.how = 'retry' AND (h.detail ->> 'delay')::float8 <= 0)
    ), later AS (
        INSERT INTO pgqueue.scheduled (job_id, run_at, queue, lane)
        SELECT h.job_id, least(stamp + make_interval(secs => (h.detail ->> 'delay')::float8), (j.policy ->> 'deadline')::timestamptz),
               h.queue, h.lane - h.lane % 2
          FROM held h JOIN pgqueue.job j ON j.id = h.job_id WHERE h.how = 'retry' AND (h.detail ->> 'delay')::float8 > 0
    ), forgotten AS (                                        -- a workflow tried again runs its failed steps again
        DELETE FROM pgqueue.checkpoint c USING held h
         WHERE h.how = 'retry' AND c.job_id = h.job_id
           AND c.seq = ANY (ARRAY(SELECT s::integer FROM json_array_elements_text(h.detail -> 'failed_seqs') s))
    ), gone AS (
        DELETE FROM pgqueue.running r WHERE r.ctid = ANY (ARRAY(SELECT h.tid FROM held h))
    ), looked AS (
        INSERT INTO pgqueue.wakeup (pos, job_id)
        SELECT nextval('pgqueue.position'), h.parent FROM held h WHERE h.parent IS NOT NULL AND h.how = 'succeeded' GROUP BY h.parent
        RETURNING pg_notify('pgqueue_wake', '')
    ), conflicts AS (
        SELECT nextval('pgqueue.conflict')
          FROM generate_series(1, (SELECT count(*) FROM held h WHERE h.how IN ('succeeded', 'failed', 'cancelled'))
                                  - (SELECT count(*) FROM ended))
    )
    SELECT array_agg(h.job_id), array_agg(h.job_id) FILTER (WHERE h.how IN ('failed', 'cancelled')),
           array_agg(h.limited || '/' || h.key) FILTER (WHERE h.key IS NOT NULL) INTO settled, badly, turns FROM held h
     WHERE (SELECT count(*) FROM conflicts) >= 0;
    PERFORM pgqueue.tell_results(settled);
    IF badly IS NOT NULL THEN
        PERFORM pgqueue.ended(badly);
    END IF;
    IF turns IS NOT NULL THEN
        PERFORM pgqueue.free_turns(turns);
    END IF;
    IF 'suspend' = ANY (how) THEN
        settled := coalesce(settled, '{}') || (
            SELECT pgqueue.suspend(array_agg(g.job), array_agg(g.token), array_agg(g.seen), array_agg(g.detail))
              FROM unnest(jobs, tokens, how, seen, details) AS g(job, token, how, seen, detail) WHERE g.how = 'suspend');
    END IF;

    PERFORM pgqueue.wake_idle() FROM unnest(how, details) AS g(how, detail)      -- for whoever is idle, before they look again
      WHERE g.how = 'release' OR (g.how = 'retry' AND (g.detail ->> 'delay')::float8 < 1) LIMIT 1;
    IF coalesce(cardinality(settled), 0) < cardinality(jobs) THEN
        RETURN QUERY
        SELECT g.job_id, CASE WHEN r.job_id IS NOT NULL AND pgqueue.continues(g.job_id, g.seen) THEN 'busy' ELSE 'lost' END
          FROM unnest(jobs, tokens, seen) AS g(job_id, token, seen)
          LEFT JOIN pgqueue.running r ON r.job_id = g.job_id AND r.claim = g.token
          LEFT JOIN pgqueue.outcome o ON o.job_id = g.job_id AND o.claim = g.token
         WHERE g.job_id <> ALL (coalesce(settled, '{}')) AND o.job_id IS NULL;
    END IF;
END
$$;

-- functions/stats.sql
-- One row per queue: how many jobs are in each work list (ready counted up to 10,000: 10001 means more), and for how many
-- seconds the oldest ready job has been waiting for a worker.
CREATE OR REPLACE FUNCTION pgqueue.stats()
RETURNS TABLE (queue text, paused boolean, ready bigint, scheduled bigint, running bigint, waiting bigint,
               oldest_ready_seconds double precision)
LANGUAGE plpgsql STABLE
SET enable_seqscan = off SET jit = off
AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    SELECT q.name, q.paused,
           (SELECT count(*) FROM (SELECT FROM pgqueue.ready r WHERE r.queue = q.name LIMIT 10001) c),
           (SELECT count(*) FROM (SELECT FROM pgqueue.scheduled s WHERE s.queue = q.name LIMIT 10001) c),
           (SELECT count(*) FROM (SELECT FROM pgqueue.running r WHERE r.queue = q.name LIMIT 10001) c),
           (SELECT count(*) FROM (SELECT FROM pgqueue.waiting w WHERE w.queue = q.name LIMIT 10001) c),
           (SELECT extract(epoch FROM pgqueue.clock() - min(coalesce(j.run_at, j.created_at)))::float8
              FROM generate_series(0, 19) l(lane)
             CROSS JOIN LATERAL (SELECT r.job_id FROM pgqueue.ready r WHERE r.queue = q.name AND r.lane = l.lane
                                  ORDER BY r.pos LIMIT 1) head
              JOIN pgqueue.job j ON j.id = head.job_id)
      FROM pgqueue.queue q ORDER BY q.name;
END
$$;

-- functions/store.sql
-- Fence and checkpoint in one call, for a step that ran outside of a transaction. Answers `stored`, `cancel` (stored, and
-- somebody asks that the job be cancelled), or `lost` (the claim is gone, nothing was stored).
-- An error that used up the last attempt also leaves its attempt row.
CREATE OR REPLACE FUNCTION pgqueue.store(job uuid, token bigint, seen integer, seq integer, name text, result text, error text)
RETURNS text
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    xid xid8 := pgqueue.fence(job, token, seen, 0);
    cancelled boolean;
BEGIN
    IF xid IS NULL THEN
        RETURN 'lost';
    END IF;
    cancelled := pgqueue.checkpoint(job, token, seq, name, result, error, xid);
    IF error IS NOT NULL THEN
        PERFORM pgqueue.record_attempt(job, token, seq, 'error', error);
    END IF;
    RETURN CASE WHEN cancelled THEN 'cancel' ELSE 'stored' END;
END
$$;

-- functions/suspend.sql
-- The part of settle for jobs that wait: they leave their worker, and nothing of them is held until they may go on. What a
-- job waits for is in its detail: {"seq", "name", "kind", "key", "seconds"}; a wait that was begun before keeps its end. Answers
-- which jobs were suspended (or ended, because somebody had asked to cancel them).
CREATE OR REPLACE FUNCTION pgqueue.suspend(jobs uuid[], tokens bigint[], seen integer[], details json[]) RETURNS uuid[]
LANGUAGE plpgsql VOLATILE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off
SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $$
DECLARE
    stamp     timestamptz := pgqueue.clock();
    suspended uuid[];
    looked    uuid[];
    cancelled uuid[];
    turns     text[];
BEGIN
    WITH held AS MATERIALIZED (
        SELECT r.ctid AS tid, r.job_id, r.claim, r.queue, r.lane, r.limited || '/' || r.key AS turn, d.*, c.job_id IS NOT NULL AS cancelled, (j.policy ->> 'deadline')::timestamptz AS deadline,
               CASE WHEN w.job_id IS NULL THEN stamp + make_interval(secs => d.seconds) ELSE w.until END AS until
          FROM unnest(jobs, tokens, seen, details) AS g(job, token, seen, detail)
         CROSS JOIN LATERAL json_to_record(g.detail) AS d(seq integer, name text, kind text, key text, seconds double precision)
          JOIN pgqueue.running r ON r.job_id = g.job AND r.claim = g.token
          JOIN pgqueue.job j ON j.id = g.job
          LEFT JOIN pgqueue.cancel_request c ON c.job_id = g.job
          LEFT JOIN pgqueue.checkpoint k ON k.job_id = g.job AND k.seq = nullif(g.seen, 0)
          LEFT JOIN pgqueue.wait w ON w.job_id = g.job AND w.seq = d.seq
         WHERE g.seen = 0 OR k.job_id IS NOT NULL
         ORDER BY r.job_id
           FOR UPDATE OF r SKIP LOCKED
    ), begun AS (
        INSERT INTO pgqueue.wait (job_id, seq, name, kind, key, until, began_at)
        SELECT h.job_id, h.seq, h.name, h.kind, h.key, h.until, stamp FROM held h WHERE NOT h.cancelled
        ON CONFLICT DO NOTHING
    ), asleep AS (
        INSERT INTO pgqueue.scheduled (job_id, run_at, queue, lane)
        SELECT h.job_id, least(h.until, h.deadline), h.queue, h.lane - h.lane % 2
          FROM held h WHERE h.kind = 'sleep' AND NOT h.cancelled
    ), aside AS (
        INSERT INTO pgqueue.waiting (job_id, kind, key, until, queue, lane)
        SELECT h.job_id, h.kind, h.key, least(h.until, h.deadline), h.queue, h.lane - h.lane % 2
          FROM held h WHERE h.kind <> 'sleep' AND NOT h.cancelled
    ), ended AS (
        INSERT INTO pgqueue.outcome (job_id, status, claim, finished_at)
        SELECT h.job_id, 'cancelled', h.claim, stamp FROM held h WHERE h.cancelled
        ON CONFLICT (job_id) DO NOTHING
    ), honoured AS (
        DELETE FROM pgqueue.cancel_request c WHERE c.job_id = ANY (ARRAY(SELECT h.job_id FROM held h WHERE h.cancelled))
    ), gone AS (
        DELETE FROM pgqueue.running r WHERE r.ctid = ANY (ARRAY(SELECT h.tid FROM held h))
    )
    SELECT array_agg(h.job_id), array_agg(h.job_id) FILTER (WHERE h.cancelled),
           array_agg(h.job_id) FILTER (WHERE h.kind <> 'sleep' AND NOT h.cancelled), array_agg(h.turn) FILTER (WHERE h.turn IS NOT NULL)
      INTO suspended, cancelled, looked, turns FROM held h;
    IF turns IS NOT NULL THEN
        PERFORM pgqueue.free_turns(turns);
    END IF;
    IF looked IS NOT NULL THEN                               -- what it waits for may have come meanwhile
        PERFORM pgqueue.look_again(looked);
    END IF;
    IF cancelled IS NOT NULL THEN
        PERFORM pgqueue.ended(cancelled);
    END IF;
    RETURN coalesce(suspended, '{}');
END
$$;

-- functions/take_start.sql
-- A job of this cost begins then.
CREATE OR REPLACE FUNCTION pgqueue.take_start(
    queue text, key text, amount integer, seconds double precision, burst integer, cost integer, moment timestamptz) RETURNS void
LANGUAGE sql VOLATILE
AS $$
    INSERT INTO pgqueue.rate_register AS r (queue, key, next)
    VALUES (queue, key, moment + make_interval(secs => ceil(cost * seconds / amount * 1e6) / 1e6))
    ON CONFLICT (queue, key) DO UPDATE
       SET next = greatest(r.next, take_start.moment) + make_interval(secs => ceil(take_start.cost * seconds / amount * 1e6) / 1e6)
$$;

-- functions/tell_results.sql
-- Tells those who wait for results that these jobs may have ended, if anybody waits (see awaited).
CREATE OR REPLACE FUNCTION pgqueue.tell_results(jobs uuid[]) RETURNS void
LANGUAGE plpgsql VOLATILE
AS $$
BEGIN
    IF (SELECT last_value FROM pgqueue.results_until) > extract(epoch FROM pgqueue.clock()) * 1000 THEN
        PERFORM pg_notify('pgqueue_results', string_agg(g.job::text, ''))    -- a payload has less than 8,000 bytes
           FROM unnest(jobs) WITH ORDINALITY g(job, i) GROUP BY g.i / 200;
    END IF;
END
$$;

-- functions/tick.sql
-- Deal with the ticks of a schedule up to `until`: a row and a job for each of `ticks`, in one transaction with the moment of the next
-- one. Null: somebody else did, or the schedule has changed since the caller has `seen` it. Otherwise how many jobs were enqueued.
-- missed: the last of the ticks that are too late to run, the first of them is `since`. Without `missed`, the one tick stands for all
-- those from `since` on. No leader is needed: whoever locks the row first ticks, the revision tells the others that it was done, and
-- the primary keys of tick and job make a double impossible.
CREATE OR REPLACE FUNCTION pgqueue.tick(
    schedule text, seen bigint, ticks timestamptz[], until timestamptz, next timestamptz, missed timestamptz, since timestamptz)
RETURNS bigint
LANGUAGE plpgsql VOLATILE
AS $$
#variable_conflict use_column
DECLARE
    s     pgqueue.schedule;
    fresh timestamptz[];
    runs  timestamptz[];
    ids   uuid[];
BEGIN
    PERFORM pgqueue.assert_read_committed();
    PERFORM pgqueue.durable_commit();
    SELECT * INTO s FROM pgqueue.schedule o
     WHERE o.name = tick.schedule AND o.revision = seen AND o.declared AND NOT o.paused FOR UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    SELECT coalesce(array_agg(d.due_at ORDER BY d.due_at), '{}') INTO fresh      -- a backfill may have been there before
      FROM unnest(ticks) d(due_at) LEFT JOIN pgqueue.tick t ON t.schedule = s.name AND t.due_at = d.due_at
     WHERE t.due_at IS NULL AND d.due_at > s.done_until;
    s.live := CASE WHEN s.overlap THEN '{}' ELSE pgqueue.not_ended(s.live) END;
    runs := CASE WHEN s.overlap THEN fresh WHEN s.live = '{}' THEN fresh[1:1] ELSE '{}' END;
    ids := pgqueue.enqueue_ticks(s, runs);
    INSERT INTO pgqueue.tick (schedule, due_at, job_id, why, since, ticked_at)
    SELECT s.name, f.due_at, f.job_id,
           CASE WHEN f.job_id IS NULL THEN 'overlap' WHEN missed IS NULL AND tick.since IS NOT NULL THEN 'late' ELSE 'due' END,
           CASE WHEN missed IS NULL THEN tick.since END, pgqueue.clock()
      FROM unnest(fresh, ids) f(due_at, job_id);                                 -- those that run come first
    IF missed IS NOT NULL THEN
        INSERT INTO pgqueue.tick (schedule, due_at, why, since, ticked_at)
        VALUES (s.name, missed, 'missed', tick.since, pgqueue.clock()) ON CONFLICT DO NOTHING;
    END IF;
    UPDATE pgqueue.schedule o
       SET revision = o.revision + 1, done_until = greatest(o.done_until, until), next_at = coalesce(next, 'infinity'),
           last_at = coalesce(runs[cardinality(runs)], o.last_at), live = CASE WHEN s.overlap THEN '{}' ELSE s.live || ids END,
           problem = NULL
     WHERE o.name = s.name;
    RETURN cardinality(runs);
END
$$;

-- functions/trigger_schedule.sql
-- Enqueue the job of a schedule now, beside its plan, also while it is paused or another of its jobs runs. Returns the job's id.
-- id: of the job, which makes the call safe to repeat.
CREATE OR REPLACE FUNCTION pgqueue.trigger_schedule(schedule text, id uuid DEFAULT NULL) RETURNS uuid
LANGUAGE plpgsql VOLATILE
AS $$
#variable_conflict use_column
DECLARE
    s   pgqueue.schedule := pgqueue.change_schedule(trigger_schedule.schedule);
    job uuid := coalesce(trigger_schedule.id, pgqueue.new_id());
BEGIN
    IF NOT s.declared THEN
        PERFORM pgqueue.refuse('PQ009', format('schedule %L is no longer declared by its App', s.name));
    ELSIF EXISTS (SELECT FROM pgqueue.job j WHERE j.id = job) THEN
        RETURN job;
    END IF;
    PERFORM pgqueue.enqueue_ticks(s, ARRAY[pgqueue.clock()], job);
    UPDATE pgqueue.schedule o SET live = pgqueue.not_ended(o.live) || job WHERE o.name = s.name AND NOT o.overlap;
    RETURN job;
END
$$;

-- functions/used.sql
-- How much of the concurrency of a limited queue is in use. Jobs that were claimed before it was limited are counted one by one,
-- as long as there are any.
CREATE OR REPLACE FUNCTION pgqueue.used(q pgqueue.queue) RETURNS bigint
LANGUAGE plpgsql VOLATILE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off
AS $$
DECLARE
    counted bigint := (SELECT coalesce(sum(r.cost), 0) FROM pgqueue.running r WHERE r.limited = q.name);
    others  bigint := 0;
BEGIN
    IF q.uncounted THEN
        SELECT count(*) INTO others FROM pgqueue.running r WHERE r.queue = q.name AND r.limited IS NULL;
        IF others = 0 THEN
            UPDATE pgqueue.queue SET uncounted = false WHERE name = q.name;
        END IF;
    END IF;
    RETURN counted + others;
END
$$;

-- functions/wake.sql
-- Move jobs whose wait is over from `waiting` to `ready`. Looks at those that somebody has asked to look at (see wakeup), at those
-- whose time is over, and, in case anything was missed, at 2,000 others: those behind `after`, in the order of ids. Returns how
-- many were moved, whether there may be more to do at once, and how far it has come (null: to the end).
CREATE OR REPLACE FUNCTION pgqueue.wake(amount integer, after uuid, OUT moved bigint, OUT more boolean, OUT reached uuid)
LANGUAGE plpgsql VOLATILE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off
SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $$
DECLARE
    jobs    uuid[];
    events  text[];
    follow  uuid[];
    turns   text[];
    waiters uuid[];
    due     uuid[];
    others  uuid[];
    taken   bigint;
BEGIN
    PERFORM pgqueue.assert_read_committed();
    PERFORM pgqueue.quick_commit();
    WITH picked AS MATERIALIZED (
        SELECT u.ctid AS tid FROM pgqueue.wakeup u ORDER BY u.pos LIMIT amount FOR UPDATE SKIP LOCKED
    ), gone AS (
        DELETE FROM pgqueue.wakeup u WHERE u.ctid = ANY (ARRAY(SELECT p.tid FROM picked p)) RETURNING u.job_id, u.event, u.ended, u.turn
    )
    SELECT array_agg(DISTINCT g.job_id) FILTER (WHERE g.job_id IS NOT NULL), array_agg(DISTINCT g.event) FILTER (WHERE g.event IS NOT NULL),
           array_agg(g.ended) FILTER (WHERE g.ended IS NOT NULL), array_agg(DISTINCT g.turn) FILTER (WHERE g.turn IS NOT NULL), count(*)
      INTO jobs, events, follow, turns, taken FROM gone g;
    IF follow IS NOT NULL THEN
        PERFORM pgqueue.ended(follow);
    END IF;
    SELECT array_agg(w.job_id) INTO waiters
      FROM (SELECT w.job_id
              FROM unnest(events) e
             CROSS JOIN LATERAL (SELECT w.job_id FROM pgqueue.waiting w WHERE w.kind = 'event' AND w.key = e LIMIT amount) w
             LIMIT amount) w;
    IF cardinality(waiters) = amount THEN                    -- so many wait for an event that they come in several rounds
        INSERT INTO pgqueue.wakeup (pos, event) SELECT nextval('pgqueue.position'), e FROM unnest(events) e;
    END IF;
    SELECT array_agg(w.job_id) INTO due
      FROM (SELECT w.job_id FROM pgqueue.waiting w WHERE w.until <= pgqueue.clock_bound() ORDER BY w.until LIMIT amount) w;
    SELECT array_agg(w.job_id), max(w.job_id::text)::uuid INTO others, reached
      FROM (SELECT w.job_id FROM pgqueue.waiting w WHERE w.job_id > after ORDER BY w.job_id LIMIT 2000) w;
    IF coalesce(cardinality(others), 0) < 2000 THEN
        reached := NULL;
    END IF;
    jobs := coalesce(jobs, '{}') || coalesce(waiters, '{}') || coalesce(due, '{}') || coalesce(others, '{}');
    moved := CASE WHEN cardinality(jobs) > 0 THEN pgqueue.wake_jobs(jobs) ELSE 0 END;
    turns := turns || ARRAY(SELECT DISTINCT w.key FROM pgqueue.waiting w WHERE w.job_id = ANY (others) AND w.kind = 'key' AND w.until IS NULL);
    IF cardinality(turns) > 0 THEN
        moved := moved + (SELECT count(*) FROM pgqueue.next_turns(turns));
    END IF;
    DELETE FROM pgqueue.rate_register r                      -- of keys that have been quiet for a while
     WHERE r.ctid = ANY (ARRAY(SELECT o.ctid FROM pgqueue.rate_register o
                                WHERE o.key <> '' AND o.next < pgqueue.clock_bound() - interval '1 minute' LIMIT 100 FOR UPDATE SKIP LOCKED));
    more := taken >= amount OR coalesce(cardinality(waiters), 0) >= amount OR coalesce(cardinality(due), 0) >= amount;
    IF moved > 0 THEN
        PERFORM pgqueue.wake_idle();
    END IF;
END
$$;

-- functions/wake_idle.sql
-- Tell idle listeners that there is work, if there are any. NOTIFY takes a lock of the whole server at commit, so a
-- busy system, where nobody is idle, never pays for it; and it is only a hint, polling finds the work anyway.
CREATE OR REPLACE FUNCTION pgqueue.wake_idle() RETURNS void
LANGUAGE plpgsql VOLATILE
AS $$
BEGIN
    IF (SELECT last_value FROM pgqueue.idle_until) > extract(epoch FROM pgqueue.clock()) * 1000 THEN
        PERFORM pg_notify('pgqueue', '');
    END IF;
END
$$;

-- functions/wake_jobs.sql
-- The part of wake that decides: of these jobs, those go on whose time is over, or that have what they wait for. Returns how many.
CREATE OR REPLACE FUNCTION pgqueue.wake_jobs(jobs uuid[]) RETURNS bigint
LANGUAGE plpgsql VOLATILE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off
SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
AS $$
DECLARE
    moved bigint;
BEGIN
    PERFORM pgqueue.advance_children(jobs);
    WITH over AS MATERIALIZED (
        SELECT w.ctid AS tid
          FROM (SELECT DISTINCT j AS id FROM unnest(jobs) j) g
          JOIN pgqueue.waiting w ON w.job_id = g.id
          LEFT JOIN pgqueue.event e ON e.key = CASE WHEN w.kind = 'event' THEN w.key END
          LEFT JOIN LATERAL (SELECT m.pos FROM pgqueue.message m
                              WHERE m.job_id = w.job_id AND m.topic = CASE WHEN w.kind = 'message' THEN w.key END LIMIT 1) m ON true
          LEFT JOIN pgqueue.job j ON j.id = CASE WHEN w.kind = 'job' THEN w.key::uuid END
          LEFT JOIN pgqueue.outcome o ON o.job_id = j.id
          LEFT JOIN LATERAL pgqueue.next_child(w.job_id, CASE WHEN w.kind = 'children' THEN w.key END) c ON true
         WHERE w.until <= pgqueue.clock_bound() OR e.key IS NOT NULL OR m.pos IS NOT NULL OR o.job_id IS NOT NULL
            OR (w.kind = 'job' AND j.id IS NULL) OR (w.kind = 'children' AND c IS NULL)
           FOR UPDATE OF w SKIP LOCKED
    ), gone AS (
        DELETE FROM pgqueue.waiting w WHERE w.ctid = ANY (ARRAY(SELECT o.tid FROM over o)) RETURNING w.*
    ), back AS (
        INSERT INTO pgqueue.ready (queue, lane, pos, job_id)
        SELECT g.queue, g.lane - g.lane % 2, coalesce(g.pos, nextval('pgqueue.position')), g.job_id FROM gone g
        RETURNING job_id
    )
    SELECT count(*) INTO moved FROM back;
    RETURN moved;
END
$$;

-- functions/write_stream.sql
-- Append values (JSON texts) to a stream of a job, in the order given. Writers of one stream wait for each other's commit, so a
-- reader who goes on from the last position that it saw misses nothing. With a token only while that claim holds the job;
-- without one the caller's transaction has fenced it. Answers whether they were written.
CREATE OR REPLACE FUNCTION pgqueue.write_stream(job uuid, token bigint, name text, vals text[]) RETURNS boolean
LANGUAGE plpgsql VOLATILE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off
AS $$
DECLARE
    last integer;
BEGIN
    IF token IS NOT NULL THEN
        PERFORM FROM pgqueue.running r WHERE r.job_id = job AND r.claim = token;
        IF NOT FOUND THEN
            RETURN false;
        END IF;
    END IF;
    INSERT INTO pgqueue.stream_end AS e (job_id, name, last) VALUES (job, write_stream.name, cardinality(vals))
    ON CONFLICT ON CONSTRAINT stream_end_pkey DO UPDATE SET last = e.last + excluded.last
    RETURNING e.last INTO last;
    INSERT INTO pgqueue.stream (job_id, name, pos, value, written_at)
    SELECT job, write_stream.name, last - cardinality(vals) + v.i, v.value, pgqueue.clock()
      FROM unnest(vals) WITH ORDINALITY v(value, i);
    PERFORM pgqueue.tell_results(ARRAY[job]);
    RETURN true;
END
$$;

-- private.sql
-- Run at the end of every migration: nothing in the schema is for everybody. Who may do what is granted by role.
REVOKE ALL ON SCHEMA pgqueue FROM PUBLIC;
REVOKE ALL ON ALL TABLES IN SCHEMA pgqueue FROM PUBLIC;
REVOKE ALL ON ALL SEQUENCES IN SCHEMA pgqueue FROM PUBLIC;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA pgqueue FROM PUBLIC;

COMMIT;
