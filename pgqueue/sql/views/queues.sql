-- The queues that exist.
CREATE OR REPLACE VIEW pgqueue.queues AS
SELECT q.name, q.paused, q.created_at FROM pgqueue.queue q;
