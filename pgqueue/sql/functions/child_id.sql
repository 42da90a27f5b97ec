-- The id of a child that gather() starts: a UUID of version 8, from its parent and its place there. (The worker makes the same.)
CREATE OR REPLACE FUNCTION pgqueue.child_id(parent uuid, seq integer, ordinal integer) RETURNS uuid
LANGUAGE sql IMMUTABLE
AS $$
    SELECT encode(set_byte(set_byte(h, 6, get_byte(h, 6) & 15 | 128), 8, get_byte(h, 8) & 63 | 128), 'hex')::uuid
      FROM (SELECT substring(sha256(convert_to(parent || ':' || seq || ':' || ordinal, 'UTF8')) FROM 1 FOR 16)) AS s(h)
$$;
