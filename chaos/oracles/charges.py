"""A crash is charged to the jobs that had begun in a process that died, once to each, and to nobody else; and an error only to
those whose code raised one.

Fails where a job is charged twice for one run of it; where it is charged although its worker was drained, fenced or stopped and
nothing says that the job had begun there; where more jobs of a worker are charged than it can be running; and where jobs are
charged with the death of a worker that nobody has killed. Where a lease ran out, or a claim was committed behind the end of its
worker, nobody knows what had begun: then the only job that the worker has is charged, and no other.

``errors`` fails where an attempt was used up as failed by a job whose code raises nothing: a drain, a lost connection, full disk
or a conflict costs none.

Needs the history of claims (claim_history.py), which has who was fenced why.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import groupby
from typing import Any, NamedTuple

import psycopg

#: Workers by their deaths: a fence without `started` is of somebody who knows nothing of what had begun.
_CHARGED = """
SELECT a.worker::text, w.pid, f.reason, f.started::text[], a.job_id::text, a.claim, j.name, a.error::json ->> 'message'
  FROM pgqueue.attempt a JOIN pgqueue.job j ON j.id = a.job_id
  LEFT JOIN worker_history w ON w.id = a.worker AND w.event = 'registered'
  LEFT JOIN worker_history f ON f.id = a.worker AND f.event = 'fenced'
 WHERE a.kind = 'crash' ORDER BY a.worker
"""


_ERRORS = """
SELECT a.job_id::text, j.name, coalesce(a.error::json ->> 'type', '?') || ': ' || coalesce(a.error::json ->> 'message', '')
  FROM pgqueue.attempt a JOIN pgqueue.job j ON j.id = a.job_id WHERE a.kind = 'error' AND j.name = ANY (%s)
"""
GONE = "its worker is gone"  # said of jobs whose worker is in no table any more


class Charge(NamedTuple):
    """One crash of one job."""

    worker: str
    pid: int | None
    reason: str | None
    started: list[str] | None
    job: str
    claim: int
    name: str
    said: str | None


def check(conn: psycopg.Connection[Any], killed: Iterable[int], killers: Iterable[str], at_once: int) -> list[str]:
    """``killed``: the processes that a fault has killed. ``killers``: names of jobs that kill their own. ``at_once``: how many
    jobs a worker can be running."""
    charges = [Charge(*row) for row in conn.execute(_CHARGED).fetchall()]
    times = Counter((charge.job, charge.claim) for charge in charges)
    wrong = [f"job {job} was charged {count} times for one run of it" for (job, _), count in times.items() if count > 1]
    for worker, group in groupby(charges, lambda charge: charge.worker):
        wrong += [f"worker {worker}: {what}" for what in _wrong(list(group), frozenset(killed), frozenset(killers), at_once)]
    return wrong


def errors(conn: psycopg.Connection[Any], blameless: Iterable[str]) -> list[str]:
    """``blameless``: names of jobs that raise nothing."""
    rows = conn.execute(_ERRORS, (list(blameless),)).fetchall()
    return [f"job {job} ({name}), whose code raises nothing, has used up an attempt: {error[:200]}" for job, name, error in rows]


def _wrong(charges: list[Charge], killed: frozenset[int], killers: frozenset[str], at_once: int) -> list[str]:
    """The charges of one worker."""
    worker = charges[0]
    by_hand = worker.pid in killed or any(charge.name in killers for charge in charges)
    wrong = []
    behind = [charge for charge in charges if charge.said == GONE]
    if len(behind) > 1:
        wrong.append(f"{len(behind)} jobs were charged that it was given behind its end")
    charges = [charge for charge in charges if charge.said != GONE]
    if charges and worker.reason is None:
        wrong.append("its jobs were charged, and nobody has fenced it")
    if worker.started is not None:
        wrong += [f"job {c.job} was charged, and had not begun ({c.said})" for c in charges if c.job not in worker.started]
        if charges and not by_hand:
            wrong.append(f"{len(charges)} jobs were charged with its death, and nobody has killed it ({worker.reason})")
    if len(charges) > (at_once if worker.started is not None or by_hand else 1):
        wrong.append(f"{len(charges)} jobs were charged with its death ({worker.reason})")
    return wrong
