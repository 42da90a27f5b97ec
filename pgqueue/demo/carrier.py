"""The outside world: a carrier that is slow, sometimes refuses, and sometimes does what it is asked while the reply is lost.

It does not live in the database, so what it did is written into a file of its own, one line for each call.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pgqueue.demo.journal import append, directory

FILE = "carrier.log"


class CarrierError(Exception):
    """The carrier did not answer as hoped; try again."""


@dataclass(frozen=True)
class Booking:
    """One call that had an effect."""

    key: str
    order: int


def parcel_number(key: str) -> str:
    """The parcel that belongs to an idempotency key: the same key, the same parcel, however often it is asked for."""
    return "PX" + hashlib.sha256(key.encode()).hexdigest()[:10].upper()


def book(order: int, idempotency_key: str) -> str:
    """Book a parcel; its number. CarrierError one time in eight, after the effect or without it."""
    luck = random.random()  # noqa: S311 -- no secret
    if luck < 0.06:
        append(FILE, f"refused {idempotency_key} {order}")
        raise CarrierError("503, come back later")
    append(FILE, f"booked {idempotency_key} {order}")
    if luck < 0.12:
        raise CarrierError("the reply was lost")
    return parcel_number(idempotency_key)


def bookings(where: Path | None = None) -> Iterator[Booking]:
    """Every call that had an effect."""
    file = (where or directory()) / FILE
    for line in file.read_text().splitlines() if file.exists() else ():
        answer, key, order = line.split()
        if answer == "booked":
            yield Booking(key, int(order))
