-- The time, for stamps. Every other function reads time only through this and clock_bound(): tests replace both.
CREATE OR REPLACE FUNCTION pgqueue.clock() RETURNS timestamptz
LANGUAGE sql VOLATILE
AS $$ SELECT clock_timestamp() $$;
