"""The database goes back to an earlier moment, and workers remember a later one: application data and jobs stay together."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgqueue import App, migrate, protocol
from pgqueue.database import connect, run
from pgqueue.embedded import Embedded
from pgqueue.housekeeper import recovery
from tests.support import Hand, violations


class TimeMachine:
    """A server that can be put back to where it was."""

    def __init__(self, home: Path) -> None:
        self._server = Embedded(home / "data")
        self.dsn = self._server.start()
        self._data = self._server.home / "data"
        self._kept = self._server.home / "kept"

    def keep(self) -> None:
        self._server.stop()
        subprocess.run(["cp", "-a", str(self._data), str(self._kept)], check=True)
        self._server.start()

    def go_back(self) -> None:
        self._server.stop("immediate")
        subprocess.run(["rm", "-rf", str(self._data)], check=True)
        subprocess.run(["cp", "-a", str(self._kept), str(self._data)], check=True)
        self._server.start()

    def remove(self) -> None:
        subprocess.run(["rm", "-rf", str(self._kept)], check=True)
        self._server.remove()


@pytest.fixture
def machine() -> Iterator[TimeMachine]:
    with tempfile.TemporaryDirectory(prefix="pgqueue-restore-", ignore_cleanup_errors=True) as home:
        machine = TimeMachine(Path(home))
        with connect(machine.dsn, "tests") as conn:
            migrate.migrate(conn)
            conn.execute("CREATE TABLE account (balance int); INSERT INTO account VALUES (0)")
        yield machine
        machine.remove()


@pytest.mark.parametrize("when", ["in the next step", "before it is settled"])
def test_a_restore_takes_application_and_jobs_to_the_same_moment(machine: TimeMachine, when: str) -> None:
    """The credit and its checkpoint are both undone. A worker that remembers them neither skips the credit nor ends the job."""
    app = App(machine.dsn)
    going_back = [when == "in the next step"]

    @app.transaction(name="credit")
    def credit(tx: psycopg.Connection[Any]) -> int:
        tx.execute("UPDATE account SET balance = balance + 1")
        return 1

    @app.step(name="plain")
    def plain() -> int:
        if going_back and going_back.pop():
            machine.go_back()
        return 2

    @app.workflow(name="both")
    def both() -> int:
        return credit() + plain()

    job = both.enqueue()
    first = Hand(app, machine.dsn)
    claimed = first.claim()[0]
    first.conn.close()
    app.close()
    machine.keep()
    settlement = first.run(claimed)
    assert settlement is not None
    if when == "before it is settled":
        assert settlement.seen == 2
        machine.go_back()
    with connect(machine.dsn, "tests") as conn:
        answers = run(conn, protocol.settle([settlement]))
        if when == "before it is settled":
            assert answers == {job.id: "lost"}, "the steps that it saw were never made here"
            assert conn.execute("SELECT balance FROM account").fetchone() == (0,)
        run(conn, protocol.fence_worker(first.id, None, "the test"))
        recovery.reap_lapsed(conn)
        second = Hand(app, machine.dsn)
        second.drain()
        second.close()
        assert job.result(timeout=10) == 3
        assert conn.execute("SELECT balance FROM account").fetchone() == (1,)
        assert [step.seq for step in job.steps()] == [1, 2]
        assert violations(conn) == []
    first.close()
    app.close()
