"""The load of a round: keeps so many jobs under way, and knows of each whether its enqueue was acknowledged."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

from chaos.arena import Arena, send
from chaos.workloads import bank, town
from pgqueue.functions import Call
from pgqueue.ids import new_job_id

BATCH = 20
LOOK = 0.05  # seconds

#: What a round can have as load. Each is given a number that no other job has.
KINDS: dict[str, Callable[[int], Call[Any]]] = {
    "chain": lambda n: town.chain.call(25),
    "errands": lambda n: town.errands.call(30),
    "stroll": lambda n: town.stroll.call(8),
    "transfer": lambda n: bank.transfer.call(n % 20 + 1, (n + 7) % 20 + 1, n % 50 + 2),
    "transfer_async": lambda n: bank.transfer_async.call(n % 20 + 1, (n + 3) % 20 + 1, n % 50 + 2),
    "serializable": lambda n: bank.transfer.call(n % 5 + 1, (n + 1) % 5 + 1, 2, "serializable"),
    "repeatable_read": lambda n: bank.transfer.call(n % 5 + 1, (n + 2) % 5 + 1, 2, "repeatable read"),
    "grant": lambda n: bank.grant.call(n % 20 + 1, 3),
    "fan_out": lambda n: town.fan_out.call(8),
    "waits": lambda n: town.waits.call(f"event {n}", n),
    "tell": lambda n: bank.tell.call(n),
    "visit": lambda n: town.visit.call(n),
    "serve": lambda n: town.serve.call(n, f"key {n % 7}"),
    "rated": lambda n: town.visit.options(queue="even").call(n),
}


class Feeder:
    """Enqueues until the round is over."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self._chance = random.Random(f"{arena.seed} load")
        self._number = 0
        self.acknowledged = 0  # jobs

    def feed(self) -> None:
        """In a thread of its own."""
        while not self._arena.feeding_is_over.wait(LOOK):
            if self._active() < self._arena.setup.active:
                self._enqueue()

    def _active(self) -> int:
        """(As cheap as can be: the work lists are short. What waits for its queue's rate does not count.)"""
        [(count,)] = self._arena.chaos.query(
            "SELECT (SELECT count(*) FROM pgqueue.ready WHERE queue <> 'even') + (SELECT count(*) FROM pgqueue.running)"
        )
        return int(count)

    def _enqueue(self) -> None:
        arena, load = self._arena, self._arena.setup.load
        calls = {}
        for kind in self._chance.choices(list(load), list(load.values()), k=BATCH):
            self._number += 1
            calls[new_job_id()] = KINDS[kind](self._number)
        arena.attempted.update(calls)
        if send(arena.chaos.conn, calls):
            arena.enqueued.update(calls)
            self.acknowledged += len(calls)
        else:
            time.sleep(LOOK)
