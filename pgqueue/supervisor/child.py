"""What the supervisor remembers of its children, and the few things that one does to a process."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from pgqueue.slots import Phase, Slot

RESPAWN_FIRST, RESPAWN_LONGEST = 0.1, 30.0  # seconds
STABLE_AFTER = 10.0  # seconds of life, or two finished jobs, after which a death says nothing about the next start


class Death(msgspec.Struct):
    """What the housekeeper has to know about a worker that died."""

    worker: str
    started: list[int]  # digests of the jobs it was running
    reason: str | None  # None: nobody is charged
    overdue: int | None = None  # it was ended because of the time limit of this step of its job; 0: of the job
    at: float = msgspec.field(default_factory=time.monotonic)  # when the supervisor saw it

    @property
    def kind(self) -> str:
        """For the metric."""
        return "timeout" if self.overdue is not None else "ended" if self.reason is None else "crash"


@dataclass(eq=False)
class Child:
    """A worker process."""

    pid: int
    worker: str
    slot: Slot
    born: float  # by the monotonic clock
    generation: int
    stacks: Scratch
    most_jobs: int = 0  # it leaves by itself after so many; 0: never
    worn_out: str | None = None  # why another one is to take its place
    killed: bool = False  # by us
    overdue: tuple[int, int] | None = None  # the job and step because of which we killed it
    condemned: float | None = None  # when it was asked for its stacks, before it is killed for standing still
    memory: int = 0  # private bytes when last looked at

    @property
    def booted(self) -> bool:
        """Does it take jobs?"""
        return self.slot.phase not in (Phase.FREE, Phase.BOOTING)

    @property
    def has_jobs(self) -> bool:
        """Is there anything that has to be given back when it dies?"""
        return self.slot.held() != {0}


@dataclass
class Pause:
    """How long to wait before somebody is started again whose predecessor died young."""

    longest: float = RESPAWN_LONGEST
    delay: float = RESPAWN_FIRST
    until: float = 0.0

    def died(self, now: float, well: bool) -> None:
        """``well``: it had lived long, or had worked."""
        if well:
            self.delay, self.until = RESPAWN_FIRST, 0.0
        else:
            self.until = now + self.delay
            self.delay = min(self.longest, self.delay * 2)


@dataclass
class Place:
    """One of the N workers that there should be, across its incarnations."""

    child: Child | None = None
    successor: Child | None = None  # takes the place when it has booted
    pause: Pause = field(default_factory=Pause)


class Scratch:
    """A file in memory that one process writes and its parent reads: without blocking either, and whatever the writer dies of."""

    def __init__(self) -> None:
        self.descriptor = os.memfd_create("pgqueue") if hasattr(os, "memfd_create") else _nameless_file()
        self._read = 0

    def take(self) -> bytes:
        """What was written since the last time."""
        data = os.pread(self.descriptor, 1 << 20, self._read)
        self._read += len(data)
        return data

    def close(self) -> None:
        os.close(self.descriptor)


def _nameless_file() -> int:
    descriptor, name = tempfile.mkstemp(prefix="pgqueue")
    os.unlink(name)
    return descriptor


def pipe() -> tuple[int, int]:
    read, write = os.pipe()
    os.set_blocking(read, False)
    os.set_blocking(write, False)
    return read, write


def poke(descriptor: int) -> None:
    try:
        os.write(descriptor, b".")
    except BlockingIOError:
        pass


def tell(pid: int, number: int) -> None:
    """Send a signal to one of our children, dead or alive."""
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        pass


def kill_group(pid: int) -> None:
    """The process and what it started. The process itself too, in case it died before it could make its group."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass
    tell(pid, signal.SIGKILL)


def is_stopped(pid: int) -> bool:
    """Has somebody sent it SIGSTOP? (Not: does a debugger hold it?) Nobody knows where there is no /proc."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except OSError:
        return False


def describe(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name if -code in signal.Signals.__members__.values() else f"signal {-code}"
    return f"killed by {name}"
