-- The position last given to a ready job. A claimer that samples it learns from where on to look for younger ones.
CREATE OR REPLACE FUNCTION pgqueue.position_now() RETURNS bigint
LANGUAGE sql VOLATILE
AS $$ SELECT last_value FROM pgqueue.position $$;
