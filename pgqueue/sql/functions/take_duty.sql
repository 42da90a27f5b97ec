-- Work that one process does for all: true where `holder` has it now, for so many seconds, within which it has to ask again. Others
-- get it when that time is over, or at once with `force`.
CREATE OR REPLACE FUNCTION pgqueue.take_duty(name text, holder uuid, seconds double precision, force boolean DEFAULT false) RETURNS boolean
LANGUAGE plpgsql VOLATILE
AS $$
#variable_conflict use_column
BEGIN
    PERFORM pgqueue.quick_commit();
    INSERT INTO pgqueue.duty AS d (name, holder, until)
    VALUES (take_duty.name, take_duty.holder, pgqueue.clock() + make_interval(secs => seconds))
    ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, until = excluded.until
     WHERE d.holder = excluded.holder OR d.until < pgqueue.clock() OR force;
    RETURN FOUND;
END
$$;
