"""What a supervisor says of itself: a line for the service manager, and all of it for the log."""

from __future__ import annotations

import time
from collections import Counter

from pgqueue.slots import Order, Phase
from pgqueue.supervisor.child import Child
from pgqueue.supervisor.watch import private_memory
from pgqueue.supervisor.workers import Workers

EVERY = 2.0  # seconds between two measurements of the rate


class Rate:
    """Jobs per second, over the last few seconds."""

    def __init__(self) -> None:
        self.of_the_dead = 0
        self.per_second = 0
        self._last = (time.monotonic(), 0)

    def measure(self, workers: Workers) -> None:
        since, before = self._last
        now = time.monotonic()
        if now - since >= EVERY:
            total = self.of_the_dead + sum(child.slot.done for child in workers)
            self.per_second = round((total - before) / (now - since))
            self._last = (now, total)


def status_line(workers: Workers, rate: Rate, doing: str) -> str:
    """``8 workers, 3 busy, 120/s``"""
    phases = Counter(child.slot.phase for child in workers)
    count = len(workers.places)
    parts = [f"{count} worker{'s' if count != 1 else ''}", f"{phases[Phase.BUSY]} busy", f"{rate.per_second}/s", doing]
    return ", ".join(filter(None, parts))


def full_status(workers: Workers, rate: Rate, doing: str) -> str:
    """The same, and a line for each worker."""
    lines = [f"status: {status_line(workers, rate, doing)}, generation {workers.generation}"]
    return "\n".join(lines + [_line(child, child in workers.leaving) for child in workers])


def _line(child: Child, leaves: bool) -> str:
    slot = child.slot
    state = slot.phase.name.lower() + (", leaves" if leaves or slot.order == Order.DRAIN else "")
    return (
        f"worker {child.worker} pid {child.pid}: {state}, {slot.done} jobs run, {len(slot.held() - {0})} held, "
        f"last moved {min(slot.ticks.age, time.monotonic() - child.born):.1f} s ago"
        f"{' (asks the database)' if slot.ticks.asking else ''}, "
        f"{private_memory(child.pid) >> 20} MB of its own, generation {child.generation}"
    )
