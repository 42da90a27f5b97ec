"""What only ``async def`` jobs have: awaiting, cancelling, tasks that outlive things, and the two colours beside each other.

What both colours do alike is in test_runtime.py. Run by hand against the real database; processes are in test_async_workers.py.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import threading
from contextvars import ContextVar
from typing import Any

import psycopg
import pytest

from pgqueue import (
    App,
    AsyncClient,
    AsyncJob,
    IdConflict,
    JobCancelled,
    JobFailed,
    ResultTimeout,
    Retry,
    StepFailed,
    UnknownJob,
    WrongColour,
    current,
    gather,
)
from pgqueue.context import process
from pgqueue.errors import BadValue, DatabaseUnreachable, OutsideJob, TransactionMisused, UnknownQueue, UnknownWorkflow
from tests.support import Hand, Server, drain, violations, wait_for

ONCE = Retry(1)
NEVER_AWAITED = pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")


@pytest.fixture
def calls(conn: psycopg.Connection[Any]) -> list[Any]:
    conn.execute("CREATE TABLE mark (what text)")
    return []


async def mark(tx: psycopg.AsyncConnection[Any], what: str) -> None:
    await tx.execute("INSERT INTO mark VALUES (%s)", (what,))


def marks(conn: psycopg.Connection[Any]) -> list[str]:
    return [row[0] for row in conn.execute("SELECT what FROM mark ORDER BY ctid")]


# ------------------------------------------------------------------------------------------------------------ colours


def test_a_def_called_bare_in_async_code_is_an_error_and_does_not_run(app: App, dsn: str, conn: Any, calls: list[Any]) -> None:
    @app.step(name="shop.plain")
    def plain() -> None:
        calls.append("ran")

    @app.transaction(name="shop.write")
    def write(tx: psycopg.Connection[Any]) -> None:
        calls.append("ran")

    @app.workflow(name="flow")
    async def flow(n: int) -> None:
        for function in (plain, write):
            with pytest.raises(WrongColour) as error:
                function()
            calls.append(str(error.value))

    @app.step(name="inside")
    async def inside() -> None:
        with pytest.raises(WrongColour):
            plain()

    flow.enqueue(1)
    job = inside.enqueue()
    drain(app, dsn)
    assert job.status() == "succeeded"
    assert calls == [
        "shop.plain is a def, and a call of it would block the event loop: in async code write await plain.aio(...), "
        "which runs it in a thread",
        "shop.write is a def, and a call of it would block the event loop: in async code write await write.aio(...), "
        "which runs it in a thread",
    ]


def test_an_async_def_called_from_a_def_is_an_error_and_does_not_run(app: App, dsn: str, conn: Any, calls: list[Any]) -> None:
    @app.step(name="tick")
    async def tick() -> None:
        calls.append("ran")

    @app.transaction(name="write")
    async def write(tx: psycopg.AsyncConnection[Any]) -> None:
        calls.append("ran")

    @app.workflow(name="flow")
    def flow() -> None:
        for call in (tick, write, tick.aio, tick.aenqueue, lambda: app.aenqueue_many([tick.call()])):
            with pytest.raises(WrongColour) as error:
                call()  # not even a coroutine comes back that nobody would await
            calls.append(str(error.value))

    job = flow.enqueue()
    drain(app, dsn)
    assert job.status() == "succeeded"
    assert job.steps() == []
    text = "{} has to be awaited, and was called in a def: make the caller an async def, or this one a def"
    enqueue = "aenqueue() has to be awaited, and was called in a def: use enqueue()"
    assert calls == [text.format("tick"), text.format("write"), text.format("tick"), enqueue, enqueue]


def test_enqueue_in_async_code_is_an_error(app: App, dsn: str, conn: Any, calls: list[Any]) -> None:
    @app.step(name="leaf")
    def leaf() -> None: ...

    @app.transaction(name="write")
    async def write(tx: psycopg.AsyncConnection[Any]) -> None:
        with pytest.raises(WrongColour):
            leaf.enqueue()
        with pytest.raises(WrongColour):  # in a thread it would not block, but the transaction is not of that colour
            await asyncio.to_thread(leaf.enqueue)
        await leaf.aenqueue()

    @app.workflow(name="flow")
    async def flow() -> None:
        with pytest.raises(WrongColour) as error:
            leaf.enqueue()
        calls.append(str(error.value))
        await write()

    job = flow.enqueue()
    drain(app, dsn)
    assert job.status() == "succeeded", job.attempts()
    assert calls == ["enqueue() would block the event loop: in async code write await f.aenqueue(...)"]
    assert conn.execute("SELECT count(*) FROM pgqueue.jobs WHERE name = 'leaf'").fetchone() == (1,)


def test_a_transaction_needs_a_connection_of_its_colour(app: App, dsn: str, calls: list[Any]) -> None:
    @app.transaction(name="blocking")
    def blocking(tx: psycopg.Connection[Any], n: int) -> int:
        return n

    @app.transaction(name="waiting")
    async def waiting(tx: psycopg.AsyncConnection[Any], n: int) -> int:
        await mark(tx, "waiting")
        return n

    async def use() -> None:
        async with await psycopg.AsyncConnection.connect(dsn) as conn:
            with pytest.raises(WrongColour, match="blocking is a def and needs a connection of that kind"):
                await blocking.using(conn)(1)
            assert await waiting.using(conn)(2) == 2
            await conn.rollback()

    asyncio.run(use())
    with psycopg.connect(dsn) as conn:
        with pytest.raises(WrongColour, match="waiting is an async def and needs a connection of that kind"):
            waiting.using(conn)(1)
        assert blocking.using(conn)(2) == 2
        assert marks(conn) == []
    with pytest.raises(TypeError, match=r"using\(\) takes a psycopg.Connection or AsyncConnection, not str"):
        waiting.using("dsn")  # type: ignore[call-overload]


def test_a_nested_transaction_needs_the_colour_of_the_one_it_is_part_of(app: App, dsn: str, conn: Any, calls: list[Any]) -> None:
    @app.transaction(name="inner")
    def inner(tx: psycopg.Connection[Any]) -> None:
        calls.append("ran")

    @app.transaction(name="outer", retry=ONCE)
    async def outer(tx: psycopg.AsyncConnection[Any]) -> None:
        await mark(tx, "outer")
        await inner.aio()

    job = outer.enqueue()
    drain(app, dsn)
    with pytest.raises(JobFailed, match="WrongColour: inner is a def, and the transaction that it was called in is not"):
        job.result(timeout=5)
    assert calls == []
    assert marks(conn) == []


def test_a_def_called_in_a_thread_of_an_async_workflow_is_an_error(app: App, dsn: str, conn: Any, calls: list[Any]) -> None:
    """It has the context of the job, but nobody there could store the checkpoint: the sessions belong to the loop."""

    @app.step(name="plain")
    def plain() -> None:
        calls.append("ran")

    @app.workflow(name="flow")
    async def flow() -> None:
        for call in (plain, plain.enqueue):
            with pytest.raises(WrongColour, match="called in a thread of an async workflow"):
                await asyncio.to_thread(call)

    job = flow.enqueue()
    drain(app, dsn)
    assert job.status() == "succeeded"
    assert calls == []
    assert job.steps() == []


# ---------------------------------------------------------------------------------------------- def functions by aio


def test_aio_runs_a_def_in_a_thread_with_the_context_of_the_job(app: App, dsn: str, conn: Any, calls: list[Any]) -> None:
    tenant: ContextVar[str] = ContextVar("tenant")
    went_on = threading.Event()

    @app.step(name="plain")
    def plain(n: int) -> list[Any]:
        assert went_on.wait(10), "the event loop goes on meanwhile"
        return [n, current().step_key, tenant.get(), threading.current_thread() is threading.main_thread()]

    @app.transaction(name="write")
    def write(tx: psycopg.Connection[Any], what: str) -> str:
        tx.execute("INSERT INTO mark VALUES (%s)", (what,))
        leaf.enqueue()
        return current().step_key

    @app.step(name="leaf")
    def leaf() -> None: ...

    @app.workflow(name="flow", retry=Retry(2, backoff=0.01))
    async def flow() -> list[Any]:
        tenant.set("acme")
        asyncio.get_running_loop().call_soon(went_on.set)
        results = [await plain.aio(7), await write.aio("x"), await leaf.aio()]
        calls.append("body")
        if len(calls) == 1:
            raise RuntimeError("once more")
        return results

    job = flow.enqueue()
    drain(app, dsn)
    assert job.result(timeout=5) == [[7, f"{job.id}:1", "acme", False], f"{job.id}:2", None]
    assert [(s.seq, s.name) for s in job.steps()] == [(1, "plain"), (2, "write"), (3, "leaf")]
    assert marks(conn) == ["x"], "replayed, not run again"
    assert conn.execute("SELECT count(*) FROM pgqueue.jobs WHERE name = 'leaf'").fetchone() == (1,)


@pytest.mark.parametrize(
    "error", [StopIteration, StopAsyncIteration, KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError]
)
def test_whatever_a_def_raises_in_its_thread_is_an_error_of_the_step(
    app: App, dsn: str, conn: Any, error: type[BaseException]
) -> None:
    @app.step(name="strange", retry=ONCE)
    def strange() -> None:
        raise error

    @app.transaction(name="tx_strange", retry=ONCE)
    def tx_strange(tx: psycopg.Connection[Any]) -> None:
        raise error

    @app.workflow(name="flow")
    async def flow() -> int:
        caught = 0
        for function in (strange, tx_strange):
            try:
                await function.aio()
            except StepFailed:
                caught += 1
        return caught

    job = flow.enqueue()
    drain(app, dsn)
    assert job.result(timeout=5) == 2


def test_inside_an_async_step_others_are_part_of_it(app: App, dsn: str, conn: Any, calls: list[Any]) -> None:
    @app.step(name="plain")
    def plain(n: int) -> int:
        return leaf(n) + 1

    @app.step(name="leaf")
    def leaf(n: int) -> int:
        return n

    @app.step(name="tick")
    async def tick(n: int) -> int:
        await asyncio.sleep(0)
        return n

    @app.step(name="outer")
    async def outer() -> list[int]:
        one_by_one = [await plain.aio(1), await tick(2), await plain.aio(3)]
        return [*one_by_one, *await asyncio.gather(plain.aio(4), tick(5), plain.aio(6), tick(7))]

    @app.workflow(name="flow")
    async def flow() -> list[int]:
        return await outer()

    job = flow.enqueue()
    drain(app, dsn)
    assert job.result(timeout=5) == [2, 2, 4, 5, 5, 7, 7]
    assert [s.name for s in job.steps()] == ["outer"]


# ------------------------------------------------------------------------------------------------- one step at a time


def test_two_steps_at_once_are_an_error_also_when_replayed(app: App, dsn: str, conn: Any, calls: list[Any]) -> None:
    @app.transaction(name="write")
    async def write(tx: psycopg.AsyncConnection[Any], what: str) -> None:
        await mark(tx, what)
        calls.append(what)

    @app.workflow(name="flow", retry=Retry(2, backoff=0.01))
    async def flow() -> None:
        first, second = write("first"), write("second")
        results = await asyncio.gather(first, second, return_exceptions=True)
        calls.append(str(results[1]))
        raise RuntimeError

    job = flow.enqueue()
    drain(app, dsn)
    assert job.status() == "failed"
    text = "write was called while step 1 was running: a workflow runs one step at a time, or several in gather()"
    assert calls == ["first", text, text], "the second time from its checkpoint"
    assert marks(conn) == ["first"]
    assert [s.seq for s in job.steps()] == [1]


@NEVER_AWAITED
def test_a_step_that_is_never_awaited_is_an_error(app: App, dsn: str, conn: Any, calls: list[Any]) -> None:
    @app.step(name="tick")
    async def tick(n: int) -> int:
        calls.append(n)
        return n

    @app.workflow(name="forgotten")
    async def forgotten() -> None:
        await tick(1)
        tick(2)

    @app.workflow(name="between")
    async def between() -> None:
        tick(3)
        await tick(4)

    @app.workflow(name="too_soon")
    async def too_soon() -> None:
        asyncio.create_task(tick(5))  # noqa: RUF006
        await asyncio.sleep(0)

    @app.workflow(name="backwards")
    async def backwards() -> None:
        first, second = tick(6), tick(7)
        await second
        await first

    jobs = [forgotten.enqueue(), between.enqueue(), too_soon.enqueue(), backwards.enqueue()]
    drain(app, dsn)
    errors = []
    for job in jobs:
        with pytest.raises(JobFailed) as error:
            job.result(timeout=5)
        errors.append(f"{error.value.type}: {error.value.message}")
    assert errors == [
        "OutsideJob: the workflow returned, but step 2 was called and never awaited",
        "OutsideJob: tick was called as step 2, but step 1 was not awaited before it",
        "OutsideJob: the workflow returned while step 1 was running: await every step",
        "OutsideJob: tick was called as step 2, but step 1 was not awaited before it",
    ]
    assert calls == [1, 5]


def test_numbers_are_given_at_the_call(app: App, dsn: str, conn: Any, calls: list[Any]) -> None:
    @app.step(name="one")
    async def one() -> str:
        return current().step_key

    @app.step(name="two")
    async def two() -> str:
        return current().step_key

    @app.workflow(name="flow")
    async def flow() -> list[Any]:
        first, enqueued, third = one(), one.aenqueue(), two()
        return [await first, (await enqueued).id, await third]

    job = flow.enqueue()
    drain(app, dsn)
    keys = job.result(timeout=5)
    assert [keys[0], keys[2]] == [f"{job.id}:1", f"{job.id}:3"]
    assert [s.name for s in job.steps()] == ["one", "pgqueue.enqueue", "two"]
    assert app.job(keys[1]).status() == "succeeded"


# -------------------------------------------------------------------------------------------------- what outlives what


def test_a_task_that_outlives_its_step_can_do_nothing(app: App, dsn: str, conn: Any, calls: list[Any]) -> None:
    over: list[asyncio.Event] = []
    tasks: list[asyncio.Task[Any]] = []

    @app.step(name="tick")
    async def tick() -> None:
        calls.append("tick")

    @app.transaction(name="inner")
    async def inner(tx: psycopg.AsyncConnection[Any]) -> None:
        await mark(tx, "inner")

    async def linger(tx: psycopg.AsyncConnection[Any] | None) -> None:
        await over[0].wait()
        for attempt in (tick, inner, tick.aenqueue, *([lambda: mark(tx, "late"), lambda: tx.commit()] if tx else [])):
            try:
                await attempt()
            except (OutsideJob, TransactionMisused) as error:
                calls.append(type(error).__name__)

    @app.step(name="step")
    async def step() -> None:
        tasks.append(asyncio.create_task(linger(None)))

    @app.transaction(name="write")
    async def write(tx: psycopg.AsyncConnection[Any], lingers: bool) -> None:
        await mark(tx, "in time")
        if lingers:
            tasks.append(asyncio.create_task(linger(tx)))

    @app.workflow(name="flow")
    async def flow() -> None:
        over.append(asyncio.Event())
        await step()
        await write(True)
        over[0].set()
        await asyncio.gather(*tasks)
        await write(False)  # on the same connection

    job = flow.enqueue()
    drain(app, dsn)
    assert job.status() == "succeeded", job.attempts()
    assert calls == ["OutsideJob"] * 3 + ["OutsideJob"] * 3 + ["TransactionMisused"] * 2
    assert marks(conn) == ["in time", "in time"]
    assert [s.name for s in job.steps()] == ["step", "write", "write"]
    assert conn.execute("SELECT count(*) FROM pgqueue.job").fetchone() == (1,)


def test_a_task_that_outlives_its_job_can_do_nothing(app: App, dsn: str, conn: Any, calls: list[Any]) -> None:
    over: list[asyncio.Event] = []
    tasks: list[asyncio.Task[Any]] = []

    @app.transaction(name="write")
    async def write(tx: psycopg.AsyncConnection[Any], what: str) -> None:
        await mark(tx, what)

    async def linger() -> None:
        await over[0].wait()
        for attempt in (write, write.aenqueue):
            try:
                await attempt("late")
            except OutsideJob as error:
                calls.append(str(error))

    @app.workflow(name="flow")
    async def flow() -> None:
        over.append(asyncio.Event())
        tasks.append(asyncio.create_task(linger()))
        await write("in time")

    @app.step(name="later")
    async def later() -> None:
        over[0].set()
        await asyncio.gather(*tasks)

    job = flow.enqueue()
    hand = Hand(app, dsn)
    [claimed] = hand.claim()
    settlement = hand.run(claimed)
    later.enqueue()
    hand.drain()  # before the job is settled: it is still ours
    assert settlement is not None
    hand.settle(settlement)
    hand.close()
    assert calls == [f"job {job.id} has ended, or begun again: a thread or a task has outlived its run"] * 2
    assert job.status() == "succeeded"
    assert marks(conn) == ["in time"]
    assert [s.seq for s in job.steps()] == [1]


def test_a_thread_that_outlives_its_step_can_do_nothing(app: App, dsn: str, conn: Any, calls: list[Any]) -> None:
    over = threading.Event()
    threads: list[threading.Thread] = []

    @app.step(name="plain")
    def plain() -> None:
        calls.append("ran")

    @app.transaction(name="write")
    def write(tx: psycopg.Connection[Any]) -> None:
        def linger() -> None:
            over.wait(10)
            for attempt in (plain, plain.enqueue, lambda: tx.execute("INSERT INTO mark VALUES ('late')"), tx.commit):
                try:
                    attempt()
                except (OutsideJob, TransactionMisused) as error:
                    calls.append(type(error).__name__)

        tx.execute("INSERT INTO mark VALUES ('in time')")
        threads.append(threading.Thread(target=contextvars.copy_context().run, args=(linger,)))
        threads[0].start()

    @app.workflow(name="flow")
    async def flow() -> None:
        await write.aio()
        over.set()
        await asyncio.to_thread(threads[0].join)

    job = flow.enqueue()
    drain(app, dsn)
    assert job.status() == "succeeded"
    assert calls == ["OutsideJob", "OutsideJob", "TransactionMisused", "TransactionMisused"]
    assert marks(conn) == ["in time"]
    assert conn.execute("SELECT count(*) FROM pgqueue.job").fetchone() == (1,)


def test_a_task_of_an_earlier_run_can_do_nothing(app: App, dsn: str, conn: Any, calls: list[Any]) -> None:
    """A lost connection makes the job begin again. Who was with the first run takes no numbers of the second."""
    again: list[asyncio.Event] = []
    tasks: list[asyncio.Task[Any]] = []

    @app.transaction(name="write")
    async def write(tx: psycopg.AsyncConnection[Any], what: str) -> None:
        await mark(tx, what)
        if not calls:
            calls.append("lost")
            conn.execute("SELECT pg_terminate_backend(%s)", (tx.info.backend_pid,))

    async def linger() -> None:
        try:
            await again[0].wait()
            await write("late")
        except OutsideJob:
            calls.append("refused")

    @app.workflow(name="flow")
    async def flow() -> None:
        if tasks:
            again[0].set()
        else:
            again.append(asyncio.Event())
            tasks.append(asyncio.create_task(linger()))
        await write("one")
        await tasks[0]
        await write("two")

    job = flow.enqueue()
    drain(app, dsn)
    assert job.status() == "succeeded"
    assert calls == ["lost", "refused"]
    assert marks(conn) == ["one", "two"]
    assert [s.seq for s in job.steps()] == [1, 2]


def test_a_task_without_a_job_is_told_so(app: App, dsn: str, conn: Any, calls: list[Any]) -> None:
    """Whoever starts it in an empty context, or before there are jobs: its calls would lose their checkpoint."""

    @app.step(name="tick")
    async def tick() -> None:
        calls.append("ran")

    async def stray() -> None:
        with pytest.raises(OutsideJob, match="belongs to no job"):
            await tick()
        calls.append((await tick.aenqueue()).id)

    @app.workflow(name="flow")
    async def flow() -> None:
        await asyncio.create_task(stray(), context=contextvars.Context())

    flow.enqueue()
    hand = Hand(app, dsn)
    process.is_worker = True
    try:
        [job] = hand.claim()
        hand.run(job)
    finally:
        process.is_worker = False
        hand.close()
    assert len(calls) == 1
    assert app.job(calls[0]).status() == "ready"


# --------------------------------------------------------------------------------------------------------- cancelling


@pytest.mark.parametrize("how", ["alone", "in a gather"])
def test_a_timeout_in_a_step_is_a_failed_try(app: App, dsn: str, conn: Any, calls: list[Any], how: str) -> None:
    @app.step(name="slow", retry=Retry(2, backoff=0.01))
    async def slow() -> None:
        calls.append("slow")
        await asyncio.sleep(60)

    @app.transaction(name="slow_write", retry=ONCE)
    async def slow_write(tx: psycopg.AsyncConnection[Any]) -> None:
        await mark(tx, "rolled back")
        await tx.execute("SELECT pg_sleep(60)")

    @app.step(name="quick")
    async def quick() -> None: ...

    @app.workflow(name="flow")
    async def flow() -> list[str]:
        errors = []
        for function in (slow, slow_write):
            try:
                async with asyncio.timeout(0.1):
                    await (gather.aio(function.call(), quick.call()) if how == "in a gather" else function())
            except StepFailed as error:
                errors.append(error.type)
        return errors

    job = flow.enqueue()
    drain(app, dsn)
    assert job.result(timeout=5) == ["CancelledError", "CancelledError"]
    assert calls == ["slow", "slow"]
    others = ["succeeded"] if how == "in a gather" else []
    assert [s.status for s in job.steps()] == ["failed", *others, "failed", *others]
    assert marks(conn) == []


@pytest.mark.parametrize("how", ["async def", "def"])
def test_a_timeout_during_commit_changes_nothing(app: App, dsn: str, conn: Any, calls: list[Any], how: str) -> None:
    """COMMIT waits, in the server, for a lock that the test holds. The timeout comes meanwhile. What is committed counts."""
    conn.execute("""
        CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS
            'BEGIN PERFORM pg_advisory_xact_lock(1); RETURN NULL; END';
        CREATE CONSTRAINT TRIGGER wait AFTER INSERT ON pgqueue.checkpoint DEFERRABLE INITIALLY DEFERRED
            FOR EACH ROW EXECUTE FUNCTION wait()""")

    @app.transaction(name="write")
    async def write(tx: psycopg.AsyncConnection[Any]) -> int:
        await mark(tx, "x")
        return 1

    @app.transaction(name="write_def")
    def write_def(tx: psycopg.Connection[Any]) -> int:
        tx.execute("INSERT INTO mark VALUES ('x')")
        return 1

    @app.step(name="after")
    async def after(n: int) -> int:
        return n + 1

    @app.workflow(name="flow")
    async def flow() -> int:
        asyncio.get_running_loop().call_later(0.5, lambda: conn.execute("SELECT pg_advisory_unlock(1)"))
        first = 0
        try:
            async with asyncio.timeout(0.2):
                first = await (write() if how == "async def" else write_def.aio())
        except TimeoutError:
            calls.append("timeout")
        return await after(first)

    conn.execute("SELECT pg_advisory_lock(1)")
    job = flow.enqueue()
    drain(app, dsn)
    assert job.result(timeout=5) == 2
    assert calls == []
    assert marks(conn) == ["x"]
    assert [(s.seq, s.status) for s in job.steps()] == [(1, "succeeded"), (2, "succeeded")]


def test_a_timeout_while_the_database_is_away_loses_no_step(
    app: App, dsn: str, server: Server, conn: Any, calls: list[Any]
) -> None:
    """The step has run, and cannot be stored yet. A timeout must not carry the workflow on without it."""

    @app.step(name="one")
    async def one(away: bool) -> int:
        calls.append("one")
        if away:
            other.execute(f"ALTER DATABASE {conn.info.dbname} ALLOW_CONNECTIONS false")
            conn.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE '%:step:%'")
            asyncio.get_running_loop().call_later(
                0.5, lambda: other.execute(f"ALTER DATABASE {conn.info.dbname} ALLOW_CONNECTIONS true")
            )
        return len(calls)

    @app.workflow(name="flow")
    async def flow() -> list[int]:
        results = [await one(False)]
        try:
            async with asyncio.timeout(0.2):
                results.append(await one(not calls[1:]))
        except TimeoutError:
            calls.append("timeout")
        return [*results, await one(False)]

    job = flow.enqueue()
    with psycopg.connect(server.dsn, autocommit=True) as other:
        drain(app, dsn)
    assert [s.seq for s in job.steps()] == [1, 2, 3]
    assert "timeout" not in calls
    assert job.result(timeout=5) == [s.result for s in job.steps()]


def test_a_step_that_cancels_its_own_task_is_stored(app: App, dsn: str, conn: Any, calls: list[Any]) -> None:
    """It has no await of its own that could be cancelled: so pgqueue's would be, and the step would run for ever."""

    @app.step(name="suicidal")
    async def suicidal() -> int:
        calls.append("ran")
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        return 1

    @app.workflow(name="flow")
    async def flow() -> int:
        async with asyncio.timeout(0):
            return await suicidal()

    job = flow.enqueue()
    drain(app, dsn)
    assert job.result(timeout=5) == 1
    assert calls == ["ran"]


