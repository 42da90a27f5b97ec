-- When a job of this cost may begin, by the rate of a queue or of a key in it. The register holds the moment at which, without a
-- burst, the next start would be due; a burst may come so much earlier. In any time of `seconds` the costs of what begins sum up to
-- at most amount + burst - 1 (with a cost larger than burst in place of burst, if there is one).
CREATE OR REPLACE FUNCTION pgqueue.next_start(
    queue text, key text, amount integer, seconds double precision, burst integer, cost integer, stamp timestamptz) RETURNS timestamptz
LANGUAGE sql STABLE
AS $$
    SELECT greatest(stamp, (SELECT r.next FROM pgqueue.rate_register r WHERE r.queue = next_start.queue AND r.key = next_start.key)
                           - make_interval(secs => greatest(0, burst - cost) * seconds / amount))
$$;
