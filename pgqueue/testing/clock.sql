-- The two clocks of pgqueue, ahead of the time: what travel() does in the database of one test. Nothing else reads a clock.
CREATE OR REPLACE FUNCTION pgqueue.clock() RETURNS timestamptz
LANGUAGE sql VOLATILE
AS $$ SELECT clock_timestamp() + {ahead} $$;

CREATE OR REPLACE FUNCTION pgqueue.clock_bound() RETURNS timestamptz
LANGUAGE sql STABLE
AS $$ SELECT statement_timestamp() + {ahead} $$;
