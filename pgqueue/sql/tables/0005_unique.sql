-- Unique jobs, and priorities that age.

-- These have a column or a parameter more from now on.
DROP FUNCTION IF EXISTS pgqueue.limits();
DROP FUNCTION IF EXISTS pgqueue.pick_plain(text, integer, bigint[]);
DROP FUNCTION IF EXISTS pgqueue.pick_fair(text, integer);
DROP FUNCTION IF EXISTS pgqueue.pick_limited(pgqueue.queue, text[], integer, integer, bigint[], timestamptz);

ALTER TABLE pgqueue.job ADD COLUMN unique_key uuid;        -- how it is unique is in its policy
ALTER TABLE pgqueue.running ADD COLUMN unique_key uuid;    -- of a job that is unique until it has ended
ALTER TABLE pgqueue.workflow ADD COLUMN uniqueness jsonb;  -- of jobs whose producer says nothing else
ALTER TABLE pgqueue.queue ADD COLUMN aging double precision CHECK (aging > 0);     -- seconds: see aged_lanes()

-- Whoever has a row here is the one job of its key. Until it has ended: the row goes with the outcome, in the same statement.
-- Until it begins: with the claim. For a time: whoever comes later takes it over. No other row is held for long by anybody:
-- a producer keeps the row of a job that has not begun until its transaction ends, and claims leave such a job alone meanwhile.
CREATE TABLE pgqueue.unique_job (
    key    uuid PRIMARY KEY,                               -- made of the workflow, and of what has to be the same
    job_id uuid NOT NULL,
    until  timestamptz CHECK (isfinite(until)),            -- of one that is unique for a time
    latest timestamptz CHECK (isfinite(latest))            -- however often it is put off, it is due then
);
CREATE INDEX unique_job_until ON pgqueue.unique_job (until) WHERE until IS NOT NULL;
ALTER TABLE pgqueue.unique_job SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, vacuum_truncate = off);
