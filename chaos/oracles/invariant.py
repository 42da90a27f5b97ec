"""Every job is in exactly one place, in every snapshot.

Fails where a job is lost between two work lists, is in two of them, or where pgqueue itself has counted a row that cannot exist
(the sequence ``pgqueue.conflict``). Checked while things run: a duplicate can heal itself by the end.
"""

from __future__ import annotations

from typing import Any

import psycopg


def check(conn: psycopg.Connection[Any]) -> list[str]:
    """The jobs in no place or in several, now, and whether a conflict was ever counted."""
    wrong = [
        f"job {job} is in {places}" for job, places in conn.execute("SELECT job_id, places FROM pgqueue.violations").fetchall()
    ]
    if conn.execute("SELECT is_called FROM pgqueue.conflict").fetchone() != (False,):
        wrong.append("pgqueue.conflict was called: a claim or an outcome met a row that cannot exist")
    return wrong
