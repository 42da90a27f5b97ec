-- Raises. An expression, so that a query can say coalesce(what it needs, refuse(why not)).
CREATE OR REPLACE FUNCTION pgqueue.refuse(code text, message text, hint text DEFAULT '') RETURNS text
LANGUAGE plpgsql STABLE
AS $$
BEGIN
    RAISE EXCEPTION USING ERRCODE = code, MESSAGE = message, HINT = hint;
END
$$;
