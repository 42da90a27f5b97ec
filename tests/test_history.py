"""A long history costs nothing: claims, what people and Prometheus ask, and the walk that prunes, beside an empty database.

``make operations`` fills in ten million jobs that have ended and a million that are ready, on a disk, and prints times; the tests
as a whole some thousands, and count buffers. ``PGQUEUE_TEST_HISTORY=1000000,100000`` is another size.
"""

from __future__ import annotations

import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from chaos.databases import COPY
from pgqueue import migrate, protocol
from pgqueue.database import connect, run
from pgqueue.embedded import Embedded
from pgqueue.ids import Process, new_token
from pgqueue.model import Settlement
from pgqueue.supervisor.watch import private_memory
from tests.apps import bank
from tests.conftest import SETTINGS, fresh_database
from tests.support import ROOT, Server, Work, Workers, states, violations, wait_for
from tests.test_exposition import free_port, get, samples
from tests.test_plans import buffers

Conn = psycopg.Connection[Any]

SMALL = (20_000, 2_000)
FULL = (10_000_000, 1_000_000)
BATCH = 500_000
WORKER = "00000000-0000-4000-8000-000000000001"

#: Jobs that have ended in the last two weeks: half of them are to go. Each tenth has a checkpoint, each fiftieth failed.
ENDED = """
WITH made AS MATERIALIZED (
        SELECT pgqueue.new_id() AS id, n, clock_timestamp() - interval '14 days' * ((%(total)s - n)::float8 / %(total)s) AS at
          FROM generate_series(%(first)s::int, %(last)s::int) n
    ), jobs AS (
        INSERT INTO pgqueue.job (id, name, queue, priority, input, created_at)
        SELECT id, %(name)s, 'default', 5, '{}', at - interval '1 minute' FROM made
    ), steps AS (
        INSERT INTO pgqueue.checkpoint SELECT id, 1, 's', '1', NULL, 1, '5', at FROM made WHERE n %% 10 = 0
    ), tries AS (
        INSERT INTO pgqueue.attempt (job_id, kind, checkpoints, ended_at) SELECT id, 'error', 0, at FROM made WHERE n %% 50 = 0
    )
INSERT INTO pgqueue.outcome (job_id, status, result, error, claim, finished_at)
SELECT id, CASE WHEN n %% 50 = 0 THEN 'failed' ELSE 'succeeded' END, CASE WHEN n %% 50 > 0 THEN 'null' END,
       CASE WHEN n %% 50 = 0 THEN '{"type": "ValueError", "message": "no"}' END, n, at FROM made
"""

READY = """
WITH made AS (
        INSERT INTO pgqueue.job (id, name, queue, priority, input, created_at)
        SELECT pgqueue.new_id(), %(name)s, 'default', 5, '{}', clock_timestamp()
          FROM generate_series(%(first)s::int, %(last)s::int) RETURNING id
    )
INSERT INTO pgqueue.ready (queue, lane, pos, job_id) SELECT 'default', 11, nextval('pgqueue.position'), id FROM made
"""


def fill(conn: Conn, statement: str, total: int) -> None:
    for first in range(1, total + 1, BATCH):
        values = {"name": bank.noop.name, "total": total, "first": first, "last": min(first + BATCH - 1, total)}
        conn.execute(statement, values)


def prepare(conn: Conn, ended: int, ready: int) -> None:
    conn.execute(bank.TABLES)
    run(conn, bank.app.registration())
    run(conn, protocol.retain("", "succeeded", float("inf")))
    run(conn, protocol.retain("", "failed", float("inf")))
    fill(conn, ENDED, ended)
    fill(conn, READY, ready)
    conn.execute("VACUUM ANALYZE")


def keep(conn: Conn, seconds: float) -> None:
    """Of all jobs that have ended."""
    for what in ("succeeded", "failed"):
        run(conn, protocol.retain("", what, seconds))


