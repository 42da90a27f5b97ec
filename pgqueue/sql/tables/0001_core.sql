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
