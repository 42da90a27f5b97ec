"""Install and upgrade the schema: numbered table files once, functions and views every time, all in one transaction.

One transaction under an advisory lock: two migrators at once take turns, and one that is killed half way leaves nothing.
"""

from __future__ import annotations

from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any

import psycopg

from pgqueue.database import check_schema

LOCK = 0x7067_7175_6575_65  # "pgqueue"


def _files(folder: str) -> list[Traversable]:
    root = resources.files("pgqueue") / "sql" / folder
    return sorted((f for f in root.iterdir() if f.name.endswith(".sql")), key=lambda f: f.name)


def script(applied: frozenset[int] = frozenset()) -> list[tuple[str, str]]:
    """(name, SQL) of what to run, in order, where the numbered files in ``applied`` are there already."""
    parts = [("schema.sql", (resources.files("pgqueue") / "sql" / "schema.sql").read_text())]
    parts += [("functions/" + f.name, f.read_text()) for f in _files("functions") if f.name in _FIRST]
    for file in _files("tables"):
        number, name = int(file.name[:4]), file.name[5:-4]
        if number not in applied:
            parts.append((f"tables/{file.name}", file.read_text()))
            parts.append(("(record)", _RECORD.format(number=number, name=name)))
    parts += [("views/" + f.name, f.read_text()) for f in _files("views")]
    parts += [("functions/" + f.name, f.read_text()) for f in _files("functions")]
    parts.append(("private.sql", (resources.files("pgqueue") / "sql" / "private.sql").read_text()))
    return parts


_RECORD = "INSERT INTO pgqueue.migration (number, name) VALUES ({number}, '{name}');"
_FIRST = ("clock.sql", "clock_bound.sql")  # table files and views may use these


def migrate(conn: psycopg.Connection[Any]) -> list[int]:
    """Bring the schema up to date. Returns the numbers of the table files that were applied now."""
    with conn.transaction():
        conn.execute("SET LOCAL check_function_bodies = off")  # functions call each other, in the order of their names
        conn.execute("SELECT pg_advisory_xact_lock(%s)", (LOCK,))
        applied = frozenset(_applied(conn))
        for _, sql in script(applied):
            conn.execute(sql)
        return sorted(set(_applied(conn)) - applied)


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
