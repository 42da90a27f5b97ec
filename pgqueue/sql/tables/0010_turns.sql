-- Jobs that wait for their turn at a key are found by the index for that alone: where there are very many of them, it counts.

DROP INDEX pgqueue.waiting_key;
CREATE INDEX waiting_key ON pgqueue.waiting (kind, key) WHERE kind <> 'key';