class Costs:
    """What is measured, in this database: times in milliseconds (the median), and buffers of one round."""

    def __init__(self, conn: Conn) -> None:
        self._conn = conn
        self.ms: dict[str, float] = {}
        self.buffers: dict[str, int] = {}

    def measure(self, what: str, act: Callable[[], Any], rounds: int) -> None:
        act()  # plans are made
        took = []
        for _ in range(rounds):
            began = time.perf_counter()
            act()
            took.append(1000 * (time.perf_counter() - began))
        self.ms[what] = statistics.median(took)
        self.buffers[what] = buffers(self._conn, act)

    def dearer_than(self, other: Costs) -> dict[str, int]:
        """What needs more than twice its buffers. (A level more of an index is no growth.)"""
        return {what: n for what, n in self.buffers.items() if n > 2 * other.buffers[what] + 20}

    def of_verbs(self, rounds: int, days: float) -> None:
        """There are jobs to prune that ended more than so many days ago."""
        conn = self._conn
        run(conn, protocol.register_worker(WORKER, Process.of(1)))

        def claim_and_settle() -> None:
            claim = protocol.claim(WORKER, new_token(), ["default"], [bank.noop.name], 100, [0] * 20, False, 1)
            jobs = [job for job, _ in run(conn, claim)]
            assert len(jobs) == 100
            assert run(conn, protocol.settle([Settlement(job, "succeeded", "null") for job in jobs])) == {}

        def prune() -> None:
            assert run(conn, protocol.prune_due(100))[0] == 100

        self.measure("claim and settle 100", claim_and_settle, rounds)
        self.measure("enqueue 100", lambda: bank.app.enqueue_many([bank.noop.call()] * 100, conn=conn), rounds)
        self.measure("look of the housekeeper", lambda: run(conn, protocol.look(["default"], None)), rounds)
        self.measure("stats: status, top", lambda: run(conn, protocol.stats()), rounds)
        self.measure("metrics: /metrics", lambda: run(conn, protocol.metrics()), rounds)
        keep(conn, days * 86400)
        conn.execute("UPDATE pgqueue.prune_walk SET look_at = 'infinity' WHERE what <> 'jobs'")
        self.measure("prune 100", prune, rounds)
        keep(conn, math.inf)

    def of_commands(self, dsn: str) -> None:
        for command in ("status", "top --once", "jobs", "jobs --state failed"):
            self.ms[f"pgqueue {command}"] = statistics.median(timed(command.split(), dsn) for _ in range(5))


def timed(command: list[str], dsn: str) -> float:
    """Milliseconds of a whole process."""
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "pgqueue", *command],
        cwd=ROOT, env={**os.environ, "PGQUEUE_DSN": dsn}, stdout=subprocess.DEVNULL, check=True,
    )  # fmt: skip
    return 1000 * (time.perf_counter() - began)


def test_costs_do_not_grow(server: Server, template: str) -> None:
    """Buffers beside 20,000 jobs that have ended and 2,000 that are ready, and beside next to nothing."""
    found = []
    for ended, ready in ((1_000, 1_000), SMALL):
        with fresh_database(server, f"TEMPLATE {template} {COPY}") as dsn, connect(dsn, "tests") as conn:
            prepare(conn, ended, ready)
            costs = Costs(conn)
            costs.of_verbs(2, 7)
            found.append(costs)
            assert violations(conn) == []
    few, many = found
    assert many.dearer_than(few) == {}, few.buffers


def test_the_last_failures_are_found_without_reading_all(conn: Conn) -> None:
    """As ``pgqueue jobs --state failed`` does."""

    def look() -> None:
        assert len(run(conn, protocol.job_rows("failed", None, None, None, 10))) == 10

    prepare(conn, SMALL[0], 0)
    before = buffers(conn, look)
    conn.execute("TRUNCATE pgqueue.job, pgqueue.outcome, pgqueue.checkpoint, pgqueue.attempt")
    fill(conn, ENDED, 3 * SMALL[0])
    conn.execute("VACUUM ANALYZE")
    assert buffers(conn, look) < 1.5 * before + 20, before


def test_prune_and_work_at_once(conn: Conn, workers: Workers) -> None:
    """What is ready is run and what is old goes, both to the end."""
    prepare(conn, *SMALL)
    workers.start()
    keep(conn, 7 * 86400)
    wait_for(lambda: oldest(conn) < 7.01 and set(states(conn)) == {"succeeded", "failed"}, 120, "the end of both")
    assert violations(conn) == []


def oldest(conn: Conn) -> float:
    """How many days ago the job ended that is kept for longest."""
    query = "SELECT extract(epoch FROM clock_timestamp() - min(finished_at))::float8 / 86400 FROM pgqueue.outcome"
    [(days,)] = conn.execute(query).fetchall()
    return float(days)


# ------------------------------------------------------------------------------------------------------- full size


