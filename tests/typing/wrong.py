"""What type checkers refuse. An ignore that nothing needs is an error, so each line here is one that both of them refuse."""

from __future__ import annotations

from typing import Any

import psycopg

from pgqueue import Client, Queue
from tests.typing.registered import app, book, fulfil, fulfil_async, pay, plain, tick

plain(1)  # type: ignore[arg-type]
plain()  # type: ignore[call-arg]
plain("a", count=2)  # type: ignore[call-arg]
plain.enqueue(1)  # type: ignore[arg-type]
plain.enqueue("a", "b")  # type: ignore[arg-type]
plain.call("a", times="b")  # type: ignore[arg-type]
plain.map(5)  # type: ignore[arg-type]
plain.options(dealy="10m")  # type: ignore[call-arg]
plain.options(delay=[10])  # type: ignore[arg-type]
plain.options(priority="high")  # type: ignore[arg-type]
book("seven")  # type: ignore[arg-type]
fulfil.enqueue(7).result() + 1  # type: ignore[operator]
app.enqueue_many([plain("a")])  # type: ignore[arg-type]
app.on("worker_sleep")  # type: ignore[arg-type]
Client().enqueue("shop.fulfil", [7])  # type: ignore[arg-type]
app.step(queue=Queue("mail"))  # type: ignore[call-overload]


def using(conn: psycopg.Connection, other: psycopg.AsyncConnection) -> None:
    book(conn, 7)  # type: ignore[arg-type]
    book.using("postgresql:///shop")  # type: ignore[call-overload]
    book.using(conn)("seven")  # type: ignore[arg-type]
    book.using(other).enqueue(7)  # type: ignore[attr-defined]
    book.using(conn).aenqueue(7)  # type: ignore[attr-defined]
    app.enqueue_many(tick.map([1]), conn=other)  # type: ignore[arg-type]
    Client().enqueue("shop.fulfil", conn=other)  # type: ignore[arg-type]


async def colours() -> None:
    await plain("a")  # type: ignore[misc]
    tick(1) + 1  # type: ignore[operator]
    (await tick.aenqueue(1)).result() + 1  # type: ignore[operator]
    fulfil_async(7).upper()  # type: ignore[attr-defined]
    await pay("all")  # type: ignore[arg-type]
    await pay.using(psycopg.connect())(5)  # type: ignore[misc]


@app.transaction  # type: ignore[arg-type]
def no_connection() -> None: ...


@app.transaction  # type: ignore[arg-type]
def not_a_connection(order_id: int) -> None: ...


@app.transaction(isolation="chaos")  # type: ignore[call-overload, untyped-decorator]
def no_isolation(tx: psycopg.Connection) -> None: ...


@app.middleware  # type: ignore[type-var]
def no_generator(job: Any) -> None: ...


@app.on("worker_start")  # type: ignore[type-var]
def takes_something(app: Any) -> None: ...
