"""Commits of which nobody knows whether they happened: the connection, or the client, is lost while the server is inside COMMIT.

In each scenario one commit of every kind is in doubt at the same time, each in a process of its own: a transaction of a workflow
and a job that is one transaction, at the three isolation levels; the checkpoint of a plain step; a settlement; an enqueue.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from chaos.commits import HeldCommits, ghost_standby
from chaos.controller import Controller
from chaos.oracles import all_wrong, claim_history
from chaos.waiting import wait_for
from chaos.workloads import bank
from pgqueue.database import connect
from tests.support import Server

LEVELS = ("read committed", "repeatable read", "serializable")
#: Each with accounts of its own: they are in doubt at the same time, and should not wait for each other.
JOBS: dict[str, Any] = {
    **{f"transaction, {level}": bank.one_move.call(2 * i + 1, 2 * i + 2, level) for i, level in enumerate(LEVELS)},
    **{f"whole job, {level}": bank.MOVES[level].call(2 * i + 7, 2 * i + 8, 1) for i, level in enumerate(LEVELS)},
    "plain step": bank.one_tell.call(13),
    "settle": bank.tell.call(14),
}
KINDS = [*JOBS, "enqueue"]
#: Where the commit in doubt leaves a row.
TABLES = {"transaction": "checkpoint", "plain step": "checkpoint", "whole job": "outcome", "settle": "outcome", "enqueue": "job"}


@dataclass
class InDoubt:
    """One commit in doubt."""

    session: int = 0  # the server process inside COMMIT
    name: str = ""  # of its application: the same for the sessions that follow it
    xid: str = ""
    job: str = str(uuid.UUID(int=0))
    asked: bool = False  # did the client come back, and ask what became of it?
    runs_in_doubt: int = 0  # how often the job's code had run while the server was still inside COMMIT
    runs: int = 0  # and in all
    rows: int = 0  # that the commit was for, in the end
    committed: bool = False  # and the first one is theirs
    attempts: list[str] = field(default_factory=list)


class Scenario:
    """Brings a commit of each kind into doubt, lets the clients lose it, and sees what they make of it."""

    def __init__(self, chaos: Controller, dsn: str, directory: Path) -> None:
        self.chaos = chaos
        self.doubts = {kind: InDoubt() for kind in KINDS}
        self.wrong: list[str] = []
        self._dsn = dsn
        self._directory = directory

    def play(self, lose: Callable[[Scenario], None], end: Callable[[Scenario], None], ghost: bool = False) -> None:
        with ExitStack() as stack:
            conn = self.chaos.conn
            bank.install(conn)
            claim_history.install(conn)
            # Rows are found by their index, or serializable transactions would conflict over tables of one page. What this
            # setting makes look expensive would be compiled, for a long time.
            for setting in ("enable_seqscan", "jit"):
                conn.execute(f"ALTER DATABASE {conn.info.dbname} SET {setting} = off")  # type: ignore[call-overload]
            cut = "dispatch.before_run=dropconn:later"
            host = self.chaos.start("-w", str(len(JOBS)), "--lease", "2s", failpoints=cut, once=False)
            wait_for(lambda: self.chaos.query("SELECT count(*) FROM pgqueue.workers") == [(len(JOBS),)], self.chaos.story)
            self.held = None if ghost else HeldCommits(stack.enter_context(connect(self._dsn, "holder")))
            if self.held is None:
                stack.enter_context(ghost_standby(conn))
            else:
                for table in ("checkpoint", "outcome", "job"):
                    self.held.hold(f"pgqueue.{table}", who="^pgqueue:")
            for kind, call in JOBS.items():
                [job] = bank.app.enqueue_many([call], conn=conn)
                self.doubts[kind].job = job.id
            cut = "enqueue.before=dropconn:later"
            self.chaos.run("chaos.workloads.producer", str(self._directory / "journal.txt"), "1", failpoints=cut, once=False)
            wait_for(self._note_sessions, self.chaos.story)
            lose(self)
            end(self)
        wait_for(lambda: not self.chaos.query("SELECT 1 FROM pgqueue.job_values WHERE status = 'active'"), self.chaos.story)
        assert host.drain() == 0, self.chaos.story()
        self._note_results()

    def _inside_commit(self) -> list[int]:
        if self.held is not None:
            return self.held.waiting()
        waiting = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND application_name LIKE 'pgqueue:%%'"
        return [row[0] for row in self.chaos.query(waiting)]

    def _note_sessions(self) -> bool:
        """Whose server process is inside COMMIT, and in which transaction? True when there is one for each kind."""
        columns = "application_name, pid, backend_xid::text"
        sessions = self.chaos.query(f"SELECT {columns} FROM pg_stat_activity WHERE pid = ANY (%s)", self._inside_commit())
        workers = dict(self.chaos.query("SELECT job_id::text, worker::text FROM pgqueue.running"))
        for kind, doubt in self.doubts.items():
            doubt.name = "pgqueue:client" if kind == "enqueue" else f"pgqueue:{workers.get(doubt.job)}:"
            doubt.session, doubt.xid = next(((pid, xid) for name, pid, xid in sessions if name.startswith(doubt.name)), (0, ""))
        return all(doubt.session for doubt in self.doubts.values())

    def _note_results(self) -> None:
        for (job,) in self.chaos.query("SELECT id::text FROM pgqueue.job WHERE name LIKE '%%.order'"):
            self.doubts["enqueue"].job = job
        runs = self.runs()
        for kind, doubt in self.doubts.items():
            table = TABLES[kind.partition(",")[0]]
            column = "id" if table == "job" else "job_id"
            rows = self.chaos.query(f"SELECT xmin::text FROM pgqueue.{table} WHERE {column} = %s", doubt.job)
            doubt.rows, doubt.committed = len(rows), (doubt.xid,) in rows
            doubt.runs = runs[doubt.job]
            doubt.attempts = [
                row[0] for row in self.chaos.query("SELECT kind FROM pgqueue.attempts WHERE job_id = %s", doubt.job)
            ]
        self.wrong = all_wrong(self.chaos.conn, self._directory, faults=len(JOBS))

    def runs(self) -> Counter[str]:
        """How often the code of each job ran."""
        return Counter(line.split()[1].partition(":")[0] for line in (self._directory / "outside.txt").read_text().splitlines())

    # ------------------------------------------------------------------------------- ways to lose a commit

    def drop_connections(self) -> None:
        """The clients lose their connections, the server processes notice nothing. Then the clients are back."""
        self.chaos.release("dispatch.before_run")
        self.chaos.release("enqueue.before")
        wait_for(self._all_asked, self.chaos.story)

    def _all_asked(self) -> bool:
        """Have all clients come back, and asked? A transaction waits for the session of which it does not know what became.
        Whoever settles waits for nobody, and asks again."""
        runs = self.runs()
        alive = {row[0] for row in self.chaos.query("SELECT pid FROM pg_stat_activity")}
        for kind, doubt in self.doubts.items():
            if doubt.session in alive:
                doubt.runs_in_doubt = runs[doubt.job]
            asks = "cardinality(pg_blocking_pids(pid)) > 0" if kind != "settle" else "query LIKE '%%pgqueue.settle(%%'"
            others = f"SELECT 1 FROM pg_stat_activity WHERE starts_with(application_name, %s) AND pid <> %s AND {asks}"
            doubt.asked = doubt.asked or bool(self.chaos.query(others, doubt.name, doubt.session))
        return all(doubt.asked for doubt in self.doubts.values())

    def kill_clients(self) -> None:
        for name in ("dispatch.before_run", "enqueue.before"):
            for pid in self.chaos.waiting(name):
                self.chaos.kill(pid)

    # ----------------------------------------------------------------------- what becomes of the old sessions

    def commit(self) -> None:
        assert self.held is not None
        self.held.release()

    def roll_back(self, helped: tuple[str, ...]) -> None:
        """The old sessions end without having committed. Runs and reapers see to that themselves; an administrator helps where
        nothing of pgqueue could: nobody ends the sessions of a producer."""
        assert self.held is not None
        for kind in helped:
            self.chaos.terminate(self.doubts[kind].session)
        olds = [doubt.session for doubt in self.doubts.values()]
        wait_for(lambda: not self.chaos.query("SELECT 1 FROM pg_stat_activity WHERE pid = ANY (%s)", olds), self.chaos.story)
        self.held.release()

    def let_the_standby_go(self) -> None:
        """The end of the block does."""


SCENARIOS: dict[str, Callable[[Scenario], None]] = {
    "lost, committed later": lambda s: s.play(Scenario.drop_connections, Scenario.commit),
    "lost, rolled back": lambda s: s.play(Scenario.drop_connections, lambda s: s.roll_back(("settle", "enqueue"))),
    "lost, durable and unheard": lambda s: s.play(Scenario.drop_connections, Scenario.let_the_standby_go, ghost=True),
    "killed, committed later": lambda s: s.play(Scenario.kill_clients, Scenario.commit),
    "killed, rolled back": lambda s: s.play(Scenario.kill_clients, lambda s: s.roll_back(("enqueue",))),
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_commits_in_doubt(server: Server, dsn: str, tmp_path: Path, name: str) -> None:
    """Nobody concludes anything while the server is still inside COMMIT. Then: committed, and replayed; or not, and run again."""
    if server.embedded is None and "unheard" in name:
        pytest.skip("the server was given: its standbys are not for us to set")
    environment = {"BANK_FILE": str(tmp_path / "outside.txt")}
    with Controller(dsn, tmp_path, "chaos.workloads.bank:app", environment) as chaos:
        scenario = Scenario(chaos, dsn, tmp_path)
        SCENARIOS[name](scenario)
        wrong = [f"{kind}: {what}" for kind, doubt in scenario.doubts.items() for what in unexpected(name, kind, doubt)]
        assert wrong + scenario.wrong == [], chaos.story()
        if name == "lost, committed later":
            assert any(doubt.committed for doubt in scenario.doubts.values()), "all were ended before they could commit"


def unexpected(scenario: str, kind: str, doubt: InDoubt) -> list[str]:
    """What should not have become of this commit."""
    killed = scenario.startswith("killed")
    abandoned = kind == "enqueue" and scenario == "killed, rolled back"  # its producer is dead, and never knew
    if kind == "enqueue":
        runs = {0}
    elif kind == "settle":  # not run again, unless its worker died before its result was safe
        runs = {1, 2} if scenario == "killed, rolled back" else {1}
    else:
        runs = {1 if doubt.committed else 2}
    expectations = {
        f"{doubt.rows} rows are there": doubt.rows == (0 if abandoned else 1),
        "it is not durable": doubt.committed or not scenario.endswith("durable and unheard"),
        "it has committed": not doubt.committed or not scenario.endswith("rolled back"),
        f"its code ran {doubt.runs} times, committed: {doubt.committed}": doubt.runs in runs,
        f"its code had run {doubt.runs_in_doubt} times while it was in doubt": killed
        or doubt.runs_in_doubt == (kind != "enqueue"),
        f"attempts were counted: {doubt.attempts}": doubt.attempts == [] or (killed and doubt.attempts == ["crash"]),
    }
    return [what for what, as_expected in expectations.items() if not as_expected]
