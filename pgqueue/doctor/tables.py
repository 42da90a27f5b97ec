"""Checks of the schema: its version, rights, vacuum, size, and the invariant."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import psycopg

from pgqueue import protocol
from pgqueue.doctor import protocol as questions
from pgqueue.doctor.finding import Case, Finding, error, note, warning
from pgqueue.ids import Process, new_token

WORK_LISTS = ("ready", "running", "scheduled", "waiting", "wakeup")
OWN_SETTINGS = "autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, vacuum_truncate = off"
MANY_DEAD = 100_000  # rows; the work lists are vacuumed at 5,000
WIDE = 100 * 2**20  # bytes of a work list
PER_ROW = 1000  # bytes; rows of work lists have about a hundred


def rights(case: Case) -> Iterator[Finding]:
    """Do what a worker does, and take it back; and may everybody do something?"""
    worker, nowhere = str(uuid.uuid4()), ["pgqueue.no_queue_has_this_name"]
    try:
        with case.conn.transaction(force_rollback=True):
            case.ask(protocol.register_worker(worker, Process("doctor", "", "", 0, 0)))
            case.ask(protocol.heartbeat([worker]))
            case.ask(protocol.claim(worker, new_token(), nowhere, nowhere, 1, [0] * 20))
    except psycopg.errors.InsufficientPrivilege as refusal:
        is_reader = case.ask(questions.settings(["is_reader_role"])).get("is_reader_role") == "true"
        yield (note if is_reader else error)(
            "rights",
            f"this role cannot do what workers do: {refusal.diag.message_primary}",
            "that is as it should be for a role that is to look (pgqueue_reader)"
            if is_reader
            else "run workers as the owner of the schema, or as a role that was given the rights of a worker",
        )
    except psycopg.errors.ReadOnlySqlTransaction:
        pass  # said by the check of the settings
    public = case.ask(questions.public_rights())
    if public:
        shown = ", ".join(f"{privilege} on {thing}" for privilege, thing in public[:3])
        yield error(
            "rights",
            f"everybody has rights in the schema: {shown}" + (", ..." if len(public) > 3 else ""),
            "pgqueue migrate takes them back; GRANT to roles, never to PUBLIC",
        )


def vacuum(case: Case) -> Iterator[Finding]:
    """The work lists live by being emptied."""
    found = case.ask(questions.settings(["autovacuum", "autovacuum_naptime"]))
    if found["autovacuum"] == "off":
        yield Finding(
            "autovacuum",
            "error",
            "autovacuum is off: the work lists grow, and each claim reads all dead rows",
            "set autovacuum = on",
        )
    if int(found["autovacuum_naptime"]) > 300:
        yield Finding(
            "autovacuum",
            "warning",
            f"autovacuum looks only every {found['autovacuum_naptime']} s",
            "set autovacuum_naptime = 1min, or less",
        )
    for table, heap, live, dead, own in case.ask(questions.table_stats()):
        name = f"pgqueue.{table}"
        if any(setting in ("autovacuum_enabled=false", "autovacuum_enabled=off") for setting in own):
            yield error("autovacuum", f"autovacuum is off for {name}", f"ALTER TABLE {name} RESET (autovacuum_enabled)")
        if table not in WORK_LISTS:
            continue
        if "autovacuum_vacuum_scale_factor=0" not in own:
            yield warning(
                "autovacuum",
                f"{name} has lost its own settings of autovacuum",
                f"ALTER TABLE {name} SET ({OWN_SETTINGS})",
            )
        if dead > MANY_DEAD and dead > live:
            yield warning(
                "bloat",
                f"{name} has {dead:,} dead rows, and {live:,} live ones",
                f"see what keeps autovacuum from it (the check of the horizon says who), then VACUUM {name}",
            )
        elif heap > WIDE and heap > PER_ROW * live:
            yield note(
                "bloat",
                f"{name} takes {heap / 2**20:,.0f} MB for {live:,} rows",
                f"it is used again when jobs come; to have it back, in a quiet hour: VACUUM FULL {name} (it locks the table)",
            )


def invariant(case: Case) -> Iterator[Finding]:
    """Every job is in exactly one place. Reads everything, so it has a time limit."""
    conflicts = case.ask(questions.conflicts())
    if conflicts:
        yield error(
            "invariant",
            f"{conflicts} rows were met that cannot exist: they did no harm, and should not be there",
            "please report it, with the log of the workers",
        )
    try:
        with case.conn.transaction():
            case.ask(protocol.limit_time(case.patience))
            broken = case.ask(questions.violations(10))
    except psycopg.errors.QueryCanceled:
        yield note(
            "invariant",
            f"whether each job is in exactly one place could not be looked at within {case.patience:g} s",
            "give it more time with --patience, or prune old jobs",
        )
        return
    for job, places in broken:
        where = " and ".join(places) or "nowhere"
        yield Finding(
            "invariant",
            "error",
            f"job {job} is not in exactly one place: {where}",
            "please report it, with the log of the workers",
        )
