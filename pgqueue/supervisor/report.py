"""What a supervisor says of itself: a line for the service manager, and all of it for the log."""

from __future__ import annotations

import logging
import signal
import time
from collections import Counter

from pgqueue.slots import Order, Phase
from pgqueue.supervisor.child import Child, tell
from pgqueue.supervisor.housekeeping import Housekeeping
from pgqueue.supervisor.notify import ServiceManager
from pgqueue.supervisor.watch import LAST_WORDS, log_stacks, private_memory
from pgqueue.supervisor.workers import Workers

log = logging.getLogger(__name__)

EVERY = 2.0  # seconds between two measurements of the rate


class Report:
    """``tell_manager`` in each round of the loop; ``log_all`` when SIGUSR1 comes."""

    def __init__(self, workers: Workers, housekeeping: Housekeeping, manager: ServiceManager) -> None:
        self.of_the_dead = 0  # jobs that they have run
        self.stacks_due: float | None = None
        self._workers = workers
        self._housekeeping = housekeeping
        self._manager = manager
        self._rate = 0
        self._measured = (time.monotonic(), 0)

    def tell_manager(self, ready: bool, doing: str) -> None:
        """``ready``: as far as others can tell. ``doing``: in a word; empty for working."""
        self._manager.feed()
        if ready and any(child.booted for child in self._workers):
            self._manager.ready()
        self._measure()
        self._manager.status(self._line(doing))

    def log_all(self, doing: str) -> None:
        """Status now, and stacks when all have had the time to write them."""
        log.info("status: %s, generation %d", self._line(doing), self._workers.generation)
        for child in self._workers:
            log.info("status of %s", self._line_of(child))
        for pid in (*(child.pid for child in self._workers), self._housekeeping.pid):
            if pid:
                tell(pid, signal.SIGUSR1)
        self.stacks_due = time.monotonic() + LAST_WORDS

    def log_stacks_due(self) -> None:
        if self.stacks_due is not None and time.monotonic() > self.stacks_due:
            self.stacks_due = None
            for child in self._workers:
                log_stacks(child)
            self._housekeeping.log_stacks()

    def _measure(self) -> None:
        since, before = self._measured
        now = time.monotonic()
        if now - since >= EVERY:
            total = self.of_the_dead + sum(child.slot.done for child in self._workers)
            self._rate = round((total - before) / (now - since))
            self._measured = (now, total)

    def _line(self, doing: str) -> str:
        """``8 workers, 3 busy, 120/s``"""
        busy = Counter(child.slot.phase for child in self._workers)[Phase.BUSY]
        count = len(self._workers.places)
        parts = [f"{count} worker{'s' if count != 1 else ''}", f"{busy} busy", f"{self._rate}/s", doing]
        return ", ".join(filter(None, parts))

    def _line_of(self, child: Child) -> str:
        slot = child.slot
        orders = {Order.WORK: "", Order.PAUSE: ", paused", Order.DRAIN: ", leaves"}
        state = slot.phase.name.lower() + orders[slot.order]
        return (
            f"worker {child.worker} pid {child.pid}: {state}, {slot.done} jobs run, {len(slot.held() - {0})} held, "
            f"last moved {min(slot.ticks.age, time.monotonic() - child.born):.1f} s ago"
            f"{' (asks the database)' if slot.ticks.asking else ''}, "
            f"{private_memory(child.pid) >> 20} MB of its own, generation {child.generation}"
        )
