"""What all benchmarks need: a database, workers, and the server's own counters."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
from psycopg import conninfo, sql

from pgqueue import migrate
from pgqueue.bench.app import TABLES, app
from pgqueue.database import connect, run
from pgqueue.embedded import Embedded
from pgqueue.errors import PgQueueError

TARGET = "pgqueue.bench.app:app"


@contextmanager
def server(dsn: str | None) -> Iterator[str]:
    """The given server, or an embedded one for as long as it takes."""
    if dsn:
        yield dsn
        return
    with tempfile.TemporaryDirectory(prefix="pgqueue-bench-", ignore_cleanup_errors=True) as home:
        embedded = Embedded(Path(home) / "data", settings={"max_wal_size": "4GB"})
        try:
            yield embedded.start()
        finally:
            embedded.remove()


class Bench:
    """One database of its own with the benchmarks' application, and workers for it."""

    def __init__(self, dsn: str) -> None:
        self.dsn = os.environ["PGQUEUE_DSN"] = dsn  # for the application, here and in the workers
        self.conn = connect(dsn, "pgqueue:bench")
        migrate.migrate(self.conn)
        self.conn.execute(TABLES)
        run(self.conn, app.registration())

    @contextmanager
    def workers(self, count: int, *options: str) -> Iterator[subprocess.Popen[bytes]]:
        """A supervisor with so many workers, until the block ends."""
        process = subprocess.Popen(
            [sys.executable, "-m", "pgqueue", "work", TARGET, "-w", str(count), *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            yield process
        finally:
            process.terminate()
            process.wait(60)

    def wait_for_workers(self, count: int) -> None:
        """Until they have introduced themselves."""
        self.wait_until(lambda: self.one("SELECT count(*) FROM pgqueue.workers WHERE fenced_at IS NULL") >= count)

    def one(self, query: str, params: Sequence[Any] = ()) -> Any:
        """The first value of the first row."""
        row = self.conn.execute(query.encode(), params).fetchone()
        return None if row is None else row[0]

    def wait_until(self, condition: Callable[[], bool], seconds: float = 600, pause: float = 0.002) -> None:
        """Poll; PgQueueError after the deadline."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise PgQueueError(f"the benchmark made no progress for {seconds:g} s")
            time.sleep(pause)

    def counters(self) -> dict[str, int]:
        """Commits and WAL bytes of the server so far. Calls of verbs count as statements."""
        self.conn.execute("SELECT pg_stat_clear_snapshot()")
        return {
            "commits": int(self.one("SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()")),
            "wal_bytes": int(self.one("SELECT pg_current_wal_lsn() - '0/0'")),
        }


@contextmanager
def bench(dsn: str | None) -> Iterator[Bench]:
    """A fresh database on that server, dropped at the end."""
    name = f"pgqueue_bench_{os.getpid()}"
    with server(dsn) as base, psycopg.connect(base, autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        try:
            made = Bench(conninfo.make_conninfo(base, dbname=name))
            try:
                yield made
            finally:
                made.conn.close()
        finally:
            app.close()
            admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """p50, p99 and the largest, in milliseconds."""
    ordered = sorted(seconds)
    at = {"p50_ms": 0.5, "p99_ms": 0.99, "max_ms": 1.0}
    return {name: round(1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))], 1) for name, share in at.items()}
