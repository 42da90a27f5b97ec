"""The history of the running jobs and of what they did, in the order in which it was committed: what the server itself decodes
from its log.

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

# PostgreSQL 15 takes a transaction with nothing but a message for empty: it would show the message and no COMMIT.
_READ = """
SELECT data FROM pg_logical_slot_get_changes(%s, NULL, NULL, 'include-timestamp', 'on', 'skip-empty-xacts', 'off')
 WHERE data ~ '^(COMMIT|message: transactional: 1 prefix: chaos|table (pgqueue\\.(running|checkpoint|outcome)|public\\.effect): )'
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


@dataclass(frozen=True)
class Step:
    """A checkpoint."""

    job: str
    seq: int
    name: str
    failed: bool


@dataclass
class Commit:
    """What one transaction did to the running jobs, what it stored of them, and what a test has noted in it."""

    at: datetime
    began: list[Start] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    outcomes: list[tuple[str, str]] = field(default_factory=list)  # job, status
    effects: list[tuple[str, int]] = field(default_factory=list)  # job, seq: rows of an application's own table `effect`
    note: str | None = None


class History:
    """From now on. ``read()`` gives what was committed since it was asked the last time."""

    def __init__(self, conn: psycopg.Connection[Any]) -> None:
        self._conn = conn
        self._slot = begin(conn)

    def note(self, text: str) -> None:
        """A note in the history, as a part of the transaction that is open."""
        self._conn.execute("SELECT pg_logical_emit_message(true, 'chaos', %s)", (text,))

    def read(self) -> list[Commit]:
        """The new commits that touched the running jobs or have a note."""
        commits = list(read(self._conn, self._slot))
        return [commit for commit in commits if commit.began or commit.ended or commit.note is not None]

    def close(self) -> None:
        end(self._conn, self._slot)


def impossible(conn: psycopg.Connection[Any]) -> str | None:
    """Why the log of this server cannot be read; None if it can."""
    if conn.execute("SHOW wal_level").fetchone() != ("logical",):
        return "wal_level is not logical"
    role = "SELECT rolreplication OR rolsuper FROM pg_roles WHERE rolname = current_user"
    return None if conn.execute(role).fetchone() == (True,) else "the role may not read the log (REPLICATION)"


def begin(conn: psycopg.Connection[Any], temporary: bool = False) -> str:
    """Keep the log of this database from now on: the name of the slot. ``temporary``: as long as this session lasts, which alone
    can read it."""
    slot = f"chaos_{uuid.uuid4().hex}"
    conn.execute("SELECT pg_create_logical_replication_slot(%s, 'test_decoding', %s)", (slot, temporary))
    return slot


def read(conn: psycopg.Connection[Any], slot: str) -> Iterable[Commit]:
    """All that was committed since the last time, also what is of no interest to the limits."""
    with conn.transaction():  # flushes the log: what is not on the disk is not decoded, and claims do not wait for it
        conn.execute("SET LOCAL synchronous_commit = on")
        conn.execute("SELECT pg_logical_emit_message(true, 'flush', '')")
    conn.execute("SET timezone = 'UTC'")
    return _commits([row[0] for row in conn.execute(_READ, (slot,)).fetchall()])


def end(conn: psycopg.Connection[Any], slot: str) -> None:
    """Without this the server keeps its log for ever (or until the database is dropped)."""
    conn.execute("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = %s", (slot,))


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
            _, table, event, rest = line.split(" ", 3)
            _change(commit, table, event, dict(_COLUMN.findall(rest)))


def _change(commit: Commit, table: str, event: str, columns: dict[str, str]) -> None:
    job = _text(columns.get("job_id", "null")) or ""
    if (table, event) == ("pgqueue.running:", "INSERT:"):
        commit.began.append(_start(columns))
    elif (table, event) == ("pgqueue.running:", "DELETE:"):
        commit.ended.append(job)
    elif (table, event) == ("pgqueue.checkpoint:", "INSERT:"):
        commit.steps.append(Step(job, int(columns["seq"]), _text(columns["name"]) or "", columns["error"] != "null"))
    elif (table, event) == ("pgqueue.outcome:", "INSERT:"):
        commit.outcomes.append((job, _text(columns["status"]) or ""))
    elif (table, event) == ("public.effect:", "INSERT:") and "seq" in columns:
        commit.effects.append((job, int(columns["seq"])))


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
