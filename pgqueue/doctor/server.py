"""Checks of the server: its settings, connections, clock, what stands before it, and who keeps vacuum from its work."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime

from pgqueue import database, protocol
from pgqueue.doctor import protocol as questions
from pgqueue.doctor.finding import Case, Finding, Severity, error, note, warning
from pgqueue.errors import Configuration
from pgqueue.supervisor.capacity import processors

SETTINGS = (
    "in_recovery", "default_transaction_read_only", "fsync", "full_page_writes", "synchronous_commit", "statement_timeout",
    "lock_timeout", "track_counts", "is_superuser_role", "sees_all_sessions",
)  # fmt: skip
CLOCKS_APART = 2.0  # seconds
OLD_SNAPSHOT, VERY_OLD_SNAPSHOT = 900.0, 3600.0  # seconds
SHORT_TIMEOUT = 60_000  # milliseconds: statements of a prune or a migration may take so long


def settings(case: Case) -> Iterator[Finding]:
    """Settings without which promises do not hold."""
    found = case.ask(questions.settings(SETTINGS))
    if found["in_recovery"] == "true":
        yield error("settings", "this server is a standby, and cannot be written to", "connect to the primary")
    if found["default_transaction_read_only"] == "on":
        yield error("settings", "transactions are read-only by default", "ALTER ROLE ... RESET default_transaction_read_only")
    for name in ("fsync", "full_page_writes"):
        if found[name] == "off":
            yield error("settings", f"{name} is off: a crash of the machine can destroy the database", f"set {name} = on")
    if found["synchronous_commit"] == "off":
        yield warning(
            "settings",
            "synchronous_commit is off: a committed enqueue can be lost by a crash of the server",
            "set synchronous_commit = on for the roles that enqueue: ALTER ROLE ... SET synchronous_commit = on",
        )
    for name in ("statement_timeout", "lock_timeout"):
        if 0 < int(found[name]) < SHORT_TIMEOUT:
            yield warning(
                "settings",
                f"{name} is {int(found[name]) / 1000:g} s: prunes and migrations may need longer",
                f"give the role of pgqueue its own: ALTER ROLE ... SET {name} = 0",
            )
    if found["track_counts"] == "off":
        yield error("autovacuum", "track_counts is off: autovacuum does nothing", "set track_counts = on")
    if found["is_superuser_role"] == "true":
        yield Finding(
            "rights",
            "note",
            "this role is a superuser, which workers need not be",
            "give them a role of their own: see docs/operations.md",
        )
    if found["sees_all_sessions"] == "false":
        yield note(
            "rights",
            "this role cannot see what other roles' sessions do: who holds up vacuum is only partly known",
            "GRANT pg_read_all_stats to the role that runs pgqueue doctor",
        )


def connections(case: Case) -> Iterator[Finding]:
    """Are there enough for one more pgqueue work with these settings?"""
    workers, threads = case.setting("workers") or processors(), case.setting("threads")
    needed = workers * (1 + threads) + 2
    for scope, used, possible in case.ask(questions.connections()):
        if possible is None or used + needed <= possible:
            continue
        limit = {"server": "max_connections", "database": "the CONNECTION LIMIT of this database"}.get(scope)
        yield warning(
            "connections",
            f"{used} of {possible} connections of this {scope} are in use, and one more pgqueue work would need {needed}"
            f" ({workers} workers, {threads} threads each, 2 for the housekeeper)",
            f"raise {limit or 'the CONNECTION LIMIT of this role'}, run fewer workers or threads, or see who has the others",
        )
    roles = {role for role, process, _ in case.ask(questions.sessions()) if process in ("worker", "housekeeper")}
    if len(roles) > 1:
        yield warning(
            "connections",
            f"workers log in as different roles ({', '.join(sorted(roles))})",
            "use one role for all of them: the sessions of a dead worker can be ended by the same role only",
        )


def pooler(case: Case) -> Iterator[Finding]:
    """A pooler shows itself by another process id than the one that the server says; one that shares sessions, by giving the same
    session to two of its clients."""
    try:
        database.parsed(case.setting("listen_dsn") or "")
    except Configuration as wrong:
        yield error(
            "pooler", f"{case.settings['listen_dsn'].source}: {wrong}", "mend or remove it: no pgqueue work starts with it"
        )
    pid = case.ask(protocol.backend_pid())
    if pid == case.conn.info.backend_pid:
        return
    with database.connect(case.dsn, "pgqueue:doctor") as other:
        shared = database.run(other, protocol.backend_pid()) == pid
    if shared and not case.setting("listen_dsn"):
        yield warning(
            "pooler",
            "there is a pooler that shares sessions between clients (transaction mode)",
            "workers poll, because they cannot listen there; PGQUEUE_LISTEN_DSN may name the server itself",
        )
    else:
        yield note(
            "pooler",
            "there is a pooler that "
            + ("shares sessions; the housekeeper listens elsewhere" if shared else "gives each client a session of its own"),
            "it does no harm; its limits of connections come before those of the server",
        )


def clocks(case: Case) -> Iterator[Finding]:
    """Nothing is decided by the clock of a host, but logs are read by it."""
    before = time.time()
    there = case.ask(questions.now())
    after = time.time()
    apart = max(
        (there - datetime.fromtimestamp(after, UTC)).total_seconds(),
        (datetime.fromtimestamp(before, UTC) - there).total_seconds(),
    )
    if apart > CLOCKS_APART:
        yield warning(
            "clocks",
            f"the clocks of this host and of the database are {apart:.1f} s apart",
            "run a time service on both: jobs are not affected, but times of logs and of the database do not fit",
        )


def horizon(case: Case) -> Iterator[Finding]:
    """Dead rows that somebody might still look at cannot be removed, and every claim has to step over them."""
    for kind, who, pid, xids, seconds in case.ask(questions.xmin_holders()):
        if kind == "replication slot that nobody reads":
            yield warning(
                "horizon",
                f"the replication slot {who} is not in use; it keeps what {xids} transactions have left, and WAL",
                f"start its reader, or: SELECT pg_drop_replication_slot('{who}')",
            )
        elif seconds is not None and seconds > OLD_SNAPSHOT:
            severity: Severity = "error" if seconds > VERY_OLD_SNAPSHOT else "warning"
            what = f"a {kind} ({who}) is open for {seconds / 60:.0f} minutes: until it ends, no row that died since is removed"
            end = f"ROLLBACK PREPARED '{who}'" if kind == "prepared transaction" else f"pg_terminate_backend({pid})"
            yield Finding("horizon", severity, what, f"end it ({end}), and find out why it was left open")
