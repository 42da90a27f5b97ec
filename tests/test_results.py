"""Waiting for results: at once, by many, on one connection, and whatever happens to it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from pgqueue import App, JobCancelled, JobFailed, ResultTimeout, Retry, UnknownJob, protocol
from pgqueue import results as results_module
from pgqueue.database import run
from tests.support import Hand, wait_for

MANY = 2000


@pytest.fixture
def app(dsn: str, conn: psycopg.Connection[Any]) -> Iterator[App]:
    app = App(dsn)

    @app.step(name="double")
    def double(n: int) -> int:
        if n < 0:
            raise ValueError("negative")
        return 2 * n

    yield app
    app.close()


@pytest.fixture
def hand(app: App, dsn: str) -> Iterator[Hand]:
    hand = Hand(app, dsn)
    yield hand
    hand.close()


@pytest.fixture
def slow_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then only what is heard can wake anybody in time."""
    monkeypatch.setattr(results_module, "LOOK", 1000.0)


def listeners(conn: psycopg.Connection[Any]) -> list[int]:
    rows = conn.execute(
        "SELECT pid FROM pg_stat_activity WHERE application_name = 'pgqueue:results' AND datname = current_database()"
    )
    return [pid for (pid,) in rows]


def listening(conn: psycopg.Connection[Any]) -> None:
    """Wait until the thread has looked once at what there is, and waits."""
    wait_for(
        lambda: (
            conn.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgqueue:results' AND state = 'idle'"
                " AND datname = current_database() AND query LIKE '%awaited%'"
            ).fetchone()
            == (1,)
        ),
        20,
        "a listener",
    )


class Waiter(threading.Thread):
    """Somebody who waits."""

    def __init__(self, job: Any) -> None:
        super().__init__(daemon=True)
        self.job = job
        self.got: Any = None
        self.start()

    def run(self) -> None:
        try:
            self.got = self.job.result(timeout=60)
        except Exception as error:
            self.got = error


def test_whatever_ends_a_job_is_heard(app: App, hand: Hand, conn: psycopg.Connection[Any], slow_looks: None) -> None:
    """Settled as succeeded, failed, cancelled; ended by a claim; by a whole-job transaction; by a reaper."""
    double = app.functions["double"]

    @app.transaction(name="tx")
    def tx(tx: psycopg.Connection[Any]) -> int:
        return 7

    run(conn, app.registration())
    jobs = [double.enqueue(4), double.options(retry=Retry(1)).enqueue(-1), double.enqueue(5), tx.enqueue()]
    late = double.options(delay="1h").enqueue(6)
    waiters = [Waiter(job) for job in [*jobs, late]]
    listening(conn)
    wait_for(lambda: len(results_module.results_of(app.client.pool.dsn)._waiters) == 5)
    jobs[2].cancel()
    late.cancel()
    hand.drain(due_now=False)
    for waiter in waiters:
        waiter.join(20)
    assert [waiter.got if isinstance(waiter.got, int) else type(waiter.got) for waiter in waiters] == [
        8,
        JobFailed,
        JobCancelled,
        7,
        JobCancelled,
    ]


def test_thousands_wait_on_one_connection(app: App, hand: Hand, conn: psycopg.Connection[Any], slow_looks: None) -> None:
    double = app.functions["double"]

    async def wait_all() -> list[int]:
        jobs = await app.aenqueue_many(double.map(range(MANY)))
        tasks = [asyncio.create_task(job.result(timeout=100)) for job in jobs]
        waiters = results_module.results_of(app.client.pool.dsn)._waiters
        while len(waiters) < MANY:
            await asyncio.sleep(0.01)
        assert len(listeners(conn)) == 1
        own = [Waiter(app.job(job.id)) for job in jobs[:20]]
        await asyncio.to_thread(hand.drain, False)
        got = await asyncio.gather(*tasks)
        for waiter in own:
            await asyncio.to_thread(waiter.join, 20)
        assert [waiter.got for waiter in own] == got[:20]
        await app.aclose()
        return got

    assert asyncio.run(wait_all()) == [2 * n for n in range(MANY)]


