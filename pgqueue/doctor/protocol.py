"""What the doctor asks the database, besides what others ask too: looks at views, as calls that are not yet made."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from pgqueue.protocol import Call, Rows


def _rows(rows: Rows) -> Rows:
    return rows


def settings(names: Sequence[str]) -> Call[dict[str, str]]:
    """The server's settings of these names, as this role has them here. Numbers are in the unit that pg_settings has."""
    return Call("SELECT name, setting FROM pgqueue.server_settings WHERE name = ANY (%s)", (list(names),), dict)


def connections() -> Call[Rows]:
    """Rows of (server, database or role; connections in use; how many are possible, or null)."""
    return Call("SELECT scope, used, possible FROM pgqueue.connections", (), _rows)


def sessions() -> Call[Rows]:
    """Rows of (role, kind of process, amount)."""
    return Call("SELECT role, process, amount FROM pgqueue.sessions ORDER BY role, process", (), _rows)


def xmin_holders() -> Call[Rows]:
    """Rows of (kind, who, pid, transactions, seconds)."""
    return Call("SELECT kind, who, pid, xids, seconds FROM pgqueue.xmin_holders", (), _rows)


def table_stats() -> Call[Rows]:
    """Rows of (table, bytes of its rows, live rows, dead rows, its own settings)."""
    return Call("SELECT name, heap_bytes, live_rows, dead_rows, own_settings FROM pgqueue.table_stats", (), _rows)


def public_rights() -> Call[Rows]:
    """Rows of (privilege, object)."""
    return Call("SELECT privilege, object FROM pgqueue.public_rights ORDER BY object", (), _rows)


def unclaimable() -> Call[Rows]:
    """Rows of (name, how many jobs)."""
    return Call("SELECT name, jobs FROM pgqueue.unclaimable", (), _rows)


def running_for(seconds: float) -> Call[Rows]:
    """Rows of (id, name, queue, host, pid, seconds, whether it has a time limit): jobs that run for longer."""
    return Call(
        "SELECT id::text, name, queue, host, pid, seconds, deadline IS NOT NULL FROM pgqueue.running_jobs WHERE seconds > %s",
        (seconds,),
        _rows,
    )


def violations(most: int) -> Call[Rows]:
    """Rows of (job id, places): so many of the jobs that are not in exactly one place. Reads everything."""
    return Call("SELECT job_id::text, places FROM pgqueue.violations LIMIT %s", (most,), _rows)


def conflicts() -> Call[int]:
    """How often a row was met that cannot exist."""
    return Call("SELECT amount FROM pgqueue.conflicts", (), lambda rows: int(rows[0][0]))


def fenced_for(seconds: float) -> Call[Rows]:
    """Rows of (worker, host, jobs): workers that lost their lease so long ago, and whose jobs nobody has given back."""
    return Call(
        "SELECT id::text, host, jobs FROM pgqueue.workers WHERE fenced_at < pgqueue.clock() - make_interval(secs => %s)",
        (seconds,),
        _rows,
    )


def beats() -> Call[dict[str, int]]:
    """The beats of the workers that have a lease."""
    return Call("SELECT id::text, beat FROM pgqueue.beats", (), dict)


def now() -> Call[datetime]:
    return Call("SELECT pgqueue.clock()", (), _moment)


def schedules() -> Call[Rows]:
    """Rows of (name, why its ticks cannot be enqueued, for how many seconds its next tick is due): the ones with a problem."""
    return Call(
        "SELECT name, problem, extract(epoch FROM pgqueue.clock() - next_at)::float8 FROM pgqueue.schedules"
        " WHERE declared AND NOT paused AND (problem IS NOT NULL OR next_at < pgqueue.clock()) ORDER BY name",
        (),
        _rows,
    )


def _moment(rows: Rows) -> Any:
    return rows[0][0]
