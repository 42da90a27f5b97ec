"""What PostgreSQL itself counts: statements, commits, and bytes of the log.

Commits and WAL are always counted. Statements are where the server preloads ``pg_stat_statements`` (an embedded one does, if its
binaries have it). Elsewhere nobody counts them, and no guess is made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psycopg

from pgqueue.embedded.binaries import find_binaries

EXTENSION = "pg_stat_statements"
COMMITS_AND_WAL = """
SELECT (SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()),
       (pg_current_wal_insert_lsn() - '0/0')::bigint
"""
# Without BEGIN, COMMIT and the like: once a driver has prepared them, PostgreSQL counts them no longer.
STATEMENTS = """
SELECT coalesce(sum(calls), 0)::bigint FROM public.pg_stat_statements
 WHERE toplevel AND dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
   AND query ~* '^\\s*(select|insert|update|delete|merge|with)\\M'
"""


@dataclass(frozen=True)
class Counts:
    """So many up to a moment, or between two. ``statements`` is None where nobody counts them."""

    commits: int
    wal_bytes: int
    statements: int | None

    def since(self, before: Counts) -> Counts:
        """What came after."""
        statements = None if self.statements is None or before.statements is None else self.statements - before.statements
        return Counts(self.commits - before.commits, self.wal_bytes - before.wal_bytes, statements)

    def per_job(self, jobs: int) -> dict[str, float | None]:
        """As figures of a benchmark."""
        return {
            "statements_per_job": None if self.statements is None else round(self.statements / jobs, 3),
            "commits_per_job": round(self.commits / jobs, 3),
            "wal_bytes_per_job": round(self.wal_bytes / jobs),
        }


def counts_statements(conn: psycopg.Connection[Any]) -> bool:
    """Does this server count the statements of this database? It does if it has counted ours."""
    try:
        conn.execute(f"CREATE EXTENSION IF NOT EXISTS {EXTENSION} SCHEMA public")
        row = conn.execute(STATEMENTS).fetchone()
    except psycopg.Error:  # there is no such extension, we may not create it, or it is not preloaded
        return False
    return row is not None and row[0] > 0


def preload() -> dict[str, str]:
    """The setting that makes an embedded server count statements, if its binaries can."""
    there = any((find_binaries() / "lib").rglob(f"{EXTENSION}.*"))
    return {"shared_preload_libraries": EXTENSION} if there else {}
