"""Limits under real workers, with kills and deploys: never exceeded in any snapshot, and used. Large ones: ``make scale``."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from chaos.workloads import limited
from pgqueue.database import connect
from tests.support import Work, Workers, kill, states, violations, wait_for, worker_pids

APP = "chaos.workloads.limited:app"
AT_ONCE = 5000


@pytest.fixture
def db(dsn: str, conn: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[psycopg.Connection[Any]]:
    monkeypatch.setenv("PGQUEUE_DSN", dsn)
    limited.prepare(conn)
    yield conn
    limited.app.close()


def enqueue(queue: str, count: int, **arguments: Any) -> None:
    call = limited.work.options(queue=queue)
    for at in range(0, count, AT_ONCE):
        limited.app.enqueue_many([call.call(n, **arguments) for n in range(at, min(at + AT_ONCE, count))])


class Watch(threading.Thread):
    """Looks at snapshots, one after the other: how many run, and the most of one key."""

    def __init__(self, dsn: str, queue: str) -> None:
        super().__init__(daemon=True)
        self._dsn, self._queue = dsn, queue
        self.over = threading.Event()
        self.running: list[int] = []
        self.of_a_key = 0

    def run(self) -> None:
        with connect(self._dsn, "test") as conn:
            while not self.over.is_set():
                row = conn.execute(
                    "SELECT coalesce(sum(n), 0)::int, coalesce(max(n) FILTER (WHERE key IS NOT NULL), 0)::int, "
                    "       (SELECT count(*) FROM (SELECT FROM pgqueue.ready WHERE queue = %s LIMIT 1) r)"
                    "  FROM (SELECT key, count(*) AS n FROM pgqueue.running WHERE queue = %s GROUP BY key) r",
                    (self._queue, self._queue),
                ).fetchone()
                assert row is not None
                self.of_a_key = max(self.of_a_key, row[1])
                self.running.append(row[0] if row[2] else min(row[0], 10**6))
                self.work_left = bool(row[2])


@contextmanager
def watched(dsn: str, queue: str) -> Iterator[Watch]:
    watch = Watch(dsn, queue)
    watch.start()
    try:
        yield watch
    finally:
        watch.over.set()
        watch.join()


@contextmanager
def killed_and_rolled(
    conn: psycopg.Connection[Any], dsn: str, workers: Workers, hosts: list[Work], every: float
) -> Iterator[None]:
    """Kills a worker every so often, and now and then replaces a host by a new one, as a deploy does."""
    over = threading.Event()

    def go_on() -> None:
        turn = 0
        with connect(dsn, "test") as own:
            while not over.wait(every):
                turn += 1
                if turn % 6 == 0:
                    hosts.append(workers.start(APP, "-w", "4"))
                    hosts.pop(0).signal(15)
                    continue
                pids = [pid for host in hosts for pid in worker_pids(own, host)]
                if pids:
                    kill(random.choice(pids))

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize("jobs", [400, pytest.param(20_000, marks=pytest.mark.scale)])
def test_concurrency_across_hosts_kills_and_deploys(db: psycopg.Connection[Any], dsn: str, workers: Workers, jobs: int) -> None:
    enqueue("few", jobs, seconds=0.01)
    hosts = [workers.start(APP, "-w", "4"), workers.start(APP, "-w", "4")]
    wait_for(lambda: states(db).get("succeeded", 0) > 10)
    with watched(dsn, "few") as watch, killed_and_rolled(db, dsn, workers, hosts, 0.5):
        wait_for(lambda: states(db) == {"succeeded": jobs}, 900, "the end")
    assert max(watch.running) <= 5
    busy = watch.running[: int(len(watch.running) * 0.9)]
    print(f"\n{len(watch.running)} snapshots, at most {max(watch.running)}, on average {sum(busy) / len(busy):.2f} of 5")
    assert violations(db) == []


@pytest.mark.parametrize("jobs", [500, pytest.param(20_000, marks=pytest.mark.scale)])
def test_one_of_a_key_at_a_time_with_kills(db: psycopg.Connection[Any], dsn: str, workers: Workers, jobs: int) -> None:
    call = limited.work.options(queue="keys")
    for at in range(0, jobs, AT_ONCE):
        limited.app.enqueue_many([call.call(n, f"key {n % 50}", 0.002) for n in range(at, min(at + AT_ONCE, jobs))])
    hosts = [workers.start(APP, "-w", "4"), workers.start(APP, "-w", "4")]
    with watched(dsn, "keys") as watch, killed_and_rolled(db, dsn, workers, hosts, 0.5):
        wait_for(lambda: states(db) == {"succeeded": jobs}, 900, "the end")
    assert watch.of_a_key == 1
    assert max(watch.running) > 1
    rows = db.execute(
        "SELECT s.key, (v.input::json ->> 'n')::int FROM start s JOIN pgqueue.job_values v ON v.id = s.job_id ORDER BY s.stamp"
    ).fetchall()
    first: dict[str, list[int]] = {}
    for key, n in rows:
        if n not in (seen := first.setdefault(key, [])):
            seen.append(n)
    assert all(seen == sorted(seen) for seen in first.values()), "each key in its order"
    assert violations(db) == []


@pytest.mark.parametrize(("queue", "burst"), [("even", 1), ("bursts", 20)])
@pytest.mark.parametrize("seconds", [3, pytest.param(30, marks=pytest.mark.scale)])
def test_rates_across_hosts(
    db: psycopg.Connection[Any], dsn: str, workers: Workers, queue: str, burst: int, seconds: int
) -> None:
    for _ in range(3):
        workers.start(APP, "-w", "2")
    wait_for(lambda: len(db.execute("SELECT 1 FROM pgqueue.workers").fetchall()) == 6)
    enqueue(queue, 100 * seconds + burst)
    began = time.monotonic()
    wait_for(lambda: set(states(db)) == {"succeeded"}, 60 + 10 * seconds, "the end")
    took = time.monotonic() - began
    rows = db.execute("SELECT extract(epoch FROM stamp) FROM start ORDER BY stamp").fetchall()
    stamps = [row[0] for row in rows]
    most, first = 0, 0
    for last, stamp in enumerate(stamps):
        while stamps[first] <= stamp - 1:
            first += 1
        most = max(most, last - first + 1)
    rate = (len(stamps) - 1) / float(stamps[-1] - stamps[0])
    print(f"\n{queue}: at most {most} starts in a second, {rate:.1f} per second on average; the end after {took:.1f} s")
    assert most <= 100 + burst - 1
    assert violations(db) == []


def test_a_small_tenant_is_not_delayed_by_a_large_one(db: psycopg.Connection[Any], workers: Workers) -> None:
    enqueue("shared", 5000, who="large")
    enqueue("shared", 10, who="small")
    workers.start(APP, "-w", "2")
    wait_for(lambda: states(db) == {"succeeded": 5010}, 100)
    order = db.execute(
        "SELECT row_number() OVER (ORDER BY s.stamp), v.input::json ->> 'who'"
        " FROM start s JOIN pgqueue.job_values v ON v.id = s.job_id"
    ).fetchall()
    places = [place for place, who in order if who == "small"]
    assert max(places) < 500, "their turn came with the first claims"
    assert Counter(who for _, who in order) == {"large": 5000, "small": 10}
