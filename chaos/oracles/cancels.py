"""A workflow that somebody asks to end begins no further step.

Fails where it has stored more than a few after the request was committed. One may be: that which was under way, at whose end it
hears of the request. (Two more are allowed, to be lenient.) A job that has so few steps left may succeed.

Needs the history of claims (claim_history.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import psycopg

ALLOWED = 3  # steps
_LATER = """
SELECT count(*), o.status FROM pgqueue.outcome o
  JOIN claim_history h ON h.job_id = o.job_id AND h.event = '2 stored a step' AND h.at > to_timestamp(%s)
 WHERE o.job_id = %s GROUP BY 2
"""


def check(conn: psycopg.Connection[Any], asked: Mapping[str, float]) -> list[str]:
    """When all jobs have ended. ``asked``: of jobs that were to end, when that was committed, by the server's own clock."""
    return [
        f"job {job} has stored {steps} steps after it was asked to end ({status})"
        for job, moment in asked.items()
        for steps, status in conn.execute(_LATER, (moment, job)).fetchall()
        if steps > ALLOWED
    ]