def test_timeouts_at_any_moment_neither_lose_nor_double_anything(app: App, dsn: str, conn: Any, calls: list[Any]) -> None:
    @app.transaction(name="write", retry=Retry(3, backoff=0.01))
    async def write(tx: psycopg.AsyncConnection[Any], what: str) -> str:
        await mark(tx, what)
        return what

    @app.transaction(name="write_def", retry=Retry(3, backoff=0.01))
    def write_def(tx: psycopg.Connection[Any], what: str) -> str:
        tx.execute("INSERT INTO mark VALUES (%s)", (what,))
        return what

    @app.workflow(name="flow")
    async def flow(i: int, seconds: float) -> list[str]:
        done = []
        for call in (lambda: write(f"{i}a"), lambda: write_def.aio(f"{i}b"), lambda: write(f"{i}c")):
            try:
                async with asyncio.timeout(seconds):
                    done.append(await call())
            except StepFailed:
                pass
        async with asyncio.timeout(seconds):
            both = await gather.aio(write.call(f"{i}d"), write_def.call(f"{i}e"), return_exceptions=True)
        return [*done, *(what for what in both if not isinstance(what, StepFailed))]

    jobs = app.enqueue_many([flow.call(i, i * 0.0002) for i in range(50)])
    drain(app, dsn)
    done = [what for job in jobs for what in job.result(timeout=5)]
    assert sorted(marks(conn)) == sorted(done)
    assert done
    assert {len(job.steps()) for job in jobs} == {5}
    assert violations(conn) == []


