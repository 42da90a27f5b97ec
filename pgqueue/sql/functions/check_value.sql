-- Refuses a JSON value that is too large, or that its reader could not read: NUL and lone surrogates, numbers beyond a double, and
-- what is nested more than 500 deep.
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
    ELSIF value::text ~ '[eE][+]?[0-9]{3}|[0-9]{200}' AND jsonb_path_exists(value::jsonb,
            '$.** ? (@.type() == "number" && (@ > 1.7976931348623157e308 || @ < -1.7976931348623157e308))') THEN
        PERFORM pgqueue.refuse('PQ004', format('%s has a number that no double can hold', what), 'Send it as a text.');
    ELSIF octet_length(value::text) - octet_length(translate(value::text, '[{', '')) > 500
          AND jsonb_path_exists(value::jsonb, '$.**{500 to last}') THEN
        PERFORM pgqueue.refuse('PQ004', format('%s is nested more than 500 deep', what));
    END IF;
END
$$;
