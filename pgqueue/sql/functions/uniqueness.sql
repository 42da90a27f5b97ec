-- How a job is to be unique, in full, and the key under which there is only one. said: true (one job of this workflow and input at a
-- time), a list (only these arguments count), or an object:
--   by           the arguments that count; null: all                key      a text that counts too (instead of them, without `by`)
--   until        ended, or started: from then on there may be another one    within   seconds; instead of `until`, whatever becomes of it
--   on_conflict  return (the job that is there), replace (it, as long as it has not begun), or error
--   delay        seconds: replace it, and put it off by so much;    at_most  but be it due so long after the first one at the latest
-- Jobs are compared with those that count the same arguments and are unique in the same way.
CREATE OR REPLACE FUNCTION pgqueue.uniqueness(said jsonb, origin text, input json, OUT how jsonb, OUT key uuid)
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    arguments jsonb := coalesce(input::jsonb, '{}');
    unknown   text;
    until     text;
    wrong     text;
BEGIN
    how := CASE jsonb_typeof(said) WHEN 'boolean' THEN CASE WHEN said::boolean THEN '{}'::jsonb END
                                   WHEN 'array' THEN jsonb_build_object('by', said) ELSE jsonb_strip_nulls(said) END;
    IF how IS NULL THEN
        RETURN;
    END IF;
    until := CASE WHEN how ? 'within' THEN 'time' WHEN how ? 'delay' OR how ->> 'on_conflict' = 'replace' THEN 'started'
                  ELSE coalesce(how ->> 'until', 'ended') END;
    wrong := CASE
        WHEN jsonb_typeof(how) <> 'object' THEN 'it is true, false, a list of arguments, or an object'
        WHEN how - '{by,key,until,within,on_conflict,delay,at_most}'::text[] <> '{}' THEN 'it says something unknown'
        WHEN how ? 'by' AND jsonb_typeof(how -> 'by') <> 'array' THEN 'by is a list of arguments'
        WHEN how ? 'key' AND (jsonb_typeof(how -> 'key') <> 'string' OR octet_length(how ->> 'key') > 512) THEN 'key is a text of up to 512 bytes'
        WHEN how ->> 'until' NOT IN ('ended', 'started') THEN 'until is ended or started'
        WHEN how ->> 'on_conflict' NOT IN ('return', 'replace', 'error') THEN 'on_conflict is return, replace or error'
        WHEN EXISTS (SELECT FROM jsonb_each(how) e WHERE e.key IN ('within', 'delay', 'at_most')
                        AND NOT (jsonb_typeof(e.value) = 'number' AND e.value::numeric BETWEEN 0.001 AND 31622400)) THEN 'times are seconds, up to a year'
        WHEN how ->> 'until' <> until THEN format('within has an end of its own, and what has begun is not replaced: leave out until')
        WHEN how ? 'within' AND (how ? 'delay' OR how ->> 'on_conflict' = 'replace') THEN 'a job that is unique for a time is not replaced'
        WHEN how ? 'delay' AND how ->> 'on_conflict' <> 'replace' THEN 'a job that is put off is replaced'
        WHEN how ? 'at_most' AND coalesce((how -> 'at_most')::numeric < (how -> 'delay')::numeric, true) THEN 'at_most is no less than delay' END;
    IF wrong IS NOT NULL THEN
        PERFORM pgqueue.refuse('PQ004', format('unique %s cannot be used: %s', left(said::text, 200), wrong), 'See "Unique jobs" in the documentation.');
    END IF;
    SELECT b INTO unknown FROM jsonb_array_elements_text(how -> 'by') b WHERE NOT arguments ? b LIMIT 1;
    IF FOUND THEN
        PERFORM pgqueue.refuse('PQ004', format('a job of %s is to be unique by %L, which its input does not have', origin, unknown),
                               'Only arguments that are given can be compared.');
    END IF;
    IF how ? 'by' THEN                                       -- in whatever order they are named
        how := how || jsonb_build_object('by', (SELECT coalesce(jsonb_agg(DISTINCT b ORDER BY b), '[]') FROM jsonb_array_elements_text(how -> 'by') b));
    END IF;
    key := pgqueue.derived_id(origin, 'unique ' || jsonb_build_array(until, how -> 'by', how -> 'key',
        CASE WHEN how ? 'by' THEN (SELECT jsonb_object_agg(b, arguments -> b) FROM jsonb_array_elements_text(how -> 'by') b)
             WHEN NOT how ? 'key' THEN arguments END)::text);
    how := how || jsonb_build_object('until', until, 'on_conflict', coalesce(how ->> 'on_conflict', CASE WHEN how ? 'delay' THEN 'replace' ELSE 'return' END));
END
$$;
