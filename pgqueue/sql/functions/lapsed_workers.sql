-- Workers whose jobs wait to be reaped: fenced ones, and ones that have no row any more (their claim committed after the
-- reap). Asked again and again, so that nothing depends on seeing a death at the moment it happens.
CREATE OR REPLACE FUNCTION pgqueue.lapsed_workers() RETURNS TABLE (worker uuid, reason text)
LANGUAGE sql STABLE
AS $$
    SELECT r.worker, coalesce(w.reason, 'its worker is gone')
      FROM (SELECT DISTINCT r.worker FROM pgqueue.running r) r
      LEFT JOIN pgqueue.worker w ON w.id = r.worker
     WHERE w.id IS NULL OR w.fenced_at IS NOT NULL
     UNION
    SELECT w.id, w.reason FROM pgqueue.worker w WHERE w.fenced_at IS NOT NULL
$$;
