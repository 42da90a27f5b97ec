-- How a job ended, as JSON: {"status", "result" or "error"}.
CREATE OR REPLACE FUNCTION pgqueue.ending(o pgqueue.outcome) RETURNS json
LANGUAGE sql STABLE
AS $$
    SELECT CASE o.status WHEN 'succeeded' THEN json_build_object('status', o.status, 'result', coalesce(o.result, 'null')::json)
                         WHEN 'failed' THEN json_build_object('status', o.status, 'error', coalesce(o.error, '{}')::json)
                         ELSE json_build_object('status', o.status) END
$$;
