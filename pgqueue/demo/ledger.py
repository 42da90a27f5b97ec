"""The check at the end: every order against every table, line by line.

What is expected comes from the file of orders and from what the shop's front was told by COMMIT, never from the tables that are
checked.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import psycopg

from pgqueue.demo.carrier import Booking, parcel_number
from pgqueue.demo.orders import STOCK, Order
from pgqueue.demo.shop import fulfil


@dataclass
class Ledger:
    """What was found."""

    succeeded: int = 0  # jobs
    charged_once: int = 0  # orders
    shipped_once: int = 0
    carrier_calls: int = 0
    lost: set[int] = field(default_factory=set)  # committed, and something is missing
    doubled: set[int] = field(default_factory=set)  # something was done twice
    phantoms: set[int] = field(default_factory=set)  # not committed, and something was done
    problems: list[str] = field(default_factory=list)

    @property
    def balances(self) -> bool:
        """Nothing lost, nothing doubled, nothing out of nowhere, and every sum is right."""
        return not self.problems

    def wrong(self, what: str, number: int, kind: set[int] | None = None) -> None:
        """Take note of an order with which something is wrong."""
        self.problems.append(f"order {number}: {what}")
        if kind is not None:
            kind.add(number)


def check(conn: psycopg.Connection[Any], committed: Sequence[Order], bookings: Iterable[Booking]) -> Ledger:
    """Compare everything. ``bookings``: what the carrier says that it was asked for."""
    ledger = Ledger()
    with conn.transaction():
        conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        expected = {order.number: order for order in committed}
        _orders(conn, expected, ledger)
        _jobs(conn, expected, ledger)
        _charges(conn, expected, ledger)
        parcels = _bookings(expected, bookings, ledger)
        _shipments(conn, expected, parcels, ledger)
        _sums(conn, expected, ledger)
        for (job,) in conn.execute("SELECT job_id FROM pgqueue.violations"):
            ledger.problems.append(f"job {job} is not in exactly one state")
    return ledger


def _count(found: dict[int, list[Any]], expected: dict[int, Order], what: str, ledger: Ledger) -> list[int]:
    """The orders of which there is exactly one; what is missing, too much or out of nowhere is noted."""
    for number in found.keys() - expected.keys():
        ledger.wrong(f"{what}, and it was never committed", number, ledger.phantoms)
    once = []
    for number in expected:
        times = len(found.get(number, ()))
        if times == 0:
            ledger.wrong(f"not {what}", number, ledger.lost)
        elif times > 1:
            ledger.wrong(f"{what} {times} times", number, ledger.doubled)
        else:
            once.append(number)
    return once


def _grouped(rows: Iterable[tuple[Any, ...]]) -> dict[int, list[Any]]:
    found: dict[int, list[Any]] = defaultdict(list)
    for number, *rest in rows:
        found[number].append(tuple(rest))
    return found


def _orders(conn: psycopg.Connection[Any], expected: dict[int, Order], ledger: Ledger) -> None:
    found = _grouped(conn.execute("SELECT number, customer, item, quantity, cents FROM orders"))
    for number in _count(found, expected, "stored", ledger):
        order = expected[number]
        if found[number] != [(order.customer, order.item, order.quantity, order.cents)]:
            ledger.wrong(f"stored as {found[number][0]}", number)


def _jobs(conn: psycopg.Connection[Any], expected: dict[int, Order], ledger: Ledger) -> None:
    found = _grouped(conn.execute("SELECT key::integer, state FROM pgqueue.jobs WHERE name = %s", (fulfil.name,)))
    for number in _count(found, expected, "enqueued", ledger):
        state = found[number][0][0]
        if state == "succeeded":
            ledger.succeeded += 1
        else:
            ledger.wrong(f"its job is {state}", number, ledger.lost)


def _charges(conn: psycopg.Connection[Any], expected: dict[int, Order], ledger: Ledger) -> None:
    found = _grouped(conn.execute("SELECT number, customer, cents FROM ledger"))
    once = _count(found, expected, "charged", ledger)
    ledger.charged_once = len(once)
    for number in once:
        if found[number] != [(expected[number].customer, expected[number].cents)]:
            ledger.wrong(f"charged as {found[number][0]}", number)


def _bookings(expected: dict[int, Order], bookings: Iterable[Booking], ledger: Ledger) -> dict[int, str]:
    """The carrier is asked at least once, always with the same key. The parcel of each order."""
    found = _grouped((booking.order, booking.key) for booking in bookings)
    ledger.carrier_calls = sum(map(len, found.values()))
    owner: dict[str, int] = {}
    for number in found.keys() - expected.keys():
        ledger.wrong("booked with the carrier, and it was never committed", number, ledger.phantoms)
    for number in expected:
        keys = sorted({key for (key,) in found.get(number, ())})
        if not keys:
            ledger.wrong("the carrier was never asked", number, ledger.lost)
        elif len(keys) > 1:
            ledger.wrong(f"the carrier was asked with {len(keys)} different keys", number, ledger.doubled)
        elif owner.setdefault(keys[0], number) != number:
            ledger.wrong(f"the carrier was asked with the key of order {owner[keys[0]]}", number)
    return {number: parcel_number(calls[0][0]) for number, calls in found.items()}


def _shipments(conn: psycopg.Connection[Any], expected: dict[int, Order], parcels: dict[int, str], ledger: Ledger) -> None:
    found = _grouped(conn.execute("SELECT number, item, quantity, parcel FROM shipment"))
    once = _count(found, expected, "shipped", ledger)
    ledger.shipped_once = len(once)
    for number in once:
        order = expected[number]
        if found[number] != [(order.item, order.quantity, parcels.get(number))]:
            ledger.wrong(f"shipped as {found[number][0]}", number)


def _sums(conn: psycopg.Connection[Any], expected: dict[int, Order], ledger: Ledger) -> None:
    """What is left in accounts and stock: an effect without its line would show here."""
    owed: Counter[str] = Counter()
    sold: Counter[str] = Counter()
    for order in expected.values():
        owed[order.customer] += order.cents
        sold[order.item] += order.quantity
    for customer, cents in conn.execute("SELECT customer, cents FROM account"):
        if cents != -owed.pop(customer, 0):
            ledger.problems.append(f"the account of {customer} is {cents / 100:.2f}")
    for item, quantity in conn.execute("SELECT item, quantity FROM stock"):
        if quantity != STOCK - sold.pop(item, 0):
            ledger.problems.append(f"there are {quantity} pieces of {item} left")
    ledger.problems += [f"there is no account of {customer}" for customer in owed]
    ledger.problems += [f"there is no stock of {item}" for item in sold]
