-- Refuses a JSON value that is too large, or that holds what a text cannot (NUL, lone surrogates).
CREATE OR REPLACE FUNCTION pgqueue.check_value(value json, what text) RETURNS void
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    most integer := (SELECT i.max_bytes FROM pgqueue.installation i);
BEGIN
    IF octet_length(value::text) > most THEN
        PERFORM pgqueue.refuse('PQ005', format('%s has %s bytes, the limit is %s', what, octet_length(value::text), most),
                               'Keep large data in a table of your own and pass its key.');
    ELSIF strpos(value::text, '\u') > 0 AND value::jsonb IS NULL THEN
        NULL;                                                -- the cast refuses them
    END IF;
END
$$;
