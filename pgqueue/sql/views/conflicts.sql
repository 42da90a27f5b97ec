-- How many rows were met that the invariant says cannot exist.
CREATE OR REPLACE VIEW pgqueue.conflicts AS
SELECT CASE WHEN c.is_called THEN c.last_value ELSE 0 END AS amount FROM pgqueue.conflict c;
