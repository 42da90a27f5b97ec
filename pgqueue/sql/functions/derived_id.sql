-- A UUID of version 8: the same for the same installation, origin (a workflow's first name) and text. So "order-7" may
-- be enqueued any number of times and is one job.
CREATE OR REPLACE FUNCTION pgqueue.derived_id(origin text, chosen text) RETURNS uuid
LANGUAGE sql STABLE
AS $$
    SELECT encode(set_byte(set_byte(h, 6, get_byte(h, 6) & 15 | 128), 8, get_byte(h, 8) & 63 | 128), 'hex')::uuid
      FROM pgqueue.installation i
     CROSS JOIN LATERAL (SELECT substring(sha256(uuid_send(i.id) || convert_to(origin, 'UTF8') || '\x00'::bytea
                                                 || convert_to(chosen, 'UTF8')) FROM 1 FOR 16)) AS s(h)
$$;
