"""A small shop, written as any application would be. ``pgqueue work pgqueue.demo.shop:app`` works for it.

Two things in it belong to the demo alone: ``journal``, which notes on which line a worker was when it was killed, and
``pretend_to_work``, without which everything would be over before anybody could be killed.
"""

from __future__ import annotations

import random
import time
from typing import Any

from psycopg import Connection

from pgqueue import App, Retry, current
from pgqueue.demo import carrier, journal

app = App()  # in the database that PGQUEUE_DSN names


# --------------------------------------------------------------------------- two stories: the bank, the warehouse


@app.transaction
def credit(tx: Connection[Any], name: str, cents: int) -> None:
    """Its update and the note that it happened are one COMMIT."""
    update = "update bank set cents = cents + %s where name = %s"
    tx.execute(update, (cents, name))


@app.workflow
def deposit(name: str, cents: int) -> None:
    """Credit an account."""
    credit(name, cents)


@app.transaction
def tell_warehouse(tx: Connection[Any], number: int) -> None:
    """The warehouse packs what it is told to."""
    tx.execute("insert into warehouse values (%s)", (number,))


# -------------------------------------------------------------------------------------------- the shop in the storm


@app.transaction
def charge(tx: Connection[Any], order_id: int) -> int:
    """Take the money: exactly once, whatever is killed when."""
    journal.note("charge")
    customer, cents = _row(tx, "select customer, cents from orders where number = %s", order_id)
    tx.execute("update account set cents = cents - %s where customer = %s", (cents, customer))
    pretend_to_work(0.02)
    tx.execute("insert into ledger values (%s, %s, %s)", (order_id, customer, cents))
    return int(cents)


@app.step(retry=Retry(attempts=50, backoff="50ms", cap="500ms"))
def ask_carrier(order_id: int) -> str:
    """Outside of the database: at least once, with a key that is the same every time."""
    journal.note("ask_carrier")
    pretend_to_work(0.04)
    return carrier.book(order_id, idempotency_key=current().step_key)


@app.transaction
def book_shipment(tx: Connection[Any], order_id: int, parcel: str) -> None:
    """The shipment and the stock of the warehouse: exactly once."""
    journal.note("book_shipment")
    item, quantity = _row(tx, "select item, quantity from orders where number = %s", order_id)
    tx.execute("insert into shipment values (%s, %s, %s, %s)", (order_id, item, quantity, parcel))
    pretend_to_work(0.02)
    tx.execute("update stock set quantity = quantity - %s where item = %s", (quantity, item))


@app.workflow(key="order_id", max_crashes=1000)  # three would do anywhere else: here workers are killed all the time
def fulfil(order_id: int) -> str:
    """From a stored order to a parcel."""
    with journal.run():
        charge(order_id)
        parcel = ask_carrier(order_id)
        book_shipment(order_id, parcel)
        return parcel


def _row(tx: Connection[Any], query: str, order_id: int) -> tuple[Any, ...]:
    row = tx.execute(query, (order_id,)).fetchone()
    if row is None:
        raise LookupError(f"there is no order {order_id}")
    found: tuple[Any, ...] = row
    return found


def pretend_to_work(seconds: float) -> None:
    """Take a while, about so long."""
    time.sleep(seconds * random.uniform(0.5, 1.5))  # noqa: S311 -- no secret