# ---------------------------------------------------------------------------------------------------------- producing


def test_what_an_async_producer_can_ask_and_do(app: App, dsn: str, conn: Any) -> None:
    broken = [True]

    @app.step(name="double", retry=ONCE)
    async def double(n: int) -> int:
        if n == 13 and broken:
            raise ValueError("unlucky")
        return 2 * n

    @app.workflow(name="flow")
    async def flow(n: int) -> int:
        return await double(n)

    async def produce() -> None:
        assert await double(4) == await double.aio(4) == 8, "outside of a job the plain function"
        assert await app.aenqueue_many([]) == []
        good, bad, unwanted = await app.aenqueue_many(flow.map([1, 13, 3]))
        assert isinstance(good, AsyncJob)
        assert await good.status() == "ready"
        with pytest.raises(ResultTimeout):
            await good.result(timeout=0.02)
        assert await unwanted.cancel()
        await asyncio.to_thread(drain, app, dsn)
        assert await good.result(timeout=5) == 2
        assert [(s.seq, s.result) for s in await good.steps()] == [(1, 2)]
        with pytest.raises(JobFailed, match="unlucky"):
            await bad.result(timeout=5)
        with pytest.raises(JobCancelled):
            await unwanted.result(timeout=5)
        assert {a.kind for a in await bad.attempts()} == {"error"}
        assert not await good.cancel(), "it has ended"
        assert not await good.requeue(), "it has succeeded"
        broken.clear()
        assert await bad.requeue()
        await asyncio.to_thread(drain, app, dsn)
        assert await app.async_job(bad.id).result(timeout=5) == 26
        with pytest.raises(UnknownJob):
            await app.async_job("01920000-0000-7000-8000-000000000000").status()
        with pytest.raises(UnknownJob, match="not the id of a job"):
            app.async_job("order-7")
        with pytest.raises(BadValue):
            await flow.aenqueue(float("nan"))  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="flow"):
            flow.aenqueue("one", "two")  # type: ignore[call-arg]
        await app.aclose()

    asyncio.run(produce())


