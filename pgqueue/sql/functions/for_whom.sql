-- Whom a job of a fair queue is for: the value of the argument fair_by (null: the queue is not fair).
CREATE OR REPLACE FUNCTION pgqueue.for_whom(fair_by text, input text) RETURNS text
LANGUAGE sql IMMUTABLE
AS $$
    SELECT CASE WHEN fair_by IS NOT NULL THEN left(coalesce(input::json ->> fair_by, ''), 512) END
$$;
