"""Each tick of a schedule that is due every second, and leaves nothing out, is there once, in an unbroken row; and each has one
job, which says so. That each of these jobs has one effect is the business of the oracle of effects.

Fails where a tick is lost, left out or enqueued twice, where a job has no tick, and where a tick has the job of another. Told
since when there is a schedule and until when it was to tick, it fails too where ticks begin too late, or stop, or never come.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, NamedTuple

import psycopg

_GAPS = """
SELECT t.schedule, t.due_at, t.before
  FROM (SELECT k.schedule, k.due_at, lag(k.due_at) OVER (PARTITION BY k.schedule ORDER BY k.due_at) AS before
          FROM pgqueue.tick k JOIN pgqueue.schedule s ON s.name = k.schedule AND s.misfire = 'all' AND s.every = 1) t
 WHERE t.due_at - t.before <> interval '1 second'
"""
_ENDS = """
SELECT s.name, min(k.due_at), max(k.due_at) FROM pgqueue.schedule s LEFT JOIN pgqueue.tick k ON k.schedule = s.name
 WHERE s.misfire = 'all' AND s.every = 1 GROUP BY 1
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


_LEFT_OUT = """
SELECT k.schedule, k.due_at, k.why FROM pgqueue.tick k JOIN pgqueue.schedule s ON s.name = k.schedule
 WHERE k.job_id IS NULL AND s.misfire = 'all' AND s.overlap
"""


class Span(NamedTuple):
    """The time for which there have to be ticks, by the server's clock. Both ends are full seconds."""

    since: datetime
    until: datetime


def check(conn: psycopg.Connection[Any], span: Span | None = None) -> list[str]:
    """The ticks that are missing, or whose jobs are not theirs."""
    wrong = [f"schedule {name} has no tick between {before} and {due}" for name, due, before in conn.execute(_GAPS).fetchall()]
    for name, due, said, there in conn.execute(_UNEQUAL).fetchall():
        wrong.append(f"the tick of schedule {name} at {due} names the jobs {said}, and there are {there}")
    wrong += [f"the tick of schedule {name} at {due} has no job: {why}" for name, due, why in conn.execute(_LEFT_OUT).fetchall()]
    return wrong + (missing(conn, span) if span is not None else [])


def missing(conn: psycopg.Connection[Any], span: Span) -> list[str]:
    """At both ends."""
    ends = conn.execute(_ENDS).fetchall()
    wrong = [] if ends else ["there is no schedule"]
    for name, first, last in ends:
        if first is None:
            wrong.append(f"schedule {name} has never ticked, from {span.since} until {span.until}")
        elif first > span.since:
            wrong.append(f"schedule {name} is there since {span.since} at the latest, and has ticked from {first}")
        elif last < span.until:
            wrong.append(f"schedule {name} has stopped at {last}, and it was to tick until {span.until}")
    return wrong