@pytest.mark.operations
@pytest.mark.timeout(7200)
def test_ten_million(tmp_path: Path) -> None:
    """Figures of the same measures, in one run: an empty database, a full one, and the full one after its old half was pruned."""
    ended, ready = map(int, os.environ.get("PGQUEUE_TEST_HISTORY", ",".join(map(str, FULL))).split(","))
    with tempfile.TemporaryDirectory(prefix="pgqueue-history-", ignore_cleanup_errors=True) as home:
        embedded = Embedded(Path(home) / "data", settings={**SETTINGS, "max_wal_size": "8GB", "shared_buffers": "1GB"})
        server = Server(embedded.start(), embedded)
        try:
            with fresh_database(server) as dsn, connect(dsn, "tests") as conn:
                migrate.migrate(conn)
                prepare(conn, 5_000, 200_000)
                empty = figures("5,000 have ended, 200,000 are ready", conn, dsn, tmp_path)
            with fresh_database(server) as dsn, connect(dsn, "tests") as conn:
                migrate.migrate(conn)
                began = time.monotonic()
                prepare(conn, ended, ready)
                print(f"\nfilled in {time.monotonic() - began:.0f} s: {size(conn)}", flush=True)
                full = figures(f"{ended:,} have ended, {ready:,} are ready", conn, dsn, tmp_path)
                prune_beside_work(conn, dsn, tmp_path)
                fill(conn, READY, 200_000)  # the others may all have been run meanwhile
                after = figures("after that", conn, dsn, tmp_path, days=6)
                began = time.monotonic()
                assert violations(conn) == []
                print(f"pgqueue.violations, which reads everything: {time.monotonic() - began:.0f} s")
            for what in full.ms:
                before, now = empty.ms[what], full.ms[what]
                print(f"{what:28} {before:9.1f} ms, {now:9.1f} ms: {now / before:5.2f}; {after.ms[what]:9.1f} ms")
            assert full.dearer_than(empty) == {}, empty.buffers
        finally:
            embedded.remove()


def figures(what: str, conn: Conn, dsn: str, tmp_path: Path, days: float = 7) -> Costs:
    """All of them, with a supervisor's for the first few seconds of its work."""
    costs = Costs(conn)
    costs.of_verbs(20, days)
    costs.of_commands(dsn)
    with working(dsn, tmp_path) as (_, port):
        costs.ms["scrape"] = statistics.median(scraped(port) for _ in range(20))
        costs.ms["us per job, 2 workers"] = 1e6 / rate(port, 10)
    print(f"{what}: {costs.ms} {costs.buffers}", flush=True)
    return costs


@contextmanager
def working(dsn: str, tmp_path: Path) -> Iterator[tuple[Work, int]]:
    """Two workers, with a port."""
    workers, port = Workers(dsn, tmp_path), free_port()
    try:
        work = workers.start("tests.apps.bank:app", "--metrics", str(port))
        wait_for(lambda: get(port, "/readyz")[0] == 200, what=work.log())
        wait_for(lambda: counted(port) > 0, what="the first jobs")
        yield work, port
    finally:
        workers.stop_all()


def scraped(port: int) -> float:
    """Milliseconds."""
    began = time.perf_counter()
    assert get(port, "/metrics")[0] == 200
    return 1000 * (time.perf_counter() - began)


def counted(port: int) -> float:
    return sum(value for (name, _), value in samples(port).items() if name == "pgqueue_jobs_total")


def rate(port: int, seconds: float) -> float:
    """Jobs per second."""
    before, began = counted(port), time.monotonic()
    time.sleep(seconds)
    return (counted(port) - before) / (time.monotonic() - began)


def prune_beside_work(conn: Conn, dsn: str, tmp_path: Path) -> None:
    """Workers with and without a walk beside them, in turns; then the walk alone, to its end."""

    def gone() -> int:
        [(count,)] = conn.execute(
            "SELECT n_tup_del FROM pg_stat_user_tables WHERE relid = 'pgqueue.outcome'::regclass"
        ).fetchall()
        return int(count)

    def memory() -> dict[int, float]:
        return {pid: round(private_memory(pid) / (1 << 20), 1) for pid in [work.pid, *work.children()]}

    with working(dsn, tmp_path) as (work, port):
        print(f"private MB: {memory()}")
        for _ in range(3):
            without = rate(port, 8)
            keep(conn, 7 * 86400)
            time.sleep(2)  # a housekeeper looks at its walk once in a while
            before, began = gone(), time.monotonic()
            beside = rate(port, 8)
            walk = (gone() - before) / (time.monotonic() - began)
            keep(conn, math.inf)
            time.sleep(1)
            print(f"{without:.0f} jobs/s without pruning, {beside:.0f} beside it; it prunes {walk:.0f} jobs/s", flush=True)
        keep(conn, 7 * 86400)
        began, before = time.monotonic(), gone()
        wait_for(lambda: slowly(lambda: oldest(conn) < 7.1), 1800, "the old ones to go")
        print(f"pruned {gone() - before} in {time.monotonic() - began:.0f} s, private MB: {memory()}; {size(conn)}", flush=True)
    keep(conn, math.inf)


def slowly(condition: Callable[[], bool]) -> bool:
    time.sleep(1)
    return condition()


def size(conn: Conn) -> str:
    [(text,)] = conn.execute("SELECT pg_size_pretty(pg_database_size(current_database()))").fetchall()
    return str(text)
