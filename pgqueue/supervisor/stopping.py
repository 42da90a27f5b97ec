"""How a supervisor ends, or restarts: nobody claims any more, what runs may end up to a deadline, and then is given back."""

from __future__ import annotations

import logging
import time

from pgqueue.config import Exit
from pgqueue.failpoints import failpoint
from pgqueue.slots import Order, Slots
from pgqueue.supervisor.notify import ServiceManager
from pgqueue.supervisor.workers import Workers

log = logging.getLogger(__name__)

SAME_CTRL_C = 1.0  # seconds within which a second SIGINT is part of the first
FAREWELL = 5.0  # seconds for the housekeeper to give the last jobs back, and as many to leave


class Stopping:
    """Begins with ``drain``, ``interrupt``, ``now`` or ``restart``. The loop calls ``enforce_deadline``."""

    def __init__(self, workers: Workers, slots: Slots, manager: ServiceManager) -> None:
        self.code = Exit.OK
        self.until: float | None = None  # None: nobody has asked us to stop
        self.restarting = False
        self._asked = 0.0
        self._workers = workers
        self._slots = slots
        self._manager = manager

    @property
    def under_way(self) -> bool:
        return self.until is not None

    def drain(self, timeout: float) -> None:
        """SIGTERM: take nothing new, let what runs end; then end. Repeats change nothing."""
        if not self.under_way or self.restarting:
            self.restarting = False
            self._asked = time.monotonic()
            self._manager.stopping(timeout + 2 * FAREWELL)
        if not self.under_way:
            self._begin(timeout)

    def interrupt(self, timeout: float) -> None:
        """SIGINT: the same; one that comes later than that is impatience."""
        if self.under_way and not self.restarting and time.monotonic() - self._asked > SAME_CTRL_C:
            self.now()
        self.drain(timeout)

    def now(self) -> None:
        """SIGQUIT: give back what runs."""
        self.drain(0.0)
        self.until = time.monotonic()

    def restart(self, timeout: float) -> None:
        """Drain, and be executed again. A signal that means an end still does."""
        log.info("restarting, with the same process id")
        self.restarting = True
        self._begin(timeout)

    def give_up(self, timeout: float) -> None:
        """Nobody can work here."""
        self.code = Exit.CRASH_LOOP
        self.drain(timeout)

    def _begin(self, timeout: float) -> None:
        log.info("draining, for at most %g s", timeout)
        failpoint("drain.signal")
        self._slots.set_stopping()
        self.until = time.monotonic() + timeout
        self._workers.give(Order.DRAIN)
        for child in self._workers:
            if not child.booted:  # and now it never takes a job
                self._workers.kill(child)

    def enforce_deadline(self) -> None:
        """Kill whoever is still there when the time is over: its jobs are given back, and nobody is charged."""
        if self.until is None or time.monotonic() < self.until:
            return
        for child in self._workers:
            if not child.killed:
                if child.has_jobs:
                    log.warning(
                        "worker %s is still busy at the deadline: it is killed, and its jobs are to be given back", child.worker
                    )
                    self.code = Exit.GIVEN_BACK
                self._workers.kill(child)
        self.until = time.monotonic() + 1.0  # and look again
