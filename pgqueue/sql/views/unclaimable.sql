-- Names that jobs have and no worker that met them knows; they wait for one that does. Counted up to 10,000 each.
CREATE OR REPLACE VIEW pgqueue.unclaimable AS
SELECT n.key AS name, (SELECT count(*) FROM (SELECT FROM pgqueue.waiting w WHERE w.kind = 'name' AND w.key = n.key LIMIT 10001) c) AS jobs
  FROM (SELECT DISTINCT w.key FROM pgqueue.waiting w WHERE w.kind = 'name') n
 ORDER BY n.key;
