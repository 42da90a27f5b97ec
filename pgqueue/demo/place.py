"""Where the demo plays: a PostgreSQL of its own in a temporary directory, or a database of its own on a server that is named.

Whatever happens, both are gone afterwards, unless they are to be kept.
"""

from __future__ import annotations

import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from pgqueue import database, migrate
from pgqueue.demo.orders import STOCK, Order
from pgqueue.embedded import Embedded
from pgqueue.errors import Configuration


@dataclass(frozen=True)
class Place:
    """A database and a directory that belong to this demo alone."""

    dsn: str
    directory: Path
    description: str
    kept: tuple[str, ...]  # how to look at what is kept


@contextmanager
def place(dsn: str | None, keep: bool) -> Iterator[Place]:
    """Make it, and remove it."""
    directory = Path(tempfile.mkdtemp(prefix="pgqueue-demo-"))
    try:
        with _named(dsn, directory, keep) if dsn else _embedded(directory, keep) as found:
            yield found
    finally:
        if not keep:
            shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def _embedded(directory: Path, keep: bool) -> Iterator[Place]:
    server = Embedded(directory / "postgres")
    try:
        dsn = server.start()
        kept = (f"pgqueue dev --data {directory / 'postgres'}", f"logs are in {directory}")
        yield Place(dsn, directory, "embedded, in a temporary directory", kept if keep else ())
    finally:
        server.stop() if keep else server.remove()


@contextmanager
def _named(dsn: str, directory: Path, keep: bool) -> Iterator[Place]:
    """A database of its own: pgqueue's schema has a fixed name, and there may be one already, with work in it."""
    name = f"pgqueue_demo_{secrets.token_hex(4)}"
    with database.connect(dsn, "pgqueue:demo") as conn:
        try:
            conn.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0 ENCODING 'UTF8' LOCALE 'C'").format(sql.Identifier(name)))
        except psycopg.Error as error:
            raise Configuration(
                f"cannot create a database for the demo ({error.diag.message_primary or error}): name a user that may, or leave "
                "--dsn and PGQUEUE_DSN away"
            ) from None
    try:
        kept = (f"the database {name}, on the server that you named", f"logs are in {directory}")
        described = f"your server, in a database of its own, {name}"
        yield Place(make_conninfo(dsn, dbname=name), directory, described, kept if keep else ())
    finally:
        if not keep:
            with database.connect(dsn, "pgqueue:demo") as conn:
                conn.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


def furnish(conn: psycopg.Connection[Any], orders: list[Order]) -> str:
    """pgqueue's schema and the shop's tables. The version of the server."""
    migrate.migrate(conn)
    with conn.transaction():
        conn.execute((resources.files("pgqueue.demo") / "shop.sql").read_bytes())
        conn.cursor().executemany("INSERT INTO account (customer) VALUES (%s)", [(c,) for c in {o.customer for o in orders}])
        conn.cursor().executemany("INSERT INTO stock VALUES (%s, %s)", [(i, STOCK) for i in {o.item for o in orders}])
    return str(conn.info.parameter_status("server_version")).split()[0]
