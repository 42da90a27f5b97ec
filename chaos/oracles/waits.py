"""Who waits goes on when it is time, or when there is what it waits for: not before, and then it does.

Fails where a sleep, or a wait that nobody answers, was over too soon; and where an event was sent, and a job waits for it for
ever. (That it goes on *soon* is not judged here: a fault may have held it up.)

How long it was is measured from the checkpoint before the wait to that of the wait, which is a little more than the wait itself,
by the server's own clock. Waits during which F10 has set the clock of pgqueue are left out: they may be shorter.

Needs the history of claims (claim_history.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psycopg

from chaos.workloads import town

#: Of `waits`: its sleep, and the wait whose time runs out. The last one is the second event.
_LASTED = """
SELECT * FROM (
    SELECT k.job_id::text, k.name,
           extract(epoch FROM lag(h.at) OVER w)::float8 AS since, extract(epoch FROM h.at)::float8 AS until,
           k.name = 'pgqueue.sleep' OR k.result LIKE '%%timeout%%' AS timed
      FROM pgqueue.checkpoint k JOIN pgqueue.job j ON j.id = k.job_id
      JOIN (SELECT job_id, xid, max(at) AS at FROM claim_history WHERE event = '2 stored a step' GROUP BY 1, 2) h
        ON h.job_id = k.job_id AND h.xid = k.xid
     WHERE j.name = %s WINDOW w AS (PARTITION BY k.job_id ORDER BY k.seq)) t
 WHERE timed AND since IS NOT NULL
"""
_DEAF = """
SELECT w.job_id::text, w.key FROM pgqueue.waiting w JOIN pgqueue.event e ON e.key = w.key
 WHERE w.kind = 'event' AND (w.until IS NULL OR e.sent_at <= w.until) AND e.sent_at < pgqueue.clock() - interval '10 s'
"""
AROUND = 1.0  # seconds


def check(conn: psycopg.Connection[Any], clock_set: Sequence[tuple[float, float]] = ()) -> list[str]:
    """When all jobs have ended, or nothing moves any more. ``clock_set``: between which moments the clock was, by the
    server's own."""
    lasted = conn.execute(_LASTED, (town.waits.name,)).fetchall()
    return [
        f"job {job}: the {name.partition('.')[2]} of {town.NAP:g} s was over after {until - since:.3f} s"
        for job, name, since, until, _ in lasted
        if until - since < town.NAP
        and not any(since - AROUND <= after and before <= until + AROUND for before, after in clock_set)
    ] + [f"job {job} waits for the event {key!r}, which was sent" for job, key in conn.execute(_DEAF).fetchall()]


def judged(conn: psycopg.Connection[Any]) -> int:
    """How many waits had an end of their own."""
    return len(conn.execute(_LASTED, (town.waits.name,)).fetchall())