def test_a_lost_connection_only_delays(app: App, hand: Hand, conn: psycopg.Connection[Any]) -> None:
    job = app.functions["double"].enqueue(21)
    waiter = Waiter(job)
    for _ in range(2):
        wait_for(lambda: len(listeners(conn)) == 1, 20, "a listener")
        [pid] = listeners(conn)
        conn.execute("SELECT pg_terminate_backend(%s)", (pid,))
        wait_for(lambda pid=pid: pid not in listeners(conn), 20, "its end")  # type: ignore[misc]
    hand.drain()
    waiter.join(30)
    assert waiter.got == 42


def test_where_nothing_is_heard_it_looks(
    app: App, hand: Hand, conn: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    conn.execute("CREATE OR REPLACE FUNCTION pgqueue.tell_results(jobs uuid[]) RETURNS void LANGUAGE sql AS 'SELECT'")
    waiter = Waiter(app.functions["double"].enqueue(1))
    listening(conn)
    hand.drain()
    waiter.join(30)
    assert waiter.got == 2


def test_a_job_that_does_not_exist_is_an_error_and_so_is_one_that_goes(
    app: App, hand: Hand, conn: psycopg.Connection[Any]
) -> None:
    with pytest.raises(UnknownJob):
        app.job("00000000-0000-0000-0000-000000000001").result()
    waiter = Waiter(app.functions["double"].enqueue(1))
    listening(conn)
    conn.execute("DELETE FROM pgqueue.ready; DELETE FROM pgqueue.job")
    waiter.join(30)
    assert isinstance(waiter.got, UnknownJob)


def test_the_time_is_kept_and_what_is_said_helps(app: App, conn: psycopg.Connection[Any]) -> None:
    run(conn, app.registration())
    job = app.functions["double"].enqueue(1)
    for timeout in (0, 0.1, "50ms"):
        with pytest.raises(ResultTimeout, match=r"goes on: it is ready"):
            job.result(timeout=timeout)
    assert results_module.results_of(app.client.pool.dsn)._waiters == {}

    async def twin() -> None:
        with pytest.raises(ResultTimeout, match=r"goes on: it is ready"):
            await app.async_client.job(job.id).result(timeout=0.1)
        task = asyncio.create_task(app.async_client.job(job.id).result())
        await asyncio.sleep(0)
        while not results_module.results_of(app.client.pool.dsn)._waiters:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await app.aclose()

    asyncio.run(twin())
    assert results_module.results_of(app.client.pool.dsn)._waiters == {}


def test_the_connection_goes_when_nobody_waits(
    app: App, hand: Hand, conn: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results_module, "LINGER", 0.1)
    monkeypatch.setattr(results_module, "LOOK", 0.05)
    double = app.functions["double"]
    for n in range(3):  # and comes back
        waiter = Waiter(double.enqueue(n))
        listening(conn)
        hand.drain()
        waiter.join(20)
        assert waiter.got == 2 * n
        wait_for(lambda: listeners(conn) == [], 20, "its end")
    monkeypatch.setattr(results_module, "LINGER", 1000.0)
    waiter = Waiter(double.enqueue(5))
    listening(conn)
    hand.drain()
    waiter.join(20)
    app.close()
    wait_for(lambda: listeners(conn) == [], 20, "its end")


def test_nobody_is_told_where_nobody_waits(app: App, hand: Hand, conn: psycopg.Connection[Any], dsn: str) -> None:
    """NOTIFY takes a lock of the whole server at commit."""
    run(conn, app.registration())
    with psycopg.connect(dsn, autocommit=True) as other:
        other.execute("LISTEN pgqueue_results")
        job = app.functions["double"].enqueue(1)
        hand.drain()
        assert job.status() == "succeeded"
        assert list(other.notifies(timeout=0.2)) == []
        run(conn, protocol.awaited([], 30.0))
        job = app.functions["double"].enqueue(2)
        hand.drain()
        [notice] = other.notifies(timeout=20, stop_after=1)
        assert notice.payload == job.id


def test_it_is_fast(app: App, hand: Hand, conn: psycopg.Connection[Any], slow_looks: None) -> None:
    """Between the commit and the answer there is one notification and one question."""
    double, took = app.functions["double"], []
    for n in range(20):
        waiter = Waiter(double.enqueue(n))
        listening(conn)
        wait_for(lambda: bool(results_module.results_of(app.client.pool.dsn)._waiters))
        hand.drain(due_now=False)
        began = time.monotonic()
        waiter.join(20)
        took.append(time.monotonic() - began)
        assert waiter.got == 2 * n
    print(f"after the commit, in ms: {sorted(round(t * 1000, 1) for t in took)}")
