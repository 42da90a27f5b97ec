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
