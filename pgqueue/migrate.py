"""Install and upgrade the schema: numbered table files once, functions and views every time, all in one transaction.

One transaction under an advisory lock: two migrators at once take turns, and one that is killed half way leaves nothing. What is
made belongs to the owner of the schema, whoever migrates. A database has the roles where they may use the schema.
"""

from __future__ import annotations

import logging
import random
import time
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any

import psycopg

from pgqueue.database import check_schema
from pgqueue.errors import NotPermitted, PgQueueError

log = logging.getLogger(__name__)
LOCK = 0x7067_7175_6575_65  # "pgqueue"
LOCK_TIMEOUT = "2s"


def _files(folder: str) -> list[Traversable]:
    root = resources.files("pgqueue") / "sql" / folder
    return sorted((f for f in root.iterdir() if f.name.endswith(".sql")), key=lambda f: f.name)


def script(applied: frozenset[int] = frozenset(), roles: bool = False) -> list[tuple[str, str]]:
    """(name, SQL) of what to run, in order, where the numbered files in ``applied`` are there already."""
    parts = [(name, _text(name)) for name in (("roles.sql", "schema.sql") if roles else ("schema.sql",))]
    parts += [("functions/" + f.name, f.read_text()) for f in _files("functions") if f.name in _FIRST]
    for file in _files("tables"):
        number, name = int(file.name[:4]), file.name[5:-4]
        if number not in applied:
            parts.append((f"tables/{file.name}", file.read_text()))
            parts.append(("(record)", _RECORD.format(number=number, name=name)))
    parts += [("views/" + f.name, f.read_text()) for f in _files("views")]
    parts += [("functions/" + f.name, f.read_text()) for f in _files("functions")]
    parts += [(name, _text(name)) for name in (("private.sql", "grants.sql") if roles else ("private.sql",))]
    return parts


def _text(name: str) -> str:
    return (resources.files("pgqueue") / "sql" / name).read_text()


_RECORD = "INSERT INTO pgqueue.migration (number, name) VALUES ({number}, '{name}');"
_FIRST = ("clock.sql", "clock_bound.sql")  # table files and views may use these


def migrate(conn: psycopg.Connection[Any], roles: bool = False, patience: float = 300.0) -> list[int]:
    """Bring the schema up to date. Returns the numbers of the table files that were applied now.

    ``roles``: make the four roles too. Once made, they get their grants with every migration. NotPermitted says what is missing.

    A change of a table waits for the transactions that use it, and whoever comes later waits behind it. So each try gives up
    soon, and lets the others go on before the next; for so many seconds (``patience``), then that is an error.
    """
    deadline = time.monotonic() + patience
    while True:
        try:
            return _try(conn, roles)
        except (psycopg.errors.LockNotAvailable, psycopg.errors.QueryCanceled, psycopg.errors.DeadlockDetected) as error:
            if time.monotonic() > deadline:
                raise PgQueueError(
                    f"the schema could not be migrated in {patience:g} s: others hold locks ({error.diag.message_primary}), and "
                    "nothing was changed. Look for long transactions in pg_stat_activity, and try again"
                ) from None
            log.warning("others hold locks (%s): trying again", error.diag.message_primary)
            time.sleep(random.uniform(1, 2))  # noqa: S311 -- no secret


