"""Functions of every kind, as users register them: what a call of them takes and gives."""

from __future__ import annotations

from collections.abc import Coroutine, Generator, Iterator
from datetime import timedelta
from typing import Any, assert_type

import psycopg
from psycopg.rows import DictRow, TupleRow

from pgqueue import App, Queue, Retry, current
from pgqueue.context import Current
from pgqueue.functions import AsyncStep, AsyncTransaction, AsyncWorkflow, Function, Step, Transaction, Workflow

app = App("postgresql:///shop", queues=[Queue("mail"), Queue("payments")], include=["shop.mail"])


@app.step
def plain(to: str, times: int = 1) -> list[str]:
    return [to] * times


@app.step(queue="mail", priority=2, retry=Retry(8, backoff="2s", cap="10m", never=[ValueError]), max_crashes=5)
def with_options(to: str, *, copy: bool = False) -> str:
    return f"{to} {copy} {current().step_key}"


@app.schedule("0 9 * * mon-fri", timezone="Europe/London", overlap=False)
@app.schedule(every="1h", name="hourly", misfire="skip", grace=30)
@app.workflow
def report(region: str = "all") -> int:
    return len(region)


assert_type(report(region="north"), int)


@app.step
async def tick(n: int) -> int:
    return n


@app.step(name="shop.tock", aliases=["shop.old_tock"])
async def tock() -> None: ...


@app.transaction
def book(tx: psycopg.Connection, order_id: int, charge: str = "") -> int:
    row = tx.execute("insert into booking values (%s, %s) returning id", (order_id, charge)).fetchone()
    assert_type(row, TupleRow | None)
    return order_id


@app.transaction(isolation="serializable", idle_timeout=timedelta(seconds=5), key="order_id")
def book_with_options(tx: psycopg.Connection[Any], order_id: int) -> str:
    return str(order_id)


@app.transaction
def book_with_dicts(tx: psycopg.Connection[DictRow]) -> bool:
    return True


@app.transaction
async def pay(tx: psycopg.AsyncConnection, cents: int) -> float:
    cursor = await tx.execute("select 1")
    assert_type(await cursor.fetchone(), TupleRow | None)
    return cents / 100


@app.transaction(queue="payments", idle_timeout="5s")
async def pay_with_options(tx: psycopg.AsyncConnection[Any], cents: int, *, tip: int = 0) -> int:
    return cents + tip


@app.workflow
def fulfil(order_id: int) -> str:
    assert_type(plain("a", times=2), list[str])
    assert_type(with_options("a", copy=True), str)
    assert_type(book(order_id), int)  # its caller knows nothing of the connection
    assert_type(book(order_id, charge="c"), int)
    assert_type(book_with_options(order_id=order_id), str)
    assert_type(book_with_dicts(), bool)
    return "done"


@app.workflow(queue="payments", key="order_id", retry=Retry(2))
def fulfil_with_options(order_id: int) -> str:
    assert_type(fulfil.fn(order_id), str)
    return "done"


@app.workflow
async def fulfil_async(order_id: int) -> str:
    coroutine: Coroutine[Any, Any, int] = tick(1)
    assert_type(await coroutine, int)
    assert_type(await tick(n=1), int)
    assert_type(await tick.aio(1), int)
    await tock()
    assert_type(await pay(order_id), float)
    assert_type(await pay_with_options(order_id, tip=1), int)
    assert_type(await plain.aio("a"), list[str])
    assert_type(await book.aio(order_id, "c"), int)
    return "done"


@app.workflow(queue="mail")
async def fulfil_async_with_options(order_id: int) -> None:
    assert_type(await fulfil_async.aio(order_id), str)
    assert_type(await fulfil_async.fn(order_id), str)


@app.on("worker_start")
def warm_up() -> None: ...


@app.on("worker_stop")
async def cool_down() -> None: ...


@app.middleware
def tenants(job: Current) -> Iterator[None]:
    assert_type(job.job_id, str)
    yield


@app.middleware
def traces(job: Current) -> Generator[None, None, None]:
    yield


async def what_decorators_return() -> None:
    assert_type(warm_up(), None)
    await cool_down()
    kinds: list[Function[..., Any]] = [plain, tick, book, pay, fulfil, fulfil_async]
    assert kinds
    step: Step[..., list[str]] = plain
    async_step: AsyncStep[[int], int] = tick
    transaction: Transaction[..., int] = book
    async_transaction: AsyncTransaction[[int], float] = pay
    workflow: Workflow[[int], str] = fulfil
    async_workflow: AsyncWorkflow[[int], str] = fulfil_async
    assert_type(step.name, str)
    assert [step, async_step, transaction, async_transaction, workflow, async_workflow]
