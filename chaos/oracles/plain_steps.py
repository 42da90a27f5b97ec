"""A plain step runs at least once, one step wide.

Fails where a step has a checkpoint and never ran, where more than the one step at the frontier ran again after a fault, and where
one ran again although it had a checkpoint already. Only a process that was paused past its lease may do the last: it stood in
front of the effect and knows nothing of the run that overtook it.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import psycopg

#: When each was stored. Where a history of claims is kept, as the server's own clock had it: tests replace pgqueue.clock().
_STORED_BY_THE_SERVERS_CLOCK = """
SELECT k.job_id || ':' || k.seq, extract(epoch FROM h.at)::float8
  FROM pgqueue.checkpoint k JOIN pgqueue.workflow w ON w.name = k.name
  JOIN (SELECT job_id, xid, max(at) AS at FROM claim_history WHERE event = '2 stored a step' GROUP BY 1, 2) h
    ON h.job_id = k.job_id AND h.xid = k.xid
 WHERE w.kind = 'step' AND k.error IS NULL
UNION ALL
SELECT o.job_id || ':0', extract(epoch FROM h.at)::float8
  FROM pgqueue.outcome o JOIN pgqueue.job j ON j.id = o.job_id JOIN pgqueue.workflow w ON w.name = j.name
  JOIN (SELECT job_id, max(at) AS at FROM claim_history WHERE event = '3 ended the job' GROUP BY 1) h ON h.job_id = o.job_id
 WHERE w.kind = 'step' AND o.status = 'succeeded'
"""
_STORED = """
SELECT k.job_id || ':' || k.seq, extract(epoch FROM k.created_at)::float8
  FROM pgqueue.checkpoint k JOIN pgqueue.workflow w ON w.name = k.name WHERE w.kind = 'step' AND k.error IS NULL
UNION ALL
SELECT o.job_id || ':0', extract(epoch FROM o.finished_at)::float8
  FROM pgqueue.outcome o JOIN pgqueue.job j ON j.id = o.job_id JOIN pgqueue.workflow w ON w.name = j.name
 WHERE w.kind = 'step' AND o.status = 'succeeded'
"""


def check(
    conn: psycopg.Connection[Any], outside: Path, faults: int, pauses: int = 0, at_once: int = 1, servers_clock: bool = False
) -> list[str]:
    """``outside`` is the file with one line per run. ``faults``: crashes, pauses and lost connections of workers; ``pauses``: how
    many of these were pauses past the lease; ``at_once``: how many jobs a worker can be running."""
    runs = _runs(outside)
    stored: dict[str, float] = dict(conn.execute(_STORED_BY_THE_SERVERS_CLOCK if servers_clock else _STORED).fetchall())
    wrong = [f"step {key} has a checkpoint, and its code never ran" for key in stored if key not in runs]
    several = {key: len(moments) for key, moments in runs.items() if len(moments) > 1}
    if any(times > 1 + faults for times in several.values()) or sum(several.values()) - len(several) > faults * at_once:
        wrong.append(f"steps ran more than once, with {faults} faults: {several}")
    late = [key for key, moments in runs.items() for moment in moments if moment > stored.get(key, float("inf"))]
    if len(late) > pauses * at_once:
        wrong.append(f"steps ran although they had a checkpoint, with {pauses} pauses: {late}")
    return wrong


def _runs(outside: Path) -> dict[str, list[float]]:
    runs: dict[str, list[float]] = defaultdict(list)
    for line in outside.read_text().splitlines() if outside.exists() else ():
        what, key, moment = line.split()
        if what == "effect":
            runs[key].append(float(moment))
    return runs