def _try(conn: psycopg.Connection[Any], roles: bool) -> list[int]:
    with conn.transaction():
        conn.execute("SET LOCAL check_function_bodies = off")  # functions call each other, in the order of their names
        conn.execute("SELECT pg_advisory_xact_lock(%s)", (LOCK,))
        conn.execute(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'")
        conn.execute("SET LOCAL client_connection_check_interval = '1s'")  # if we are killed, our locks go at once
        if roles:
            _lock(conn)
            _execute(conn, "roles.sql", _text("roles.sql"))
        _execute(conn, "owner", _AS_OWNER)
        applied = frozenset(_applied(conn))
        if applied and pending(conn):
            _lock(conn)
        for name, sql in script(applied):
            _execute(conn, name, sql)
        if roles or conn.execute(_HAS_ROLES).fetchone() == (True,):
            conn.execute(_text("grants.sql"))
        return sorted(set(_applied(conn)) - applied)


def _lock(conn: psycopg.Connection[Any]) -> None:
    """Take every table, and the views of them, for ourselves before any of them is changed, or give up before the server looks
    for a deadlock: it would let a producer or a worker fail, as likely as this one."""
    names = [row[0] for row in conn.execute(_RELATIONS)]
    if names:
        conn.execute(_HURRY)
        conn.execute("LOCK TABLE " + ", ".join(names) + " IN ACCESS EXCLUSIVE MODE")
        conn.execute("SET LOCAL statement_timeout = 0")


def _execute(conn: psycopg.Connection[Any], name: str, sql: str) -> None:
    try:
        conn.execute(sql)
    except psycopg.errors.InsufficientPrivilege as error:
        raise NotPermitted(f"{error.diag.message_primary}: {_ADVICE.get(name, 'the schema belongs to another role')}") from None


# Not views that look at the server's own tables, not even through another view: who locks a view locks all that it looks at.
_RELATIONS = r"""
WITH RECURSIVE looks AS (
    SELECT w.ev_class AS at, d.refobjid AS what FROM pg_rewrite w
      JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = w.oid AND d.refclassid = 'pg_class'::regclass
     WHERE d.refobjid <> w.ev_class
), outside AS (
    SELECT c.oid AS at FROM pg_class c WHERE c.relkind = 'v' AND pg_get_viewdef(c.oid) ~ '\mpg_'
     UNION
    SELECT l.at FROM outside o JOIN looks l ON l.what = o.at
)
SELECT c.oid::regclass::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE n.nspname = 'pgqueue' AND c.relkind IN ('r', 'v') AND c.oid NOT IN (SELECT o.at FROM outside o)
 ORDER BY c.relkind DESC, c.relname
"""
_HURRY = (
    "SELECT set_config('statement_timeout', least(2000, ceil(800 * seconds))::text, true)"
    " FROM extract(epoch FROM current_setting('deadlock_timeout')::interval) AS seconds"
)
_HAS_ROLES = (
    "SELECT coalesce(bool_or(has_schema_privilege(to_regrole('pgqueue_worker'), n.oid, 'USAGE')), false)"
    " FROM pg_namespace n WHERE n.nspname = 'pgqueue'"
)
_AS_OWNER = (
    "SELECT set_config('role', pg_get_userbyid(n.nspowner), true) FROM pg_namespace n"
    " WHERE n.nspname = 'pgqueue' AND pg_get_userbyid(n.nspowner) <> current_user"
)
_ADVICE = {
    "roles.sql": "roles are made by who has CREATEROLE, and the schema is handed over by its owner. Let an administrator run: "
    "CREATE ROLE pgqueue_owner NOLOGIN; CREATE ROLE pgqueue_producer NOLOGIN; CREATE ROLE pgqueue_worker NOLOGIN; "
    "CREATE ROLE pgqueue_reader NOLOGIN; GRANT pgqueue_owner, pgqueue_producer, pgqueue_worker, pgqueue_reader TO (this role) "
    "WITH ADMIN OPTION; or everything: pgqueue migrate --roles --sql | psql",
    "owner": "migrate as the owner of the schema pgqueue, or as a member of that role",
    "schema.sql": "let an administrator run GRANT CREATE ON DATABASE ... TO (this role), or migrate as another",
}


def pending(conn: psycopg.Connection[Any]) -> list[int]:
    """The numbers of the table files that are still to be applied."""
    applied = set(_applied(conn))
    return [n for n in (int(f.name[:4]) for f in _files("tables")) if n not in applied]


def check(conn: psycopg.Connection[Any]) -> None:
    """SchemaMissing unless everything is up to date."""
    check_schema(conn)


def _applied(conn: psycopg.Connection[Any]) -> list[int]:
    if conn.execute("SELECT to_regclass('pgqueue.migration') IS NULL").fetchone() == (True,):
        return []
    return [row[0] for row in conn.execute("SELECT number FROM pgqueue.migration")]
