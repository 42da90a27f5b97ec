-- Which database this is: the same for a standby that has taken over, another for a copy.
CREATE OR REPLACE FUNCTION pgqueue.this_database() RETURNS text
LANGUAGE sql STABLE
AS $$
    SELECT i.id || '.' || d.oid FROM pgqueue.installation i JOIN pg_database d ON d.datname = current_database()
$$;
