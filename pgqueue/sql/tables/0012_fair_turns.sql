-- Who is charged with a turn in a fair queue is decided where it is decided which jobs begin; and it is known which App has declared the
-- limits of a queue.

DROP FUNCTION IF EXISTS pgqueue.pick_fair(text, integer, smallint[]);
DROP FUNCTION IF EXISTS pgqueue.pick_turns(pgqueue.queue, integer, bigint[], smallint[]);

ALTER TABLE pgqueue.queue ADD COLUMN declared_by text;
