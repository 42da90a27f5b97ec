"""PostgreSQL fails under work: sessions are ended, server processes killed, the server crashes and restarts, also while jobs are
taken back from the dead. Everything ends by itself; nothing is lost, doubled, or charged to a job."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from chaos.controller import SESSIONS, Controller
from chaos.oracles import all_wrong, claim_history, invariant
from chaos.processes import Host
from chaos.waiting import wait_for
from chaos.workloads import bank
from tests.support import Server

FAULTS = 3  # of the same kind, one after the other


class Work:
    """A host that moves money, and a producer beside it."""

    def __init__(self, chaos: Controller, directory: Path) -> None:
        self.chaos = chaos
        self._directory = directory
        self._jobs: list[str] = []

    def enqueue(self, transfers: int) -> None:
        calls = [bank.transfer.call(i % 10 + 1, i % 10 + 2, 10) for i in range(transfers)]
        self._jobs = [job.id for job in bank.app.enqueue_many(calls, conn=self.chaos.conn)]

    def start(self, failpoints: str = "") -> Host:
        return self.chaos.start("-w", "2", "--lease", "5s", failpoints=failpoints)

    def produce(self, orders: int) -> Any:
        return self.chaos.run("chaos.workloads.producer", str(self._directory / "journal.txt"), str(orders))

    def done(self) -> float:
        """The part of our jobs that have ended."""
        [(ended,)] = self.chaos.query("SELECT count(*) FROM pgqueue.outcome WHERE job_id = ANY (%s)", self._jobs)
        return ended / len(self._jobs)

    def wait_until_done(self, part: float = 1.0) -> None:
        wait_for(
            lambda: self.done() >= part, lambda: f"{part:.0%} of the jobs to end, {self.done():.0%} have\n{self.chaos.story()}"
        )

    def check(self, host: Host, faults: int, charged: int = 0) -> None:
        """All has ended, and fits. ``faults``: how many steps can have been interrupted; ``charged``: how many crashes count."""
        active = "SELECT 1 FROM pgqueue.job_values WHERE status = 'active' LIMIT 1"
        wait_for(lambda: not self.chaos.query(active), self.chaos.story)
        assert host.drain() == 0, self.chaos.story()
        assert wait_for(lambda: self._wrong(faults), what="a server that stays up") == [[]], self.chaos.story()
        succeeded = self.chaos.query(
            "SELECT count(*) FROM pgqueue.outcome WHERE status = 'succeeded' AND job_id = ANY (%s)", self._jobs
        )
        assert succeeded == [(len(self._jobs),)]
        assert self.chaos.query("SELECT kind FROM pgqueue.attempts") == [("crash",)] * charged, self.chaos.story()

    def _wrong(self, faults: int) -> list[list[str]] | None:
        """What the oracles say. None: the server was about to end all sessions, and this one too."""
        try:
            return [all_wrong(self.chaos.conn, self._directory, faults)]
        except psycopg.OperationalError:
            return None


@pytest.fixture
def work(dsn: str, tmp_path: Path) -> Iterator[Work]:
    with Controller(dsn, tmp_path, "chaos.workloads.bank:app", {"BANK_FILE": str(tmp_path / "outside.txt")}) as chaos:
        bank.install(chaos.conn)
        claim_history.install(chaos.conn)
        yield Work(chaos, tmp_path)


@pytest.fixture
def own_server(server: Server) -> Server:
    if server.embedded is None:
        pytest.skip("the server was given: it is not ours to stop")
    return server


@pytest.mark.parametrize("kind", SESSIONS)
def test_sessions_are_terminated(work: Work, kind: str) -> None:
    """Each time all that there are of this kind."""
    work.enqueue(120)
    host = work.start()
    work.wait_until_done(0.1)
    producer = work.produce(30)
    terminated = 0
    for _ in range(FAULTS):
        for session in wait_for(lambda: work.chaos.sessions(kind), f"a session of the kind {kind}"):
            work.chaos.terminate(session)
            terminated += 1
            wait_for(lambda session=session: session not in work.chaos.sessions(kind), "it to end")
        assert invariant.check(work.chaos.conn) == []
    producer.wait()
    work.check(host, faults=terminated)


@pytest.mark.parametrize(
    "kind", [kind if kind == "step" else pytest.param(kind, marks=pytest.mark.sweep) for kind in SESSIONS if kind != "client"]
)
def test_a_server_process_is_killed(own_server: Server, work: Work, kind: str) -> None:
    """kill -9 of one: PostgreSQL then ends them all, and recovers from its log."""
    work.enqueue(120)
    host = work.start()
    for part in (0.2, 0.5):
        work.wait_until_done(part)
        work.chaos.kill_session(wait_for(lambda: work.chaos.sessions(kind), f"a session of the kind {kind}")[0])
    work.check(host, faults=2 * 2)


def test_postgres_crashes_and_comes_back_under_load(own_server: Server, work: Work) -> None:
    """Three restarts, two of them crashes. Nobody helps."""
    assert own_server.embedded is not None
    work.enqueue(300)
    host = work.start()
    producer = work.produce(60)
    for part, mode in ((0.2, "immediate"), (0.4, "fast"), (0.6, "immediate")):
        work.wait_until_done(part)
        work.chaos.note("restart", mode=mode)
        own_server.embedded.stop(mode)  # type: ignore[arg-type]
        own_server.embedded.start()
    producer.wait()
    work.check(host, faults=3 * 2)


@pytest.mark.parametrize("point", ["reap.selected", "reap.committed"])
def test_postgres_crashes_while_a_dead_worker_is_reaped(own_server: Server, work: Work, point: str) -> None:
    """A worker was killed in a transaction, and the housekeeper stands in front of, or behind, giving its jobs back."""
    assert own_server.embedded is not None
    work.enqueue(60)
    host = work.start(f"transaction.user_code_done=kill9@3,{point}=park")
    work.chaos.arrival(point)
    own_server.embedded.stop("immediate")
    own_server.embedded.start()
    wait_for(lambda: work.chaos.waiting(point), f"the housekeeper at {point}")
    work.chaos.release(point)
    work.check(host, faults=1 + 2, charged=1)
