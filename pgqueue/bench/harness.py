"""What all benchmarks need: a database of their own, workers, waiting, and counts that leave the benchmark itself out."""

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
from pgqueue.bench.counts import COMMITS_AND_WAL, STATEMENTS, Counts, counts_statements, preload
from pgqueue.database import connect, run
from pgqueue.embedded import Embedded
from pgqueue.errors import PgQueueError

TARGET = "pgqueue.bench.app:app"
NAME = "pgqueue:bench"
STUCK_AFTER = 120.0  # seconds without progress


@contextmanager
def server(dsn: str | None) -> Iterator[str]:
    """The given server, or an embedded one for as long as it takes."""
    if dsn:
        yield dsn
        return
    settings = {"max_wal_size": "4GB", "checkpoint_timeout": "30min", **preload()}
    with tempfile.TemporaryDirectory(prefix="pgqueue-bench-", ignore_cleanup_errors=True) as home:
        embedded = Embedded(Path(home) / "data", settings=settings)
        try:
            yield embedded.start()
        finally:
            embedded.remove()


class Bench:
    """One database of its own with the benchmarks' application, and workers for it."""

    def __init__(self, dsn: str) -> None:
        self._dsn_before = os.environ.get("PGQUEUE_DSN")
        self.dsn = os.environ["PGQUEUE_DSN"] = dsn  # for the application, here and in the workers
        self._conn = connect(dsn, NAME)
        migrate.migrate(self._conn)
        self._conn.execute(TABLES.encode())
        run(self._conn, app.registration())
        self._counts_statements = counts_statements(self._conn)
        self._asked = 0
        self._supervisor: subprocess.Popen[bytes] | None = None

    def close(self) -> None:
        """Leave the database, and the environment as it was."""
        app.close()
        self._conn.close()
        if self._dsn_before is None:
            del os.environ["PGQUEUE_DSN"]
        else:
            os.environ["PGQUEUE_DSN"] = self._dsn_before

    # ------------------------------------------------------------------------------------------------ workers

    @contextmanager
    def workers(self, count: int, queue: str = "default") -> Iterator[int]:
        """A supervisor with so many workers for this queue, until the block ends. Its process id."""
        self._supervisor = process = subprocess.Popen(
            [sys.executable, "-m", "pgqueue", "work", TARGET, "-w", str(count), "-q", queue],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            yield process.pid
        finally:
            self._supervisor = None
            process.terminate()
            process.wait(60)

    @contextmanager
    def held_back(self) -> Iterator[None]:
        """Nothing begins until the block ends: then all workers begin at once, as what they are compared with does."""
        for queue in app.queues:
            app.pause(queue)
        yield
        for queue in app.queues:
            app.resume(queue)

    def clear(self) -> None:
        """All jobs are forgotten, as if there had been none. Nobody may be working."""
        self._conn.execute(
            "TRUNCATE pgqueue.job, pgqueue.outcome, pgqueue.ready, pgqueue.running, pgqueue.waiting, pgqueue.wakeup"
        )

    def wait_for_workers(self, count: int) -> None:
        """Until they have introduced themselves."""
        self.wait_until(lambda: self.one("SELECT count(*) FROM pgqueue.workers WHERE fenced_at IS NULL") >= count)

    # ------------------------------------------------------------------------------------------------- asking

    def rows(self, query: str, params: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """The answer to one question. Every question of a benchmark goes through here, and is counted."""
        self._asked += 1
        return self._conn.execute(query.encode(), params).fetchall()

    def one(self, query: str, params: Sequence[Any] = ()) -> Any:
        """The first value of the first row; None where there is none."""
        rows = self.rows(query, params)
        return rows[0][0] if rows else None

    def wait_until(self, condition: Callable[[], bool], pause: float = 0.002) -> None:
        """Poll. PgQueueError where nothing comes of it."""
        since = time.monotonic()
        while not condition():
            self.check_progress(since)
            time.sleep(pause)

    def ended(self) -> int:
        """How many jobs have ended, ever."""
        return int(self.one("SELECT count(*) FROM pgqueue.outcome"))

    def wait_for_ended(self, count: int, before: int) -> None:
        """Until so many jobs more than ``before`` have ended. Counting costs the server something, so this looks again when half
        of what is missing should be done: seldom at first, and often at the end."""
        began = progress = time.monotonic()
        ended = 0
        while ended < count:
            self.check_progress(progress)
            elapsed = time.monotonic() - began
            left = elapsed * (count - ended) / ended if ended else 0.0
            time.sleep(min(1.0, max(0.002, left / 2)))
            last, ended = ended, self.ended() - before
            if ended > last:
                progress = time.monotonic()

    def check_progress(self, since: float) -> None:
        """PgQueueError where the workers are gone, or nothing came for too long."""
        if self._supervisor is not None and (code := self._supervisor.poll()) is not None:
            raise PgQueueError(f"the workers of the benchmark ended with exit code {code}: try pgqueue work {TARGET}")
        if time.monotonic() - since > STUCK_AFTER:
            raise PgQueueError(f"the benchmark made no progress for {STUCK_AFTER:g} s")

    # ----------------------------------------------------------------------------------------------- counting

    def wait_until_alone(self) -> None:
        """Until the sessions of workers and producers have ended: then all that they did is counted."""
        app.close()
        others = "datname = current_database() AND application_name LIKE 'pgqueue:%%' AND application_name <> %s"
        self.wait_until(lambda: self.one(f"SELECT count(*) FROM pg_stat_activity WHERE {others}", [NAME]) == 0)  # noqa: S608

    def counts(self) -> Counts:
        """What was done in this database so far, without what we asked ourselves. What a session commits is counted within a
        second or so, and when it ends."""
        self.rows("SELECT pg_stat_force_next_flush()")  # of our own commits, so that exactly these can be left out
        commits, wal_bytes = self.rows(COMMITS_AND_WAL)[0]
        statements = self.one(STATEMENTS) if self._counts_statements else None
        commits_of_ours = self._asked - (2 if self._counts_statements else 1)  # up to the flush
        statements_of_ours = self._asked - 1  # up to the question for them
        return Counts(commits - commits_of_ours, wal_bytes, None if statements is None else statements - statements_of_ours)


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
                made.close()
        finally:
            admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def percentiles(seconds: Sequence[float], prefix: str = "") -> dict[str, float | None]:
    """p50, p99 and the largest, in milliseconds; None where nothing was measured."""
    ordered = sorted(seconds)
    at = {"p50_ms": 0.5, "p99_ms": 0.99, "max_ms": 1.0}
    return {
        prefix + name: round(1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))], 1) if ordered else None
        for name, share in at.items()
    }
