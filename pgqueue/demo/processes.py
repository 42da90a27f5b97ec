"""Processes of the demo: starting them, killing them with -9, and making sure that none is left."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

from pgqueue.demo.journal import DIRECTORY
from pgqueue.demo.signals import Signals
from pgqueue.errors import PgQueueError

if TYPE_CHECKING:
    from collections.abc import Iterator

DRAIN = 15.0  # seconds for a supervisor to leave
ORPHANS = 10.0  # seconds for what a killed supervisor left to leave by itself


class ProcessError(PgQueueError):
    """A process of the demo did not do what it was started for."""


def environment(dsn: str, where: Path, **more: str) -> dict[str, str]:
    """For our children: the database is named here and not on a command line, which everybody can read."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PGQUEUE_FAILPOINTS")}
    return {**inherited, "PGQUEUE_DSN": dsn, DIRECTORY: str(where), **more}


class Handle:
    """A process that is not our child. Where the system can, it is held fast: its number cannot come to mean another one."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        try:
            self._fd: int | None = os.pidfd_open(pid)
        except (AttributeError, OSError):  # not Linux, or it is gone
            self._fd = None

    def kill(self) -> bool:
        """kill -9. False: it was gone."""
        try:
            if self._fd is None:
                os.kill(self.pid, signal.SIGKILL)
            else:
                signal.pidfd_send_signal(self._fd, signal.SIGKILL)
        except ProcessLookupError:
            return False
        return True

    def wait(self, seconds: float) -> bool:
        """Wait until it is gone."""
        if self._fd is not None:
            return bool(select.select([self._fd], [], [], max(0.0, seconds))[0])
        deadline = time.monotonic() + seconds
        while self.pid in parents():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True

    def close(self) -> None:
        """Let go of it."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def parents() -> dict[int, int]:
    """Of every living process its parent."""
    if not Path("/proc/self/stat").exists():
        listing = subprocess.run(["/bin/ps", "-A", "-o", "pid=,ppid=,stat="], capture_output=True, text=True, check=True).stdout
        rows = [line.split() for line in listing.splitlines()]
        return {int(pid): int(parent) for pid, parent, state in rows if not state.startswith("Z")}
    found = {}
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            stat = (directory / "stat").read_text()
        except OSError:
            continue
        state, parent = stat[stat.rindex(")") + 2 :].split()[:2]
        if state not in "ZX":
            found[int(directory.name)] = int(parent)
    return found


class Supervisor:
    """A real ``pgqueue work`` for the shop, which can be killed and started again."""

    def __init__(self, dsn: str, where: Path, *arguments: str, **more: str) -> None:
        self._command = [sys.executable, "-m", "pgqueue", "work", "pgqueue.demo.shop:app", *arguments]
        self._environment = environment(dsn, where, **more)
        self._log = where / "work.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._orphans: list[Handle] = []  # children of supervisors that were killed

    def start(self) -> None:
        """Start it."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, env=self._environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def children(self) -> list[Handle]:
        """Its living children: the workers and the housekeeper."""
        if self._process is None:
            return []
        parent = self._process.pid
        handles = [Handle(pid) for pid, of in parents().items() if of == parent]
        after = parents()  # held fast by now: is it still the same process?
        for handle in handles:
            if after.get(handle.pid) != parent:
                handle.close()
        return [handle for handle in handles if after.get(handle.pid) == parent]

    def kill(self) -> None:
        """kill -9 of the supervisor alone. Its children are to notice by themselves."""
        if self._process is not None:
            self._orphans += self.children()
            self._process.kill()
            self._process.wait()

    def check(self) -> None:
        """ProcessError if it has ended, which it never should by itself."""
        if self._process is not None and self._process.poll() is not None:
            raise ProcessError(f"pgqueue work ended by itself, exit code {self._process.returncode}: {self._last_words()}")

    def wait(self, seconds: float, signals: Signals) -> None:
        """Wait until it leaves by itself, having done its work."""
        deadline = time.monotonic() + seconds
        while self._process is not None and self._process.poll() is None:
            signals.check()
            if time.monotonic() > deadline:
                raise ProcessError(f"pgqueue work still runs after {seconds:g} s: {self._last_words()}")
            time.sleep(0.02)
        if self._process is not None and self._process.returncode != 0:
            self.check()

    def stop(self) -> int | None:
        """Stop it as a service manager would, and see to it that nothing is left. Its exit code."""
        if self._process is None:
            return None
        self._orphans += self.children()
        self._process.terminate()
        try:
            self._process.wait(DRAIN)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        bury(self._orphans)
        code, self._process, self._orphans = self._process.returncode, None, []
        return code

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").splitlines() if self._log.exists() else []
        return lines[-1] if lines else "it said nothing"


def bury(orphans: Iterable[Handle]) -> None:
    """Wait until these are gone; help those that do not go."""
    deadline = time.monotonic() + ORPHANS
    for handle in orphans:
        if not handle.wait(deadline - time.monotonic()):
            handle.kill()
        handle.close()


class Program:
    """One of programs.py, running."""

    def __init__(self, process: subprocess.Popen[str], output: IO[str], input: IO[str], signals: Signals) -> None:
        self._process, self._output, self._input, self._signals = process, output, input, signals
        self.pid = process.pid

    def until(self, moment: str) -> None:
        """Wait until it says that this moment has come."""
        while not select.select([self._output], [], [], 0.1)[0]:
            self._signals.check()
        said = self._output.readline().strip()
        if said != moment:
            raise ProcessError(f"a program of the demo said {said!r} instead of {moment!r}")

    def go_on(self) -> None:
        """Let it go on."""
        self._input.write("\n")
        self._input.flush()

    def kill(self) -> None:
        """kill -9."""
        self._process.kill()
        self._process.wait()

    def finish(self) -> None:
        """Wait until it has done its work."""
        if self._process.wait(30) != 0:
            raise ProcessError(f"a program of the demo failed, exit code {self._process.returncode}")


@contextmanager
def program(name: str, environment: Mapping[str, str], signals: Signals) -> Iterator[Program]:
    """Start one of programs.py; afterwards it is gone in any case."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pgqueue.demo.programs", name],
        env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        if process.stdin is None or process.stdout is None:
            raise ProcessError("no pipes")
        yield Program(process, process.stdout, process.stdin, signals)
    finally:
        process.kill()
        process.communicate()
