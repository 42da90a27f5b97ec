"""Jobs that have to end in a certain way do, and all others succeed.

Fails where a poison job goes on for ever, or is let off; where its error does not say why; where a job that kills its worker was
given up before it had done that as often as it may, or says another number or reason than is stored of its crashes; where a job
failed that did nothing wrong; and where one was charged with more crashes than it may have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import psycopg

_ENDED = """
SELECT o.job_id::text, o.status, coalesce(o.error::json ->> 'type', '') || ': ' || coalesce(o.error::json ->> 'message', ''),
       j.parent::text
  FROM pgqueue.outcome o JOIN pgqueue.job j ON j.id = o.job_id WHERE o.status <> 'succeeded' OR o.job_id::text = ANY (%s)
"""
#: Where several jobs had begun in a worker that died, nobody knows which one it was: then three times as many are allowed.
_CRASHES = """
SELECT a.job_id::text, count(*), max(w.max_crashes) * CASE WHEN bool_or(a.company) THEN 3 ELSE 1 END AS most
  FROM (SELECT t.*, count(*) OVER (PARTITION BY t.worker) > 1 AS company FROM pgqueue.attempt t WHERE t.kind = 'crash') a
  JOIN pgqueue.job j ON j.id = a.job_id
  JOIN pgqueue.workflow w ON w.name = j.name GROUP BY 1, a.checkpoints
HAVING count(*) > max(w.max_crashes) * CASE WHEN bool_or(a.company) THEN 3 ELSE 1 END
"""
#: Of a job that has no checkpoints, as it was charged: how often, how often it may be, and what was said of each. Three times as
#: often where several had begun in the worker that died last: claim_history.py has written down how many.
_DEATHS = """
SELECT count(a.id),
       max(coalesce(w.max_crashes, 3)) * CASE WHEN bool_or(a.claim = o.claim AND cardinality(h.started) > 1) THEN 3 ELSE 1 END,
       coalesce(array_agg(a.error::json ->> 'message'), '{}')
  FROM pgqueue.job j JOIN pgqueue.outcome o ON o.job_id = j.id LEFT JOIN pgqueue.workflow w ON w.name = j.name
  LEFT JOIN pgqueue.attempt a ON a.job_id = j.id AND a.kind = 'crash'
  LEFT JOIN worker_history h ON h.id = a.worker AND h.event = 'fenced' WHERE j.id::text = %s
"""


class _Specimen(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def status(self) -> str: ...
    @property
    def says(self) -> Sequence[str]: ...
    @property
    def dies(self) -> str: ...


def check(conn: psycopg.Connection[Any], specimens: Mapping[str, _Specimen], cancelled: set[str] | None = None) -> list[str]:
    """When all jobs have ended. ``specimens``: by their ids. ``cancelled``: what somebody cancelled, or tried to; their children
    end with them."""
    wrong = []
    ended = {
        job: (status, error)
        for job, status, error, parent in conn.execute(_ENDED, (list(specimens),)).fetchall()
        if status != "cancelled" or not {job, parent} & (cancelled or set())
    }
    for job, specimen in specimens.items():
        status, error = ended.pop(job, ("is not there", ""))
        if status != specimen.status or not all(part in error for part in specimen.says):
            expected = f"{specimen.status} {' ... '.join(specimen.says)}".strip()
            wrong.append(f"{specimen.name}, job {job}: {status} ({error[:200]}), expected was {expected}")
        elif specimen.dies:
            wrong += [f"{specimen.name}, job {job}: {what}" for what in _deaths(conn, job, specimen.dies, error)]
    wrong += [f"job {job}, which did nothing wrong: {status} ({error[:200]})" for job, (status, error) in ended.items()]
    for job, crashes, most in conn.execute(_CRASHES).fetchall():
        wrong.append(f"job {job} was charged with {crashes} crashes, and may have {most}")
    return wrong


def _deaths(conn: psycopg.Connection[Any], job: str, dies: str, error: str) -> list[str]:
    """Of a job that has failed because its worker died each time. Others may have killed its worker too."""
    [(crashes, may, reasons)] = conn.execute(_DEATHS, (job,)).fetchall()
    wrong = []
    if crashes < may:
        wrong.append(f"given up after {crashes} crashes, {may} may be")
    begins = f"WorkerDied: the worker process died {crashes} times while it ran this job, the last time: "
    if error not in {f"{begins}{reason}" for reason in reasons}:  # which was the last one, nobody knows: F10 sets the clock back
        wrong.append(f"its error is {error!r}, and stored are {crashes} crashes: {reasons}")
    if not any(dies in (reason or "") for reason in reasons):
        wrong.append(f"{reasons} is what is said of its crashes, and {dies!r} is nowhere in there")
    return wrong
