"""All checks, one after the other. The command line calls it."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg

from pgqueue import database, migrate, protocol
from pgqueue.doctor import server, tables, work
from pgqueue.doctor.finding import SEVERITIES, Case, Check, Finding, error, note, warning
from pgqueue.errors import SchemaMissing

CHECKS: dict[str, Check] = {
    "settings": server.settings,
    "connections": server.connections,
    "pooler": server.pooler,
    "clocks": server.clocks,
    "horizon": server.horizon,
    "rights": tables.rights,
    "autovacuum": tables.vacuum,
    "invariant": tables.invariant,
    "workers": work.workers,
    "unclaimable": work.unclaimable,
    "hanging": work.hanging,
    "schedules": work.schedules,
    "limits": work.limits,
}


def examine(case: Case) -> tuple[list[Finding], int]:
    """What was found, the worst first; and how many checks were made, that of the schema and all others."""
    found = list(_schema(case))
    made = 1
    if not any(finding.severity == "error" for finding in found):
        for name, check in CHECKS.items():
            try:
                found += check(case)
                made += 1
            except psycopg.errors.InsufficientPrivilege as refusal:
                what = f"the check of {name} could not be made: {refusal.diag.message_primary}"
                found.append(warning("rights", what, "run the doctor as the role of the workers, or as the owner of the schema"))
    return sorted(found, key=lambda finding: SEVERITIES.index(finding.severity)), made


def _schema(case: Case) -> Iterator[Finding]:
    """Without the schema nothing else can be asked."""
    try:
        database.check_schema(case.conn)
        pending = migrate.pending(case.conn)
        newest = case.ask(protocol.schema_version())
    except SchemaMissing as missing:
        yield error("schema", str(missing).partition(":")[0], "run pgqueue migrate [MODULE:APP]")
        return
    except psycopg.errors.InsufficientPrivilege:
        yield error("rights", "this role may not look at the schema pgqueue", "run the doctor as the role of the workers")
        return
    if pending:
        yield error("schema", f"migrations are missing: {', '.join(map(str, pending))}", "run pgqueue migrate [MODULE:APP]")
    if newest > database.SCHEMA_VERSION:
        yield note(
            "schema",
            f"the schema has version {newest}, and this pgqueue was made for {database.SCHEMA_VERSION}",
            "that works; upgrade this host when the others have been",
        )
