"""What runs of the suite leave on a server of somebody else: databases whose names say which run made them.

A run has a session with its name as long as it lives. Databases of a run without one are leftovers: the next run, the guardian of
a run that was killed, and ``pgqueue chaos clean`` drop them, and with them the replication slots in them.
"""

from __future__ import annotations

import secrets
import time
from typing import Any, NamedTuple

import psycopg
from psycopg import sql

PREFIX = "pgqueue_chaos_"
PATIENCE = 5.0  # seconds for the last sessions to be gone
_DEAD = f"""
SELECT datname FROM pg_database d
 WHERE datname ~ '^{PREFIX}[0-9a-f]{{8}}(_[0-9a-f]{{12}})?$'
   AND NOT EXISTS (SELECT 1 FROM pg_stat_activity a WHERE a.application_name = left(d.datname, {len(PREFIX) + 8}))
 ORDER BY 1
"""


class Cleaned(NamedTuple):
    """The databases that were dropped; and those that could not be, each with the reason."""

    dropped: list[str]
    kept: dict[str, str]


def new_name() -> str:
    """Of a run: of its session, its template, and the beginning of the names of its databases."""
    return PREFIX + secrets.token_hex(4)


def clean(dsn: str) -> Cleaned:
    """Drop what runs have left that are no more."""
    cleaned = Cleaned([], {})
    with psycopg.connect(dsn, autocommit=True, application_name="pgqueue_chaos clean") as conn:
        for (name,) in conn.execute(_DEAD).fetchall():
            if (reason := _drop(conn, name)) is None:
                cleaned.dropped.append(name)
            else:
                cleaned.kept[name] = reason
    return cleaned


def _drop(conn: psycopg.Connection[Any], name: str) -> str | None:
    """Why not, if not. Not by force: somebody who is connected may be a run whose own session was lost."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            conn.execute(sql.SQL("DROP DATABASE IF EXISTS {}").format(sql.Identifier(name)))
        except psycopg.errors.ObjectInUse as error:
            if time.monotonic() > until:
                return str(error).partition("\n")[0]
            time.sleep(0.1)
        except psycopg.errors.InsufficientPrivilege:
            return "another role made it: clean it as that role, or as a superuser"
        else:
            return None
