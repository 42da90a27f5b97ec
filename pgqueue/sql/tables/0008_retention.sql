-- Retention: for how long is kept what has ended, and the walks of the housekeepers over what is old enough to go.

CREATE TABLE pgqueue.retention (
    queue   text NOT NULL,                                 -- '': of every queue that says nothing else
    what    text NOT NULL CHECK (what IN ('succeeded', 'failed', 'cancelled', 'events', 'ticks')),
    seconds double precision NOT NULL CHECK (seconds >= 0 AND seconds <> 'NaN'),     -- infinity: for ever
    PRIMARY KEY (queue, what),
    CHECK (queue = '' OR what IN ('succeeded', 'failed', 'cancelled'))
);
INSERT INTO pgqueue.retention (queue, what, seconds)
VALUES ('', 'succeeded', 7 * 86400), ('', 'failed', 30 * 86400), ('', 'cancelled', 7 * 86400), ('', 'events', 30 * 86400), ('', 'ticks', 30 * 86400);

-- How far the walk over what has ended has come. Whoever locks the row goes the next few steps, and any host may be the next one.
CREATE TABLE pgqueue.prune_walk (
    what    text PRIMARY KEY CHECK (what IN ('jobs', 'events', 'ticks')),
    reached timestamptz NOT NULL DEFAULT '-infinity',
    look_at timestamptz NOT NULL DEFAULT '-infinity'       -- when to take the next step
) WITH (fillfactor = 50);
INSERT INTO pgqueue.prune_walk (what) VALUES ('jobs'), ('events'), ('ticks');
