-- Whoever fences a worker that was killed because of a time limit says so with the fence: another host may be the first to reap.

ALTER TABLE pgqueue.worker ADD COLUMN overdue integer;               -- the step whose time was over (0: the whole job's); null: none
DROP FUNCTION IF EXISTS pgqueue.fence_worker(uuid, bigint, text, uuid[]);
