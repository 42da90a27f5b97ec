-- The time, for index conditions: STABLE, so that an index scan can be bounded by it.
CREATE OR REPLACE FUNCTION pgqueue.clock_bound() RETURNS timestamptz
LANGUAGE sql STABLE
AS $$ SELECT statement_timestamp() $$;
