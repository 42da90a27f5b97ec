"""Starts hosts with failpoints, knows who reached which, and does to processes and sessions what a fault would do.

    with Controller(dsn, directory, "chaos.workloads.bank:app") as chaos:
        host = chaos.start("-w", "2", failpoints="transaction.fenced=park")
        worker = chaos.arrival("transaction.fenced")
        chaos.kill(worker)

Everything that it does and sees is written to ``events.jsonl``: ``story()`` is what to print when a test fails.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import psycopg

from chaos.processes import Host, Program, send_signal, state
from chaos.waiting import wait_for
from pgqueue.database import connect, is_lost
from pgqueue.errors import DatabaseUnreachable
from pgqueue.ids import start_ticks

P = TypeVar("P", bound=Program)

#: How the sessions of each kind are found in pg_stat_activity. The housekeeper has two of one name.
SESSIONS = {
    "step": "application_name LIKE 'pgqueue:%%:step%%'",
    "claims": "application_name LIKE 'pgqueue:%%:claims'",
    "heartbeat": "application_name LIKE 'pgqueue:housekeeper:%%' AND query LIKE '%%pgqueue.heartbeat(%%'",
    "duties": "application_name LIKE 'pgqueue:housekeeper:%%' AND query NOT LIKE '%%pgqueue.heartbeat(%%'",
    "client": "application_name LIKE 'pgqueue:client%%'",
}


class Controller:
    """One database, the programs that work on it, and the directory where they leave their notes."""

    def __init__(self, dsn: str, directory: Path, target: str, environment: dict[str, str] | None = None) -> None:
        self.dsn = dsn
        self._directory = directory
        self._target = target
        self._environment = environment or {}
        self._programs: list[Program] = []
        self._sessions: dict[int, psycopg.Connection[Any]] = {}  # by thread
        self._began = time.monotonic()
        self._events = (directory / "events.jsonl").open("a")

    def __enter__(self) -> Controller:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for program in self._programs:
            program.kill()
        for conn in self._sessions.values():
            conn.close()
        self._events.close()

    # --------------------------------------------------------------------------------------------- programs

    def start(self, *options: str, failpoints: str = "", once: bool = True, dsn: str | None = None) -> Host:
        """Start ``pgqueue work``. ``once``: each failpoint fires in one process only, the first that comes by. ``dsn``: if it
        reaches the database on another way."""
        return self._started(Host, ["-m", "pgqueue", "work", self._target, *options], failpoints, once, dsn)

    def run(self, module: str, *arguments: str, failpoints: str = "", once: bool = True) -> Program:
        """Start another program: a producer, for example."""
        return self._started(Program, ["-m", module, *arguments], failpoints, once)

    def _started(self, kind: type[P], command: list[str], failpoints: str, once: bool, dsn: str | None = None) -> P:
        # The DSN is on no command line: it may have a password, and what is run is in events.jsonl.
        environment = {**os.environ, "PGQUEUE_DSN": dsn or self.dsn, **self._environment}
        if failpoints:
            environment["PGQUEUE_FAILPOINTS"] = failpoints
            environment["PGQUEUE_FAILPOINTS_ONCE" if once else "PGQUEUE_FAILPOINTS_DIR"] = str(self._directory)
        program = kind([sys.executable, *command], environment, self._directory / f"program-{len(self._programs)}.log")
        self._programs.append(program)
        self.note("start", pid=program.pid, command=" ".join(command[1:]), failpoints=failpoints)
        return program

    # ------------------------------------------------------------------------------------------- failpoints

    def passed(self, name: str) -> int:
        """The process that came by this failpoint; 0: none yet."""
        try:
            return int((self._directory / name).read_text() or 0)
        except FileNotFoundError:
            return 0

    def arrival(self, name: str, seconds: float = 60) -> int:
        """Wait until a process comes by this failpoint: its pid."""
        pid = wait_for(lambda: self.passed(name), lambda: f"somebody at {name}\n{self.story()}", seconds)
        self.note("arrival", name=name, pid=pid)
        return pid

    def reached(self, name: str, pid: int) -> None:
        """Note that a process is at a place that is no failpoint of its own: inside the server, for example."""
        (self._directory / name).write_text(f"{pid}\n")

    def waiting(self, name: str) -> list[int]:
        """The processes that wait at this failpoint until they are let go on (or told to drop their connections)."""
        return [int(path.name.rpartition(".")[2]) for path in self._directory.glob(f"{name}.*") if path.is_fifo()]

    def release(self, name: str) -> None:
        """Let all that wait at this failpoint go on."""
        for pid in self.waiting(name):
            self.note("release", name=name, pid=pid)
            wait_for(lambda pid=pid: self._open(name, pid), f"process {pid} at {name}")

    def _open(self, name: str, pid: int) -> bool:
        try:
            os.close(os.open(self._directory / f"{name}.{pid}", os.O_WRONLY | os.O_NONBLOCK))
        except OSError as error:
            if error.errno == errno.ENXIO and state(pid) not in "ZX":
                return False  # it has made the FIFO, and not opened it yet
        return True

    # ------------------------------------------------------------------------------------------------ faults

    def kill(self, pid: int) -> None:
        """SIGKILL to one process."""
        self.note("kill", pid=pid)
        send_signal(pid)

    def wait_until_stopped(self, pid: int) -> None:
        """The process has stopped itself at a failpoint."""
        wait_for(lambda: state(pid) == "T", f"process {pid} to stop")

    def owner(self, pid: int) -> Program:
        """The program that a process belongs to."""
        return next(program for program in self._programs if pid in program.processes())

    def sessions(self, kind: str) -> list[int]:
        """The server processes of all sessions of a kind (a key of SESSIONS)."""
        of_this_kind = f"SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND {SESSIONS[kind]}"
        return [row[0] for row in self.query(of_this_kind)]

    def workers(self) -> list[int]:
        """The processes of all workers that have a lease."""
        return [row[0] for row in self.query("SELECT pid FROM pgqueue.worker WHERE fenced_at IS NULL")]

    def client(self, session: int, host: Host) -> int:
        """The process of a host that has this session."""
        [(name,)] = self.query("SELECT application_name FROM pg_stat_activity WHERE pid = %s", session)
        if name.startswith("pgqueue:housekeeper:"):
            children = [pid for pid in host.processes() if pid != host.pid]
            return min(children, key=lambda pid: start_ticks(pid) or 0)  # the first child of a supervisor that stays
        [(pid,)] = self.query("SELECT pid FROM pgqueue.worker WHERE id::text = %s", name.split(":")[1])
        return int(pid)

    def terminate(self, session: int) -> None:
        """End one session as an administrator would."""
        self.note("terminate", session=session)
        self.query("SELECT pg_terminate_backend(%s)", session)

    def kill_session(self, session: int) -> bool:
        """SIGKILL to one server process: PostgreSQL then restarts them all. Only for a server that is ours. False where it
        has ended meanwhile."""
        self.note("kill session", session=session)
        return send_signal(session)

    # --------------------------------------------------------------------------------------- looking around

    @property
    def conn(self) -> psycopg.Connection[Any]:
        """The controller's own session, one for each of its threads, opened again where a fault took it. Waits for the server."""
        thread = threading.get_ident()
        conn = self._sessions.get(thread)
        if conn is None or conn.closed:
            conn = self._sessions[thread] = wait_for(self._connected, "the server to answer")
        return conn

    def _connected(self) -> psycopg.Connection[Any] | None:
        try:
            conn = connect(self.dsn, "chaos")
            conn.execute("SET synchronous_commit = local")  # to wait for no standby, least of all one that does not exist
            return conn
        except (DatabaseUnreachable, psycopg.OperationalError):
            return None

    def query(self, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Ask, and ask again where the session was lost: only for what may be repeated."""
        while True:
            conn = self.conn
            try:
                return conn.execute(sql, parameters).fetchall()
            except psycopg.Error as error:
                if not is_lost(error):
                    raise
                conn.close()

    def note(self, event: str, **facts: Any) -> None:
        """Write to the log of events."""
        moment = round(time.monotonic() - self._began, 3)
        self._events.write(json.dumps({"at": moment, "event": event, **facts}) + "\n")
        self._events.flush()

    def story(self) -> str:
        """What happened so far: the events, and the end of what each program wrote."""
        parts = [(self._directory / "events.jsonl").read_text()]
        parts += [f"--- process {program.pid}\n{program.text()[-3000:]}" for program in self._programs]
        return "\n".join(parts)
