"""``crash_matrix``: a workflow is run once per boundary, killed there in a process of its own, resumed, and looked at.

For each boundary: a copy of the test's database, a job, a worker process that dies there, what a housekeeper does when that
happens, and worker processes that go on until the job has ended. Which boundaries there are is seen in a first run, without a
kill. What comes out is a picture (picture.py).
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib import resources
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from pgqueue import protocol
from pgqueue.client import Job
from pgqueue.colour import blocking
from pgqueue.database import connect, run
from pgqueue.functions import Call
from pgqueue.housekeeper.recovery import reap_all
from pgqueue.testing.boundaries import Boundary
from pgqueue.testing.drain import drain
from pgqueue.testing.lives import Passed, live
from pgqueue.testing.picture import Broken, CrashMatrix
from pgqueue.testing.places import InThisThread

if TYPE_CHECKING:
    from pgqueue.testing.fixture import PgQueueFixture

_SCHEMA = (resources.files("pgqueue.testing") / "crash_matrix.sql").read_text()
MOST_STOPS = 1000  # times that a job may come to a stand before it has ended
SLOW = 30.0  # seconds until what the server does at once counts as stuck

Check = Callable[[Job[Any]], object]


class Matrix:
    """All runs of one job. ``copy`` is a block in which the fixture works in a fresh copy of the test's database."""

    def __init__(
        self,
        fixture: PgQueueFixture,
        call: Call[Any],
        copy: Callable[[], AbstractContextManager[None]],
        check: Check,
        setup: Callable[[], object],
        meanwhile: Check,
    ) -> None:
        self._fixture = fixture
        self._call = call
        self._copy = copy
        self._check = check
        self._setup = setup
        self._meanwhile = meanwhile

    def run(self) -> CrashMatrix:
        """Every boundary. The check's own error comes out where it fails without any kill."""
        picture = CrashMatrix(self._call)
        passed = self._once(None, picture.learn)
        for boundary in [variant for place, _ in passed for variant in place.variants()]:
            try:
                self._once(boundary)
            except (Exception, pytest.fail.Exception) as error:  # noqa: BLE001 -- whatever the check says
                picture.add(boundary, Broken(error, self._check))
            else:
                picture.add(boundary, None)
        return picture

    def _once(self, target: Boundary | None, learn: Callable[[psycopg.Connection[Any], Passed], None] | None = None) -> Passed:
        with self._copy(), connect(self._fixture.dsn, "pgqueue:testing") as conn:
            conn.execute(_SCHEMA)
            self._setup()
            [job] = self._fixture.app.enqueue_many([self._call], conn=conn)
            passed = self._go_on(conn, job, target)
            if self._check(job) is False:
                raise AssertionError("check returned False")
            if learn is not None:
                learn(conn, passed)
            return passed

    def _go_on(self, conn: psycopg.Connection[Any], job: Job[Any], target: Boundary | None) -> Passed:
        """Until the job has ended."""
        killed = target is None
        passed_by: Passed = []
        for _ in range(MOST_STOPS):
            passed = live(self._work, None if killed else target, passed_by, lambda pid, go: self._strike(conn, pid, go, target))
            if passed is None:
                killed = True
                self._bury(conn)
                continue
            passed_by += passed
            value = run(conn, protocol.job_value(job.id))
            if value is None or value[1] != "active":
                if not killed:
                    raise AssertionError("this run never came by: does the workflow decide by something that is no checkpoint?")
                return passed_by
            self._move_time(conn, job)
        raise AssertionError(f"the job has not ended after {MOST_STOPS} stops")

    def _work(self) -> None:
        blocking(drain(self._fixture.app, self._fixture.dsn, InThisThread, None))

    def _move_time(self, conn: psycopg.Connection[Any], job: Job[Any]) -> None:
        """Nothing can go on now: let the test do what the job waits for, or else let the time pass until something is due."""
        self._meanwhile(job)
        if run(conn, protocol.wake(1000))[0] or run(conn, protocol.has_work(list(self._fixture.app.queues))) == 0:
            return
        row = conn.execute("TABLE pgqueue_testing.next_due").fetchone()
        if row is None or row[0] is None:
            waits = "; ".join(f"{kind} {key}" for _, _, _, kind, key, _, _ in run(conn, protocol.open_waits([job.id])))
            raise AssertionError(f"the job waits ({waits or 'nobody knows for what'}): let crash_matrix(meanwhile=...) do it")
        self._fixture.travel(max(0.0, row[0]) + 0.001)

    # ------------------------------------------------------------------------------------------- a death

    def _strike(self, conn: psycopg.Connection[Any], pid: int, go: Callable[[], None], target: Boundary | None) -> None:
        """Kill the process inside its COMMIT. Then let that be lost, or durable."""
        conn.execute("CALL pgqueue_testing.hold()")
        go()
        self._wait(lambda: conn.execute("TABLE pgqueue_testing.held").fetchone() is not None or _ended(pid))
        os.kill(pid, signal.SIGKILL)  # not waited for yet: the number is still its own
        if target is not None and target.how == "lost":
            conn.execute("CALL pgqueue_testing.end_held()")
            self._wait(lambda: conn.execute("TABLE pgqueue_testing.held").fetchone() is None)
        conn.execute("CALL pgqueue_testing.release()")

    def _bury(self, conn: psycopg.Connection[Any]) -> None:
        """What a housekeeper does when a worker has died. Not before its sessions have noticed: what they were told is done."""
        self._wait(lambda: conn.execute("TABLE pgqueue_testing.sessions").fetchone() is None)
        for worker, *_ in run(conn, protocol.beats()):
            held = [job for job, _, _ in run(conn, protocol.held_claims([worker]))]
            run(conn, protocol.fence_worker(worker, None, "killed by crash_matrix", held))
            reap_all(conn, worker, held, "crash", "killed by crash_matrix")

    @staticmethod
    def _wait(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + SLOW
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"the server has not done in {SLOW:g} s what takes it milliseconds")
            time.sleep(0.002)


def _ended(pid: int) -> bool:
    """Has this child of ours ended? It stays for whoever waits for it."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
