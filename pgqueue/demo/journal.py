"""What the workers were doing when they were killed, and when the job that was hit ran again.

Each run of a job writes lines into a file as it goes: what is written there survives a kill -9, and all processes of a machine
share the monotonic clock. A run that was killed is one that has a beginning and no end.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pgqueue import current

DIRECTORY = "PGQUEUE_DEMO_DIR"
"""The environment variable that tells the workers where to write."""
FILE = "journal.log"
SOON = 500_000_000  # nanoseconds in which a signal arrives, and in which no process number is used again


def directory() -> Path:
    """Where the files of this demo are."""
    return Path(os.environ[DIRECTORY])


def append(name: str, line: str) -> None:
    """One line, one write: whole, whoever else writes and whoever is killed."""
    file = os.open(directory() / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(file, line.encode() + b"\n")
    finally:
        os.close(file)


def note(what: str) -> None:
    """The running job has come to this point."""
    append(FILE, f"{time.monotonic_ns()} {os.getpid()} {current().job_id} {what}")


@contextmanager
def run() -> Iterator[None]:
    """Around the code of a workflow: where a run begins and ends. A killed one does not end."""
    note("begin")
    try:
        yield
    finally:
        note("end")


@dataclass(frozen=True)
class Kill:
    """A worker process that we killed: itself, or with its supervisor."""

    at: int  # time.monotonic_ns()
    pid: int
    with_supervisor: bool


@dataclass(frozen=True)
class Hit:
    """A kill that interrupted a run."""

    kill: Kill
    job: str
    doing: str  # the step it was in
    recovery: float | None  # seconds from the kill to the next run of the job; None: there was none


def hits(where: Path, kills: Iterable[Kill]) -> list[Hit]:
    """What the kills hit. A killed process writes nothing more; one with the same number may come, much later."""
    file = where / FILE
    lines = [line.split() for line in file.read_text().splitlines()] if file.exists() else []
    notes = [(int(at), int(pid), job, what) for at, pid, job, what in lines]
    begins: dict[str, list[int]] = {}
    for at, _, job, what in notes:
        if what == "begin":
            begins.setdefault(job, []).append(at)
    found = []
    for kill in kills:
        last = max(((at, job, what) for at, pid, job, what in notes if pid == kill.pid and at < kill.at + SOON), default=None)
        if last is None or last[2] == "end":
            continue
        again = min((at for at in begins[last[1]] if at > kill.at), default=None)
        found.append(Hit(kill, last[1], last[2], None if again is None else (again - kill.at) / 1e9))
    return found
