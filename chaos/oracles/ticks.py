"""Each tick of a schedule that is due every second, and leaves nothing out, is there once, in an unbroken row; and each has one
job, which says so. That each of these jobs has one effect is the business of the oracle of effects.

Fails where a tick is lost or enqueued twice, where a job has no tick, and where a tick has the job of another.
"""

from __future__ import annotations

from typing import Any

import psycopg

_GAPS = """
SELECT t.schedule, t.due_at, t.before
  FROM (SELECT k.schedule, k.due_at, lag(k.due_at) OVER (PARTITION BY k.schedule ORDER BY k.due_at) AS before
          FROM pgqueue.tick k JOIN pgqueue.schedule s ON s.name = k.schedule AND s.misfire = 'all' AND s.every = 1) t
 WHERE t.due_at - t.before <> interval '1 second'
"""
_UNEQUAL = """
SELECT coalesce(t.schedule, j.schedule), coalesce(t.due_at, j.due_at), t.job_ids, j.ids
  FROM (SELECT k.schedule, k.due_at, array_agg(k.job_id) AS job_ids
          FROM pgqueue.tick k WHERE k.job_id IS NOT NULL GROUP BY 1, 2) t
  FULL JOIN (SELECT b.policy -> 'meta' ->> 'schedule' AS schedule, (b.policy -> 'meta' ->> 'due_at')::timestamptz AS due_at,
                    array_agg(b.id) AS ids
               FROM pgqueue.job b WHERE b.policy -> 'meta' ? 'schedule' AND b.parent IS NULL GROUP BY 1, 2) j
    ON j.schedule = t.schedule AND j.due_at = t.due_at
 WHERE t.job_ids IS DISTINCT FROM j.ids
"""


def check(conn: psycopg.Connection[Any]) -> list[str]:
    """The ticks that are missing, or whose jobs are not theirs."""
    wrong = [f"schedule {name} has no tick between {before} and {due}" for name, due, before in conn.execute(_GAPS).fetchall()]
    for name, due, said, there in conn.execute(_UNEQUAL).fetchall():
        wrong.append(f"the tick of schedule {name} at {due} names the jobs {said}, and there are {there}")
    return wrong
