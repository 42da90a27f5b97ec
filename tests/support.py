"""What several tests need: waiting for conditions, worker processes, and running jobs in this process."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import psycopg
from psycopg import conninfo

from chaos import waiting
from pgqueue import App, migrate, protocol
from pgqueue.colour import blocking
from pgqueue.database import connect, run
from pgqueue.embedded import Embedded
from pgqueue.ids import Process, new_token
from pgqueue.model import ClaimedJob, Settlement
from pgqueue.runtime.ground import AsyncGround, Ground
from pgqueue.runtime.run import JobRun

T = TypeVar("T")
ROOT = Path(__file__).parent.parent


def wait_for(condition: Callable[[], T], seconds: float = 60, what: str = "") -> T:
    """The condition's first true value. Fails after the deadline, which is ten times what is promised."""
    return waiting.wait_for(condition, what or condition.__name__, seconds)


def database_of(dsn: str, name: str) -> str:
    """The same server, another database."""
    return conninfo.make_conninfo(dsn, dbname=name)


@dataclass
class Server:
    """The PostgreSQL under test. ``embedded`` is None where it was given, and must not be stopped."""

    dsn: str
    embedded: Embedded | None


def _as_it_is(dsn: str) -> str:
    return dsn


@dataclass
class Way:
    """How programs reach the database of a test: the DSN of its owner becomes theirs."""

    worker: Callable[[str], str] = _as_it_is
    producer: Callable[[str], str] = _as_it_is


def as_roles(template: str) -> Way:
    """As two logins that have no rights but those of their roles; the tables of the tests are the worker's too. To be made in the
    database that the others are copies of."""
    logins = {kind: f"tests_{kind}" for kind in ("producer", "worker")}
    with connect(template, "tests") as conn:
        migrate.migrate(conn, roles=True)
        for kind, login in logins.items():
            if conn.execute("SELECT to_regrole(%s) IS NULL", (login,)).fetchone() == (True,):
                conn.execute(f"CREATE ROLE {login} LOGIN PASSWORD 'secret'")  # type: ignore[arg-type]
            run(conn, protocol.grant_role(kind, login))
        conn.execute("GRANT pgqueue_reader TO tests_producer")  # and what handles need: see docs/operations.md
        for view in ("job_values", "steps", "attempts", "progress", "stream"):
            conn.execute(f"GRANT SELECT ON pgqueue.{view} TO tests_producer")  # type: ignore[arg-type]
        conn.execute("GRANT EXECUTE ON FUNCTION pgqueue.awaited, pgqueue.read_stream TO tests_producer")
        conn.execute("GRANT CREATE ON SCHEMA public TO tests_worker")
        conn.execute("ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO tests_worker")
        conn.execute("ALTER DEFAULT PRIVILEGES GRANT ALL ON SEQUENCES TO tests_worker")
    return Way(*(partial(_log_in, login) for login in (logins["worker"], logins["producer"])))


def _log_in(user: str, dsn: str) -> str:
    return conninfo.make_conninfo(dsn, user=user, password="secret")


