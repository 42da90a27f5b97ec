"""One PostgreSQL for all tests, and a fresh database for each."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from chaos.databases import COPY, memory
from chaos.pooler import Pooler, program
from pgqueue import App, migrate
from pgqueue.database import connect, run
from pgqueue.embedded import Embedded
from tests.apps import bank
from tests.shop import Shop
from tests.support import Hand, Server, Way, Workers, as_roles, database_of

# What the tests start gets signals as from a terminal, also where they run in the background (nohup, &): there they are ignored.
for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

#: The server that the tests crash and restart, and what makes that quick without making it untrue.
SETTINGS = {
    "max_connections": "200",
    "wal_level": "logical",
    "max_wal_size": "1GB",
    "checkpoint_timeout": "1h",
    "autovacuum_naptime": "10s",
}


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """PGQUEUE_TEST_DSN, or a server of our own (which the test may then also stop and start)."""
    given = os.environ.get("PGQUEUE_TEST_DSN")
    if given:
        yield Server(given, None)
        return
    with tempfile.TemporaryDirectory(prefix="pgqueue-tests-", ignore_cleanup_errors=True, dir=memory()) as home:
        Path(home).chmod(0o711)  # root's server runs as another account, and would live elsewhere: on a disk
        embedded = Embedded(Path(home) / "data", settings=SETTINGS)
        dsn = embedded.start()
        try:
            yield Server(dsn, embedded)
        finally:
            embedded.remove()


@pytest.fixture(scope="session")
def template(server: Server) -> str:
    """The name of a migrated database to copy."""
    name = "pgqueue_template"
    with psycopg.connect(server.dsn, autocommit=True) as conn:
        conn.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        conn.execute(f"CREATE DATABASE {name}")
    with connect(database_of(server.dsn, name), "tests") as conn:
        migrate.migrate(conn)
    return name


_count = 0


@pytest.fixture(scope="session")
def pgbouncer() -> None:
    """Where there is none to be had the test is skipped, and says so. Not in CI."""
    if program() is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("NOT TESTED behind a connection pooler: apt install pgbouncer")


@pytest.fixture(scope="session")
def pooler(server: Server, pgbouncer: None) -> Iterator[Pooler]:
    """A PgBouncer in front of the server."""
    with Pooler(server.dsn) as pooler:
        yield pooler


@pytest.fixture(scope="session")
def way(server: Server, template: str, request: pytest.FixtureRequest) -> Way:
    """How the programs under test reach their database. PGQUEUE_TEST_WAY says otherwise than as it is."""
    how = os.environ.get("PGQUEUE_TEST_WAY", "direct")
    if how == "pgbouncer":
        pooler: Pooler = request.getfixturevalue("pooler")
        return Way(pooler.dsn, pooler.dsn)
    if how == "roles":
        return as_roles(database_of(server.dsn, template))
    assert how == "direct", f"PGQUEUE_TEST_WAY={how!r} is neither direct, pgbouncer nor roles"
    return Way()


@pytest.fixture
def direct_dsn(server: Server, template: str, way: Way) -> Iterator[str]:
    """A fresh database with the schema installed, as its owner and without anything in between."""
    with fresh_database(server, f"TEMPLATE {template} {COPY}") as dsn:
        yield dsn


@pytest.fixture
def dsn(direct_dsn: str, way: Way) -> str:
    """The same, as workers reach it."""
    return way.worker(direct_dsn)


@pytest.fixture
def empty_dsn(server: Server) -> Iterator[str]:
    """A fresh database without the schema."""
    with fresh_database(server) as dsn:
        yield dsn


@contextmanager
def fresh_database(server: Server, how: str = "") -> Iterator[str]:
    """Made, and dropped afterwards."""
    global _count
    _count += 1
    name = f"pgqueue_test_{os.getpid()}_{_count}"
    with psycopg.connect(server.dsn, autocommit=True) as conn:
        conn.execute(f"CREATE DATABASE {name} {how}")
    yield database_of(server.dsn, name)
    with psycopg.connect(server.dsn, autocommit=True) as conn:
        conn.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def conn(direct_dsn: str) -> Iterator[psycopg.Connection[Any]]:
    """An autocommit connection to the fresh database."""
    with connect(direct_dsn, "tests") as conn:
        yield conn


@pytest.fixture
def app(dsn: str) -> Iterator[App]:
    """An App on the fresh database, without any functions yet."""
    app = App(dsn)
    yield app
    app.close()


@pytest.fixture
def hand(app: App, dsn: str) -> Iterator[Callable[[], Hand]]:
    """Makes workers by hand, for when the functions are there."""
    hands: list[Hand] = []

    def make() -> Hand:
        hands.append(Hand(app, dsn))
        return hands[-1]

    yield make
    for one in hands:
        one.close()


@pytest.fixture
def workers(dsn: str, tmp_path: Path) -> Iterator[Workers]:
    """Starts real ``pgqueue work`` processes, and leaves none behind."""
    started = Workers(dsn, tmp_path)
    yield started
    started.stop_all()


@pytest.fixture
def bank_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "outside.txt"
    monkeypatch.setenv("BANK_FILE", str(path))
    return path


@pytest.fixture
def bank_db(
    direct_dsn: str, way: Way, conn: psycopg.Connection[Any], bank_file: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[psycopg.Connection[Any]]:
    monkeypatch.setenv("PGQUEUE_DSN", way.producer(direct_dsn))
    conn.execute(bank.TABLES)  # type: ignore[arg-type]
    run(conn, bank.app.registration())
    yield conn
    bank.app.close()


@pytest.fixture
def shop(tmp_path: Path, bank_db: psycopg.Connection[Any], workers: Workers) -> Shop:
    return Shop(tmp_path, bank_db, workers)
