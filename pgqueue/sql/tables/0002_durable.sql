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
