"""What the supervisor remembers of its children, and the few things that one does to a process."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass

import msgspec

from pgqueue.slots import Slot

RESPAWN_FIRST, RESPAWN_LONGEST = 0.1, 30.0  # seconds


class Death(msgspec.Struct):
    """What the housekeeper has to know about a worker that died."""

    worker: str
    started: list[int]  # digests of the jobs it was running
    reason: str | None  # None: we ended it, nobody is charged
    overdue: int | None = None  # it was ended because of the time limit of this step of its job; 0: of the job
    at: float = msgspec.field(default_factory=time.monotonic)  # when the supervisor saw it


@dataclass
class Child:
    """A worker process."""

    pid: int
    worker: str
    slot: Slot
    born: float
    ended_by_us: bool = False
    overdue: tuple[int, int] | None = None  # the job and step because of which we ended it


@dataclass
class Place:
    """One of the N workers that there should be, across its incarnations."""

    child: Child | None = None
    next_start: float = 0.0
    delay: float = RESPAWN_FIRST


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


def kill_group(pid: int) -> None:
    """The process and what it started. The process itself too, in case it died before it could make its group."""
    for kill in (os.killpg, os.kill):
        try:
            kill(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass


def exit_reason(child: Child, code: int, draining: bool) -> str:
    """Why a worker ended, in one word for the metric."""
    if child.overdue is not None:
        return "timeout"
    if child.ended_by_us:
        return "killed"  # by its supervisor: a drain that took too long, a lost lease, a job that was cancelled at once
    if code < 0:
        return "signal"
    return "stopped" if code == 0 and draining else "exit"


def describe(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name if -code in signal.Signals.__members__.values() else f"signal {-code}"
    return f"killed by {name}"
