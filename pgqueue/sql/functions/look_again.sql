-- Has waiting jobs looked at once this transaction has committed: these jobs, and those that wait for these events. (See the
-- table wakeup.) The housekeepers are told, and look once a second anyway.
CREATE OR REPLACE FUNCTION pgqueue.look_again(jobs uuid[], events text[] DEFAULT '{}') RETURNS void
LANGUAGE plpgsql VOLATILE
AS $$
BEGIN
    INSERT INTO pgqueue.wakeup (pos, job_id) SELECT nextval('pgqueue.position'), j FROM unnest(jobs) j GROUP BY j;
    INSERT INTO pgqueue.wakeup (pos, event) SELECT nextval('pgqueue.position'), e FROM unnest(events) e;
    PERFORM pg_notify('pgqueue_wake', '');
END
$$;