def test_async_using_joins_the_callers_transaction(app: App, dsn: str, conn: Any) -> None:
    @app.step(name="leaf")
    async def leaf(n: int) -> None: ...

    async def produce() -> None:
        async with await psycopg.AsyncConnection.connect(dsn) as mine:
            gone = await leaf.using(mine).aenqueue(1)
            await mine.rollback()
            kept = await leaf.using(mine).options(id="kept", delay="1h").aenqueue(2)
            [many] = await app.aenqueue_many([leaf.call(3)], conn=mine)
            assert await app.aenqueue_many([], conn=mine) == []
            with pytest.raises(UnknownJob):
                await kept.status()  # not committed yet
            await mine.commit()
            assert [await kept.status(), await many.status()] == ["scheduled", "ready"]
            with pytest.raises(UnknownJob):
                await gone.status()
            same = await leaf.options(id="kept", delay="1h").aenqueue(2)
            assert same == kept
            with pytest.raises(IdConflict):
                await leaf.options(id="kept").aenqueue(4)
        await app.aclose()

    asyncio.run(produce())
    assert conn.execute("SELECT count(*) FROM pgqueue.job").fetchone() == (2,)


def test_async_client(dsn: str, conn: Any) -> None:
    async def produce() -> None:
        async with AsyncClient(dsn) as client:
            job = await client.enqueue("tomorrow", {"n": 1}, queue="default", priority=2)
            assert await client.job(job.id).status() == "ready"
            with pytest.raises(UnknownWorkflow):
                await client.enqueue("tomorrow")
            with pytest.raises(UnknownQueue):
                await client.enqueue("tomorrow", queue="nowhere")
            with pytest.raises(BadValue, match="a dict of parameter names"):
                await client.enqueue("tomorrow", [1], queue="default")  # type: ignore[arg-type]
            async with await psycopg.AsyncConnection.connect(dsn) as mine:
                await client.enqueue("tomorrow", queue="default", conn=mine)
                await mine.rollback()
        assert "AsyncPool()" in repr(client.pool), "never the DSN"

    asyncio.run(produce())
    assert conn.execute("SELECT name, priority FROM pgqueue.jobs").fetchall() == [("tomorrow", 2)]


