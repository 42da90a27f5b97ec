-- Does this server accept writes? Otherwise "read-only transaction" says nothing about the job that met it.
CREATE OR REPLACE FUNCTION pgqueue.is_writable() RETURNS boolean
LANGUAGE sql STABLE
AS $$
    SELECT NOT pg_is_in_recovery() AND current_setting('default_transaction_read_only') = 'off'
$$;
