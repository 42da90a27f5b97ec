"""The storm: orders keep coming in while workers are killed several times a second, and once their supervisor.

One loop, one process: it is the shop's front (it stores orders, each with its job in the same transaction, and rolls some back)
and the one who kills.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import psycopg

from pgqueue.demo import shop
from pgqueue.demo.journal import Kill
from pgqueue.demo.orders import Order
from pgqueue.demo.processes import Handle, Supervisor
from pgqueue.demo.screen import Screen
from pgqueue.demo.signals import Signals

TICK = 0.03  # seconds
LOOK = 0.1  # seconds between looks at how far the jobs are
PATIENCE = 60.0  # seconds for the last jobs, when everything else is over
GROWN = 0.5  # seconds that a worker has lived before it is killed: time for a job, or the supervisor thinks that it cannot start


@dataclass
class Storm:
    """What is to happen, and what has happened so far."""

    conn: psycopg.Connection[Any]
    supervisor: Supervisor
    orders: Sequence[Order]
    rolled_back: set[int]
    seconds: float
    kills: int
    seed: int
    killed: list[Kill] = field(default_factory=list)
    supervisor_killed_at: list[int] = field(default_factory=list)  # time.monotonic_ns()
    committed: list[Order] = field(default_factory=list)
    done: int = 0
    waited: bool = False  # in vain, for the last jobs
    taken: float = 0.0  # seconds

    def __post_init__(self) -> None:
        chance = random.Random(self.seed)  # noqa: S311 -- to be repeatable, not secret
        self._chance = chance
        self._next_order = 0
        self._due = sorted(chance.uniform(0.0, self.seconds) for _ in range(self.kills))
        self._supervisor_due = self.seconds / 2
        self._expected = len(self.orders) - len(self.rolled_back)
        self._looked = 0.0

    def run(self, screen: Screen, signals: Signals) -> None:
        """Until the last job has ended, or too long."""
        self._began = time.monotonic()
        while not self._over():
            signals.check()
            self.supervisor.check()
            passed = time.monotonic() - self._began
            self._place_due(passed)
            self._kill_due(passed)
            if passed - self._looked >= LOOK:
                self._looked = passed
                self._look()
                screen.progress(self.done, self._expected, self.summary(passed))
            time.sleep(TICK)
        screen.clear()
        self.taken = time.monotonic() - self._began

    def summary(self, passed: float) -> str:
        """One line about how far it is."""
        supervisors = f", {self.supervisors} supervisor" if self.supervisors else ""
        workers = sum(not kill.with_supervisor for kill in self.killed)
        return f"{self.done}/{self._expected} orders · killed {workers} workers{supervisors} · {passed:.0f} s"

    @property
    def supervisors(self) -> int:
        """How many were killed."""
        return len(self.supervisor_killed_at)

    # ---------------------------------------------------------------------------------------------- inside

    def _over(self) -> bool:
        if self._next_order == len(self.orders) and self.done >= len(self.committed) and self.supervisors:
            return True
        self.waited = time.monotonic() - self._began > self.seconds + PATIENCE
        return self.waited

    def _place_due(self, passed: float) -> None:
        """Store the orders that have come in by now."""
        due = min(len(self.orders), int(len(self.orders) * passed / self.seconds) + 1)
        for order in self.orders[self._next_order : due]:
            with self.conn.transaction() as transaction:
                self.conn.execute(
                    "INSERT INTO orders VALUES (%s, %s, %s, %s, %s)",
                    (order.number, order.customer, order.item, order.quantity, order.cents),
                )
                shop.fulfil.using(self.conn).enqueue(order.number)
                if order.number in self.rolled_back:
                    raise psycopg.Rollback(transaction)  # the customer has changed their mind
            if order.number not in self.rolled_back:
                self.committed.append(order)
        self._next_order = due

    def _look(self) -> None:
        row = self.conn.execute(
            "SELECT count(*) FROM pgqueue.jobs WHERE name = %s AND state IN ('succeeded', 'failed', 'cancelled')",
            (shop.fulfil.name,),
        ).fetchone()
        self.done = row[0] if row else 0

    def _kill_due(self, passed: float) -> None:
        if not self.supervisors and passed >= self._supervisor_due:
            self._kill_supervisor()
        elif self._due and passed >= self._due[0] and self._kill_worker():
            self._due.pop(0)

    def _kill_worker(self) -> bool:
        """One that has a job, if there is one. False: there is nobody to kill now."""
        pids = self._workers(GROWN)
        handles = {handle.pid: handle for handle in self.supervisor.children()}
        busy = [pid for pid, jobs in pids if jobs and pid in handles]
        victims = busy or [pid for pid, _ in pids if pid in handles]
        try:
            return bool(victims) and self._kill(handles[self._chance.choice(sorted(victims))])
        finally:
            for handle in handles.values():
                handle.close()

    def _kill(self, victim: Handle) -> bool:
        at = time.monotonic_ns()
        if not victim.kill():
            return False
        self.killed.append(Kill(at, victim.pid, with_supervisor=False))
        return True

    def _kill_supervisor(self) -> None:
        """The supervisor alone. Its workers die with it, by themselves; then there is another."""
        workers = self._workers(0)
        at = time.monotonic_ns()
        self.supervisor.kill()
        self.supervisor_killed_at.append(at)
        self.killed += [Kill(at, pid, with_supervisor=True) for pid, _ in workers]
        self.supervisor.start()

    def _workers(self, age: float) -> list[tuple[int, int]]:
        """Process number, and how many jobs it has, of each worker of at least that age."""
        return self.conn.execute(
            "SELECT pid, jobs FROM pgqueue.workers"
            " WHERE fenced_at IS NULL AND started_at <= clock_timestamp() - make_interval(secs => %s)",
            (age,),
        ).fetchall()
