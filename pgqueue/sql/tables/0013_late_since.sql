-- A schedule with a problem is looked at again and again, so that next_at says nothing of its ticks: since when is one due?

ALTER TABLE pgqueue.schedule ADD COLUMN late_since timestamptz;      -- where there is a problem: the moment of the tick that waits