class Work:
    """One ``pgqueue work`` process with its children."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self.pid = process.pid
        self._log = log

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def children(self) -> list[int]:
        """All child processes, the housekeeper among them."""
        path = Path(f"/proc/{self.pid}/task/{self.pid}/children")
        try:
            return [int(pid) for pid in path.read_text().split()]
        except (FileNotFoundError, ProcessLookupError):
            return []

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def wait(self, seconds: float = 60) -> int:
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"pgqueue work still runs after {seconds} s\n{self.log()}") from None

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


class Workers:
    """Starts ``pgqueue work`` processes for one database."""

    def __init__(self, dsn: str, tmp_path: Path) -> None:
        self._dsn = dsn
        self._tmp = tmp_path
        self._started: list[Work] = []

    def start(
        self,
        target: str = "tests.apps.bank:app",
        *options: str,
        env: dict[str, str] | None = None,
        program: Sequence[str] = (sys.executable, "-m", "pgqueue"),
    ) -> Work:
        log = self._tmp / f"work-{len(self._started)}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [*program, "work", target, *options],
                env={**os.environ, "PGQUEUE_DSN": self._dsn, "PGQUEUE_WORKERS": "2", **(env or {})},
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        work = Work(process, log)
        self._started.append(work)
        return work

    def burst(self, target: str = "tests.apps.bank:app", *options: str, env: dict[str, str] | None = None) -> Work:
        """Run until nothing is left to do."""
        work = self.start(target, "--burst", *options, env=env)
        code = work.wait(120)
        assert code == 0, work.log()
        return work

    def stop_all(self) -> None:
        for work in self._started:
            if work.process.poll() is None:
                for pid in [*work.children(), work.pid]:
                    try:
                        os.kill(pid, signal.SIGCONT)
                        os.kill(pid, signal.SIGKILL)
                    except ProcessLookupError:
                        pass
            work.process.wait()


class Hand:
    """A worker by hand: claims and settles on one connection, runs jobs in this process. No second implementation: the verbs and
    the runtime are the real ones, only the processes are missing."""

    def __init__(self, app: App, dsn: str) -> None:
        self.app = app
        self.dsn = dsn
        self.id = str(uuid.uuid4())
        self.conn = connect(dsn, f"pgqueue:{self.id}:claims")
        run(self.conn, app.registration())
        run(self.conn, protocol.register_worker(self.id, Process.of(os.getpid())))
        self.ground = Ground(dsn, self.id)
        self.loop = asyncio.Runner()
        self._async_ground: AsyncGround | None = None

    def claim(self, amount: int = 100, names: Sequence[str] | None = None) -> list[ClaimedJob]:
        queues = list(self.app.queues)
        known = list(self.app.functions) if names is None else list(names)
        hints = [0] * 20 * len(queues)
        return [job for job, _ in run(self.conn, protocol.claim(self.id, new_token(), queues, known, amount, hints))]

    def run(self, job: ClaimedJob) -> Settlement | None:
        if not self.app.functions[job.name].is_async:
            return blocking(JobRun(self.app, job, self.ground, 1 << 20).execute())
        return self.loop.run(self._on_loop(job))

    async def _on_loop(self, job: ClaimedJob) -> Settlement | None:
        self._async_ground = self._async_ground or AsyncGround(self.dsn, self.id, 10)
        return await JobRun(self.app, job, self._async_ground, 1 << 20).execute()

    def settle(self, *settlements: Settlement) -> dict[str, str]:
        return run(self.conn, protocol.settle(settlements))

    def wake(self) -> int:
        """As a housekeeper does."""
        moved, more, _ = run(self.conn, protocol.wake(1000))
        while run(self.conn, protocol.cancel_waiting()) or more:
            also, more, _ = run(self.conn, protocol.wake(1000))
            moved += also
        return moved

    def drain(self, due_now: bool = True) -> int:
        """Run everything until nothing is ready. With ``due_now`` what is scheduled counts as due."""
        count = 0
        while True:
            if due_now:
                past = "clock_timestamp() - interval '1 second'"
                self.conn.execute(f"UPDATE pgqueue.scheduled SET run_at = {past}")
                self.conn.execute(f"UPDATE pgqueue.wait SET until = {past} WHERE kind = 'sleep'")
                run(self.conn, protocol.promote(1000))
            self.wake()
            jobs = self.claim()
            if not jobs:
                return count
            for job in jobs:
                settlement = self.run(job)
                if settlement is not None:
                    answers = self.settle(settlement)
                    assert answers == {}, answers
                count += 1

    def close(self) -> None:
        self.ground.close()
        if self._async_ground is not None:
            self._async_ground.close()
            self.loop.run(self.app.aclose())
        self.loop.close()
        self.conn.close()


def drain(app: App, dsn: str) -> int:
    """All that is ready or due, on one connection, one job after the other: each finds what the one before it has left behind."""
    hand = Hand(app, dsn)
    try:
        return hand.drain()
    finally:
        hand.close()


def violations(conn: psycopg.Connection[Any]) -> list[Any]:
    """Jobs that are not in exactly one place. And no conflict was ever counted."""
    assert conn.execute("SELECT is_called FROM pgqueue.conflict").fetchone() == (False,)
    return conn.execute("SELECT * FROM pgqueue.violations").fetchall()


def states(conn: psycopg.Connection[Any]) -> dict[str, int]:
    """How many jobs are in each state."""
    return dict(conn.execute("SELECT state, count(*) FROM pgqueue.jobs GROUP BY state").fetchall())


def worker_pids(conn: psycopg.Connection[Any], work: Work) -> list[int]:
    """Worker processes (not the housekeeper) of this supervisor."""
    registered = {row[0] for row in conn.execute("SELECT pid FROM pgqueue.workers WHERE fenced_at IS NULL")}
    return [pid for pid in work.children() if pid in registered]


def kill(pid: int, number: int = signal.SIGKILL) -> bool:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def stopped(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except (FileNotFoundError, ProcessLookupError):
        return False


def later(conn: psycopg.Connection[Any], interval: str) -> None:
    """For pgqueue's functions and views it is so much later from now on."""
    text = (ROOT / "pgqueue" / "testing" / "clock.sql").read_text().format(ahead=f"interval '{interval}'")
    conn.execute(text)  # type: ignore[call-overload]


def nothing_is_lost(conn: psycopg.Connection[Any], jobs: int) -> None:
    """All jobs are somewhere, nobody holds any, and no attempt was used."""
    assert sum(states(conn).values()) == jobs
    assert "running" not in states(conn)
    assert conn.execute("SELECT kind FROM pgqueue.attempts").fetchall() == []
    assert violations(conn) == []
