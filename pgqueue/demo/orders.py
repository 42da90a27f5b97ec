"""The orders of the demo: read from orders.csv, and which of them are rolled back on purpose."""

from __future__ import annotations

import csv
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import resources

STOCK = 10_000  # of each item, at the beginning


@dataclass(frozen=True)
class Order:
    """One line of the file."""

    number: int
    customer: str
    item: str
    quantity: int
    cents: int


def read(count: int) -> list[Order]:
    """The first orders of the file; when it is used up they come again, under numbers of their own."""
    text = (resources.files("pgqueue.demo") / "orders.csv").read_text(encoding="utf-8")
    lines = [
        Order(int(line["number"]), line["customer"], line["item"], int(line["quantity"]), int(line["cents"]))
        for line in csv.DictReader(text.splitlines())
    ]
    span = lines[-1].number - lines[0].number + 1
    rounds = [replace(order, number=order.number + again * span) for again in range(-(-count // len(lines))) for order in lines]
    return rounds[:count]


def rolled_back(orders: Sequence[Order], seed: int) -> set[int]:
    """The numbers of those that are rolled back on purpose: one of each ten, chosen by the seed."""
    chance = random.Random(seed)  # noqa: S311 -- to be repeatable, not secret
    tens = [orders[i : i + 10] for i in range(0, len(orders) - 9, 10)]
    return {chance.choice(ten).number for ten in tens}
