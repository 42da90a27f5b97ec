-- Tells those who wait for results that these jobs may have ended, if anybody waits (see awaited).
CREATE OR REPLACE FUNCTION pgqueue.tell_results(jobs uuid[]) RETURNS void
LANGUAGE plpgsql VOLATILE
AS $$
BEGIN
    IF (SELECT last_value FROM pgqueue.results_until) > extract(epoch FROM pgqueue.clock()) * 1000 THEN
        PERFORM pg_notify('pgqueue_results', string_agg(g.job::text, ''))    -- a payload has less than 8,000 bytes
           FROM unnest(jobs) WITH ORDINALITY g(job, i) GROUP BY g.i / 200;
    END IF;
END
$$;
