"""F19: producers die in the middle of an enqueue, or roll back."""

from __future__ import annotations

import random
import time

from chaos.arena import Arena
from chaos.waiting import wait_for

BROKEN = """A producer enqueues alone, together with a row of its own, and in transactions that it rolls back; it is killed at a
random moment: before the insert, before the commit, in it, or after it."""
EXPECTED = "A job exists if and only if its transaction committed, and so does the row beside it. What was acknowledged runs."
SEEN_BY = ("conservation",)
LANE = "producers"

ORDERS = 2000


def inject(arena: Arena, chance: random.Random) -> str | None:
    """Each has numbers of its own."""
    first = 1_000_000 + arena.injected["F19"] * ORDERS
    producer = arena.chaos.run("chaos.workloads.producer", str(arena.journal), str(ORDERS), str(first))
    wait_for(lambda: f" {first}\n" in _written(arena) or not producer.alive, "a producer to begin")
    time.sleep(chance.uniform(0.0, 0.5))
    arena.sigkill(producer.pid)
    producer.kill()
    return f"killed a producer, {producer.pid}"


def _written(arena: Arena) -> str:
    return arena.journal.read_text() if arena.journal.exists() else ""
