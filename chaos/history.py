"""The history of the running jobs, in the order in which it was committed: what the server itself decodes from its log.

Neither pgqueue's word nor a sample: between two commits nothing changes, so what holds behind each of them holds in every
snapshot. Needs ``wal_level = logical`` and the right to use a replication slot.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import psycopg

_READ = """
SELECT data FROM pg_logical_slot_get_changes(%s, NULL, NULL, 'include-timestamp', 'on', 'skip-empty-xacts', 'on')
 WHERE data ~ '^(COMMIT|message: transactional: 1 prefix: chaos,|table pgqueue\\.running: )'
"""
NEVER = datetime.min.replace(tzinfo=UTC)
_COLUMN = re.compile(r"(\w+)\[[^\]]+\]:('(?:[^']|'')*'|\S+)")


@dataclass(frozen=True)
class Start:
    """A claim of a job. ``stamp`` is when it may begin, by the clock of the database."""

    job: str
    worker: str
    queue: str
    lane: int
    pos: int
    stamp: datetime
    key: str | None
    cost: int


@dataclass
class Commit:
    """What one transaction did to the running jobs, and what a test has noted in it."""

    at: datetime
    began: list[Start] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    note: str | None = None


class History:
    """From now on. ``read()`` gives what was committed since it was asked the last time."""

    def __init__(self, conn: psycopg.Connection[Any]) -> None:
        self._conn = conn
        self._slot = f"chaos_{uuid.uuid4().hex}"
        conn.execute("SELECT pg_create_logical_replication_slot(%s, 'test_decoding')", (self._slot,))

    def note(self, text: str) -> None:
        """A note in the history, as a part of the transaction that is open."""
        self._conn.execute("SELECT pg_logical_emit_message(true, 'chaos', %s)", (text,))

    def read(self) -> list[Commit]:
        self._conn.execute("SET timezone = 'UTC'")
        lines = [row[0] for row in self._conn.execute(_READ, (self._slot,)).fetchall()]
        return [commit for commit in _commits(lines) if commit.began or commit.ended or commit.note is not None]

    def close(self) -> None:
        """Without this the server keeps its log for ever (or until the database is dropped)."""
        self._conn.execute("SELECT pg_drop_replication_slot(%s)", (self._slot,))


def starts(history: Iterable[Commit], queue: str) -> list[Start]:
    """The claims of a queue, in their order."""
    return [start for commit in history for start in commit.began if start.queue == queue]


def _commits(lines: Iterable[str]) -> Iterable[Commit]:
    commit = Commit(NEVER)
    for line in lines:
        if line.startswith("COMMIT"):
            commit.at = datetime.fromisoformat(line.partition("(at ")[2].rstrip(")"))
            yield commit
            commit = Commit(NEVER)
        elif line.startswith("message: "):
            commit.note = line.partition("content:")[2]
        else:
            columns = dict(_COLUMN.findall(line))
            if ": INSERT: " in line:
                commit.began.append(_start(columns))
            elif ": DELETE: " in line:
                commit.ended.append(_text(columns["job_id"]) or "")


def _start(columns: dict[str, str]) -> Start:
    return Start(
        job=_text(columns["job_id"]) or "",
        worker=_text(columns["worker"]) or "",
        queue=_text(columns["queue"]) or "",
        lane=int(columns["lane"]),
        pos=int(columns["pos"]),
        stamp=datetime.fromisoformat(_text(columns["started_at"]) or ""),
        key=_text(columns["key"]),
        cost=int(columns["cost"]) if columns["cost"] != "null" else 1,
    )


def _text(value: str) -> str | None:
    return None if value == "null" else value.strip("'").replace("''", "'")
