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
