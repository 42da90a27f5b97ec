-- The position last given to a ready job. A claimer that samples it learns from where on to look for younger ones.
CREATE OR REPLACE FUNCTION pgqueue.newest_position() RETURNS bigint
LANGUAGE sql VOLATILE
AS $$ SELECT last_value FROM pgqueue.position $$;
