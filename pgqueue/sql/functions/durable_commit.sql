-- The caller's transaction will wait for its commit to be on disk. Raises synchronous_commit from off, never lowers it.
CREATE OR REPLACE FUNCTION pgqueue.durable_commit() RETURNS void
LANGUAGE plpgsql VOLATILE
AS $$
BEGIN
    IF current_setting('synchronous_commit') = 'off' THEN
        PERFORM set_config('synchronous_commit', 'on', true);
    END IF;
END
$$;
