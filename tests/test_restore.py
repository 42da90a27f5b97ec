"""The database goes back to an earlier moment, by a restore or a failover that loses commits, and workers remember a later one:
application data and jobs stay together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from chaos.server import OwnServer
from pgqueue import App, migrate, protocol
from pgqueue.database import connect, run
from pgqueue.housekeeper import recovery
from tests.support import Hand, violations


class Restored:
    """A server that is put back to what a backup has."""

    def __init__(self, server: OwnServer) -> None:
        self._server = server
        self.dsn = server.dsn

    def keep(self) -> None:
        self._kept = self._server.keep()

    def go_back(self) -> None:
        self._server.go_back(self._kept)


class FailedOver(Restored):
    """A server whose standby takes over, without the commits since it was cut off."""

    def keep(self) -> None:
        self._server.prepare_standby()
        self._server.cut_off()

    def go_back(self) -> None:
        self._server.take_over()


@pytest.fixture(scope="module")
def own_server() -> Iterator[OwnServer]:
    with OwnServer() as server:
        yield server


@pytest.fixture(params=[Restored, FailedOver], ids=["restored", "failed over"])
def machine(own_server: OwnServer, request: pytest.FixtureRequest) -> Restored:
    with psycopg.connect(own_server.dsn, autocommit=True) as conn:
        conn.execute("DROP SCHEMA IF EXISTS pgqueue CASCADE; DROP TABLE IF EXISTS account")
    with connect(own_server.dsn, "tests") as conn:
        migrate.migrate(conn)
        conn.execute("CREATE TABLE account (balance int); INSERT INTO account VALUES (0)")
    return request.param(own_server)  # type: ignore[no-any-return]


@pytest.mark.parametrize("when", ["in the next step", "before it is settled"])
def test_a_restore_takes_application_and_jobs_to_the_same_moment(machine: Restored, when: str) -> None:
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
