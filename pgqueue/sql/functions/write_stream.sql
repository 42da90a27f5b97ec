-- Append values (JSON texts) to a stream of a job, in the order given. Writers of one stream wait for each other's commit, so a
-- reader who goes on from the last position that it saw misses nothing. With a token only while that claim holds the job;
-- without one the caller's transaction has fenced it. Answers whether they were written.
CREATE OR REPLACE FUNCTION pgqueue.write_stream(job uuid, token bigint, name text, vals text[]) RETURNS boolean
LANGUAGE plpgsql VOLATILE
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off
AS $$
DECLARE
    last integer;
BEGIN
    IF token IS NOT NULL THEN
        PERFORM FROM pgqueue.running r WHERE r.job_id = job AND r.claim = token;
        IF NOT FOUND THEN
            RETURN false;
        END IF;
    END IF;
    INSERT INTO pgqueue.stream_end AS e (job_id, name, last) VALUES (job, write_stream.name, cardinality(vals))
    ON CONFLICT ON CONSTRAINT stream_end_pkey DO UPDATE SET last = e.last + excluded.last
    RETURNING e.last INTO last;
    INSERT INTO pgqueue.stream (job_id, name, pos, value, written_at)
    SELECT job, write_stream.name, last - cardinality(vals) + v.i, v.value, pgqueue.clock()
      FROM unnest(vals) WITH ORDINALITY v(value, i);
    PERFORM pgqueue.tell_results(ARRAY[job]);
    RETURN true;
END
$$;
