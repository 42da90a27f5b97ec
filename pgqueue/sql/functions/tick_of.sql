-- The tick that a job is for, as its meta says. Null where that is no moment: producers can say anything there.
CREATE OR REPLACE FUNCTION pgqueue.tick_of(policy jsonb) RETURNS timestamptz
LANGUAGE plpgsql STABLE
AS $$
BEGIN
    RETURN (policy #>> '{meta,due_at}')::timestamptz;
EXCEPTION WHEN data_exception THEN
    RETURN NULL;
END
$$;
