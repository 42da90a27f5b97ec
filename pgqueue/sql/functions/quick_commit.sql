-- For a verb whose loss in a crash of the server costs a repetition and no more (claim, promote): its commit need not
-- wait for the disk. Only where nothing was written before in this transaction.
CREATE OR REPLACE FUNCTION pgqueue.quick_commit() RETURNS void
LANGUAGE plpgsql VOLATILE
AS $$
BEGIN
    IF pg_current_xact_id_if_assigned() IS NULL THEN
        PERFORM set_config('synchronous_commit', 'off', true);
    END IF;
END
$$;
