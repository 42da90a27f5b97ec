"""Jobs that have to end in a certain way do, and all others succeed.

Fails where a poison job goes on for ever, or is let off; where its error does not say why; where a job failed that did nothing
wrong; and where a job was charged with more crashes than it may have.
"""

from __future__ import annotations

from collections.abc import Mapping
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


class _Specimen(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def status(self) -> str: ...
    @property
    def says(self) -> str: ...


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
        if status != specimen.status or specimen.says not in error:
            expected = f"{specimen.status} {specimen.says}"
            wrong.append(f"{specimen.name}, job {job}: {status} ({error[:200]}), expected was {expected}")
    wrong += [f"job {job}, which did nothing wrong: {status} ({error[:200]})" for job, (status, error) in ended.items()]
    for job, crashes, most in conn.execute(_CRASHES).fetchall():
        wrong.append(f"job {job} was charged with {crashes} crashes, and may have {most}")
    return wrong
