-- A UUID of version 7: time first, so that neighbours in time are neighbours in the index; the rest is random.
CREATE OR REPLACE FUNCTION pgqueue.new_id() RETURNS uuid
LANGUAGE sql VOLATILE
AS $$
    SELECT encode(set_bit(set_bit(overlay(uuid_send(gen_random_uuid())
                  PLACING substring(int8send((extract(epoch FROM pgqueue.clock()) * 1000)::bigint) FROM 3) FROM 1 FOR 6),
                  52, 1), 53, 1), 'hex')::uuid
$$;