def test_an_async_producer_survives_lost_connections(app: App, dsn: str, conn: Any) -> None:
    @app.step(name="leaf")
    async def leaf(n: int) -> None: ...

    async def produce() -> None:
        for n in range(5):
            await asyncio.gather(*[leaf.aenqueue(n) for _ in range(10)])
            conn.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'pgqueue:client'")
        await app.aclose()

    asyncio.run(produce())
    assert conn.execute("SELECT count(*) FROM pgqueue.job").fetchone() == (50,)


def test_every_event_loop_has_its_own_connections(app: App, dsn: str, conn: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Also where nobody says aclose(), as after asyncio.run in a script, and where two loops run at once."""
    caplog.set_level(logging.ERROR, "psycopg.pool")  # a record of what it says, kept by pytest, holds the connection

    @app.step(name="leaf")
    async def leaf(n: int) -> None: ...

    async def produce(n: int, close: bool) -> None:
        await asyncio.gather(*[leaf.aenqueue(n) for _ in range(20)])
        if close:
            await app.aclose()
            await leaf.aenqueue(n)  # opens them again
            await app.aclose()
            await app.aclose()

    for n, close in enumerate([False, True, False]):
        asyncio.run(produce(n, close))
    threads = [threading.Thread(target=asyncio.run, args=(produce(n, True),)) for n in range(3, 6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    asyncio.run(produce(6, True))
    assert conn.execute("SELECT count(*) FROM pgqueue.job").fetchone() == (7 * 20 + 5,)
    gc.collect()  # whatever a closed loop has left behind is closed without a warning
    clients = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgqueue:client'"
    wait_for(lambda: conn.execute(clients).fetchone() == (0,), 30, "their connections to be closed")


def test_one_callers_timeout_while_connecting_is_not_anothers(app: App, dsn: str, conn: Any) -> None:
    @app.step(name="leaf")
    async def leaf(n: int) -> None: ...

    async def produce() -> None:
        async def impatient() -> None:
            async with asyncio.timeout(0):
                await leaf.aenqueue(0)

        results = await asyncio.gather(impatient(), leaf.aenqueue(1), leaf.aenqueue(2), return_exceptions=True)
        assert [type(result) for result in results] == [TimeoutError, AsyncJob, AsyncJob]
        await app.aclose()

    asyncio.run(produce())
    assert conn.execute("SELECT count(*) FROM pgqueue.job").fetchone() == (2,)


def test_an_async_producer_hears_at_once_that_there_is_no_database() -> None:
    app = App("postgresql://nobody@127.0.0.1:1/nowhere")

    @app.step(name="leaf")
    async def leaf(n: int) -> None: ...

    async def produce() -> None:
        for _ in range(2):
            with pytest.raises(DatabaseUnreachable, match="cannot connect"):
                await leaf.aenqueue(1)
        await app.aclose()

    asyncio.run(produce())
