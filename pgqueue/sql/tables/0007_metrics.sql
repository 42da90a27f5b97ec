-- Metrics: claims say for how long a job has been due; and one supervisor at a time looks at the database for all of them.

DROP FUNCTION IF EXISTS pgqueue.claim(uuid, bigint, text[], text[], integer, bigint[], boolean, integer);
DROP FUNCTION IF EXISTS pgqueue.claim_known(uuid, bigint, text[], text[], integer);

-- Work that one process does for all. Whoever has the row does it, for as long as it says so again in time.
CREATE TABLE pgqueue.duty (
    name       text PRIMARY KEY CHECK (name ~ '^[A-Za-z0-9_.:-]{1,128}$'),
    holder     uuid NOT NULL,
    until      timestamptz NOT NULL
) WITH (fillfactor = 50);
