"""What is enqueued, and the handles that come back. ``app`` and its functions are those of registered.py."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, assert_type

import psycopg

from pgqueue import AsyncClient, AsyncJob, Client, Job, Retry, current
from pgqueue.context import Current
from pgqueue.functions import AsyncUsing, Call, Enqueueable, Using
from pgqueue.model import AttemptRecord, State, StepRecord
from tests.typing.registered import app, book, fulfil, fulfil_async, pay, plain, tick


def produce() -> None:
    job = fulfil.enqueue(7)
    assert_type(job, Job[str])
    assert_type(job.id, str)
    assert_type(job.result(), str)
    assert_type(job.result(timeout=60), str)
    assert_type(job.result(timeout="1m"), str)
    assert_type(job.status(), State)
    assert_type(job.steps(), list[StepRecord])
    assert_type(job.attempts(), list[AttemptRecord])
    assert_type(job.cancel(), bool)
    assert_type(job.requeue(), bool)
    assert_type(job.rerun(from_step=2), Job[str])
    assert_type(book.enqueue(7, charge="c"), Job[int])
    assert_type(fulfil_async.enqueue(7), Job[str])
    assert_type(tick.enqueue(7).result(), int)
    later = fulfil.options(delay="10m", priority=2, id="order-7", queue="mail", key="7", retry=Retry(2), max_crashes=1)
    assert_type(later.enqueue(7), Job[str])
    assert_type(later.options(delay=timedelta(hours=1)).enqueue(7), Job[str])
    assert_type(plain.options(at=datetime(2030, 1, 1, tzinfo=UTC)).enqueue("a", times=2), Job[list[str]])
    assert_type(plain.call("a", 2), Call[list[str]])
    assert_type(plain.map(["a", "b"]), list[Call[list[str]]])
    assert_type(app.enqueue_many(plain.map(["a", "b"])), list[Job[list[str]]])
    assert_type(app.enqueue_many([tick.call(1), tick.options(delay=1).call(2)]), list[Job[int]])
    app.enqueue_many([tick.call(1), plain.call("a"), pay.call(5), fulfil.call(7)])
    assert_type(app.job("..."), Job[Any])


def produce_in_a_transaction(conn: psycopg.Connection) -> None:
    using = book.using(conn)
    assert using.enqueue(7)
    assert_type(using(7, "c"), int)
    assert_type(using.enqueue(7), Job[int])
    assert_type(fulfil.using(conn).enqueue(7), Job[str])
    assert_type(fulfil.using(conn).options(delay=3).enqueue(7), Job[str])
    assert_type(fulfil.options(delay=3).using(conn).enqueue(7), Job[str])
    assert_type(app.enqueue_many(tick.map([1]), conn=conn), list[Job[int]])
    some: Using[..., str] = fulfil.using(conn)
    enqueueable: Enqueueable[[int], str] = fulfil.options(delay=3)
    assert [some, enqueueable]


async def produce_async() -> None:
    job = await fulfil.aenqueue(7)
    assert_type(job, AsyncJob[str])
    assert_type(await job.result(timeout=60), str)
    assert_type(await job.status(), State)
    assert_type(await job.steps(), list[StepRecord])
    assert_type(await job.attempts(), list[AttemptRecord])
    assert_type(await job.cancel(), bool)
    assert_type(await job.requeue(), bool)
    assert_type(await job.rerun(), AsyncJob[str])
    assert_type(await pay.aenqueue(5), AsyncJob[float])
    assert_type(await tick.options(delay="1s").aenqueue(5), AsyncJob[int])
    assert_type(await app.aenqueue_many(plain.map(["a"])), list[AsyncJob[list[str]]])
    assert_type(app.async_job("..."), AsyncJob[Any])
    await app.aclose()


async def produce_async_in_a_transaction(conn: psycopg.AsyncConnection) -> None:
    assert_type(await pay.using(conn)(5), float)
    assert_type(await pay.using(conn).aenqueue(5), AsyncJob[float])
    assert_type(await fulfil.using(conn).options(priority=0).aenqueue(7), AsyncJob[str])
    assert_type(await app.aenqueue_many(tick.map([1]), conn=conn), list[AsyncJob[int]])
    some: AsyncUsing[..., str] = fulfil.using(conn)
    assert some


def without_the_code(conn: psycopg.Connection) -> None:
    with Client("postgresql:///shop") as client:
        assert_type(client.enqueue("shop.fulfil", {"order_id": 7}, queue="payments"), Job[Any])
        assert_type(client.enqueue("shop.fulfil", conn=conn), Job[Any])
        assert_type(client.job("..."), Job[Any])


async def without_the_code_async(conn: psycopg.AsyncConnection) -> None:
    async with AsyncClient() as client:
        assert_type(await client.enqueue("shop.fulfil", {"order_id": 7}, delay=timedelta(minutes=1)), AsyncJob[Any])
        assert_type(await client.enqueue("shop.fulfil", conn=conn), AsyncJob[Any])
        assert_type(client.job("..."), AsyncJob[Any])


def inside() -> None:
    job = current()
    assert_type(job, Current)
    assert_type(job.step_key, str)
    assert_type(job.queue, str)
