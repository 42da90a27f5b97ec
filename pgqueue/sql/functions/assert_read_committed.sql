-- Verbs of several statements rely on each statement seeing what was committed before it.
CREATE OR REPLACE FUNCTION pgqueue.assert_read_committed() RETURNS void
LANGUAGE plpgsql STABLE
AS $$
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        PERFORM pgqueue.refuse('PQ007', 'this pgqueue function must run in a READ COMMITTED transaction',
                               'Begin it with BEGIN ISOLATION LEVEL READ COMMITTED.');
    END IF;
END
$$;
