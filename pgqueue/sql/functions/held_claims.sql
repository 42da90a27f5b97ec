-- What the database believes these workers to hold. The housekeeper compares it with what they say themselves: a claim
-- whose reply was lost is in this list only, and is given back.
CREATE OR REPLACE FUNCTION pgqueue.held_claims(workers uuid[]) RETURNS TABLE (job_id uuid, claim bigint, worker uuid)
LANGUAGE sql STABLE
AS $$
    SELECT r.job_id, r.claim, r.worker FROM pgqueue.running r WHERE r.worker = ANY (workers)
$$;
