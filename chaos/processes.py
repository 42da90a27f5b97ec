"""The processes under test: ``pgqueue work`` with its children, as one host would run them, and other programs."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

from chaos.waiting import wait_for

ROOT = Path(__file__).parent.parent


def send_signal(pid: int, number: int = signal.SIGKILL) -> bool:
    """False where there is no such process any more."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def state(pid: int) -> str:
    """R running, S sleeping, T stopped, Z dead and not yet buried ...; X where there is no such process."""
    return _stat(pid)[0]


def session(pid: int) -> int:
    """The session that a process belongs to; 0 where it is dead."""
    said = _stat(pid)
    return int(said[3]) if said[0] not in "ZX" else 0


def parent(pid: int) -> int:
    """The process that forked it, or who has adopted it; 0 where there is no such process."""
    said = _stat(pid)
    return int(said[1]) if said[0] != "X" else 0


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on."""
    try:
        with open(f"/proc/{pid}/stat") as file:  # a storm asks this of all processes, some thousand times
            return file.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ["X"]


class Program:
    """A process that was started for a test, what it forked, and what they write."""

    def __init__(self, command: list[str], environment: dict[str, str], output: Path) -> None:
        self._output = output
        self.began = time.time()
        with output.open("wb") as file:
            self._process = subprocess.Popen(
                command, env=environment, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
            )
        self.pid = self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def text(self) -> str:
        """What it has written so far."""
        return self._output.read_text(errors="replace")

    def signal(self, number: int) -> None:
        """Does nothing where the process has ended."""
        self._process.send_signal(number)

    def wait(self, seconds: float = 60) -> int:
        """The exit code; minus the signal that killed it."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"process {self.pid} still runs after {seconds:g} s") from None

    def processes(self) -> list[int]:
        """All that descends from it, also what has lost its parent: it is a session of its own. The oldest first."""
        return [pid for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdigit()) if session(pid) == self.pid]

    def pause(self) -> None:
        """SIGSTOP to all of it, as when a host stands still. The parent first: then it starts nobody meanwhile."""
        for pid in self.processes():
            send_signal(pid, signal.SIGSTOP)
            wait_for(lambda pid=pid: state(pid) in "TZX", f"process {pid} to stop")

    def resume(self, first: Iterable[int] = ()) -> None:
        """SIGCONT to all of it. ``first`` go on before the others, and do whatever they can still do."""
        for pid in first:
            send_signal(pid, signal.SIGCONT)
            _wait_until_quiet(pid)
        for pid in reversed(self.processes()):
            send_signal(pid, signal.SIGCONT)

    def kill(self) -> None:
        """Leave nothing of it behind, whatever state it is in."""
        while pids := self.processes():
            for pid in pids:
                send_signal(pid)
            self._process.poll()
            time.sleep(0.01)
        self._process.wait()


class Host(Program):
    """One ``pgqueue work``: a supervisor with its housekeeper and workers."""

    @property
    def booting(self) -> bool:
        """Has it not yet said what it works on? (If it has ended, it never did.)"""
        return not re.search(r"\d workers? for ", self.text())

    def drain(self) -> int:
        """SIGTERM, and wait for the end. The exit code."""
        self.signal(signal.SIGTERM)
        return self.wait()


def _wait_until_quiet(pid: int) -> None:
    """Until the process sleeps and has not computed anything for a while, or is gone: what it could still do, it has tried.
    For a busy one nobody waits long: the others go on beside it."""
    looks: list[list[str]] = []

    def quiet() -> bool:
        looks.append(_stat(pid)[:13])  # with the processor time it has used
        return looks[-1][0] in "ZX" or (looks[-1][0] == "S" and len(looks) > 5 and looks[-5:] == [looks[-1]] * 5)

    try:
        wait_for(quiet, "", seconds=3)
    except AssertionError:
        pass
