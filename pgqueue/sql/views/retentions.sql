-- For how long what has ended is kept. queue '': wherever no queue says otherwise.
CREATE OR REPLACE VIEW pgqueue.retentions AS
SELECT r.queue, r.what, r.seconds FROM pgqueue.retention r;
