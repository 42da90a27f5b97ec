-- Fair queues: how much everybody has got, in turns. Whoever has got least is next.

ALTER TABLE pgqueue.fair_turn ALTER COLUMN last DROP NOT NULL;         -- where the look at those who have jobs goes on, if they are very many
ALTER TABLE pgqueue.fair_turn ADD COLUMN turn double precision NOT NULL DEFAULT 0;      -- how much somebody had got whose turn it was. It never goes back

-- Who is not in here, or behind by more than the credit that newcomers have, has got `turn` less that credit.
CREATE TABLE pgqueue.fair_share (
    queue text NOT NULL,
    fair  text NOT NULL,
    got   double precision NOT NULL,
    PRIMARY KEY (queue, fair)
) WITH (fillfactor = 50);
CREATE INDEX fair_share_got ON pgqueue.fair_share (queue, got);
