"""The vocabulary in types: what a worker is given, what it answers, what a producer asks for. No behaviour."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["workflow", "step", "transaction"]
Isolation = Literal["read committed", "repeatable read", "serializable"]
How = Literal["succeeded", "failed", "cancelled", "retry", "release", "suspend", "nothing"]
State = Literal["ready", "scheduled", "running", "waiting", "succeeded", "failed", "cancelled"]

ENDED: tuple[State, ...] = ("succeeded", "failed", "cancelled")
NAME = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
LANES = 20
"""Two for each of the ten priorities: jobs that come back, and behind them fresh ones."""


@dataclass(frozen=True)
class Queue:
    """A named stream of jobs. The queue ``default`` always exists.

    >>> Queue("mail")
    Queue(name='mail')
    """

    name: str

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not NAME.fullmatch(self.name):
            raise ValueError(f"{self.name!r} cannot be the name of a queue: 1 to 128 letters, digits and _ . : -")


@dataclass(slots=True)
class ClaimedJob:
    """A job that this worker holds. ``(id, token)`` is the fence of everything it writes."""

    id: str
    token: int = field(repr=False)
    name: str
    input: str = field(repr=False)  # error reporters show what they meet
    queue: str
    lane: int
    policy: dict[str, Any] | None
    suspect: bool = False  # its last worker died
    seconds_left: float | None = None  # of its time limit, when it was claimed
    place: int = -1  # where shared memory remembers it

    @property
    def came_back(self) -> bool:
        """Did it run before? Fresh jobs have no history worth asking for."""
        return self.lane % 2 == 0


@dataclass(slots=True)
class Settlement:
    """How a claim ends (``nothing``: it has ended already).

    ``seen`` is the last checkpoint the run knows of; ``detail`` is JSON about what did not succeed."""

    job: ClaimedJob
    how: How
    result: str | None = field(default=None, repr=False)
    seen: int = 0
    detail: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Failure:
    """A job that has failed, as the parameter ``failure`` of what ``on_failure`` names.

    ``error`` has ``type``, ``message`` and ``traceback``; ``input`` is empty where it was larger than 256 KiB.
    """

    job_id: str
    name: str
    input: dict[str, Any]
    error: dict[str, Any]


@dataclass(frozen=True)
class Progress:
    """How far a job is, by its own account: ``fraction`` from 0 to 1, a ``note``, and when it said so."""

    fraction: float | None
    note: str | None
    at: Any = field(compare=False)


@dataclass(frozen=True)
class StepRecord:
    """One checkpoint of a job, as ``job.steps()`` shows it."""

    seq: int
    name: str
    status: Literal["succeeded", "failed"]
    result: Any
    error: dict[str, Any] | None


@dataclass(frozen=True)
class AttemptRecord:
    """One run that did not succeed, or a requeue or rerun, as ``job.attempts()`` shows it.

    ``seq`` is the step; None: the job itself. ``by`` is who asked for a requeue or rerun, where that was said. The ``error`` of a
    rerun has the ``job_id`` of the new job.
    """

    kind: Literal["error", "crash", "timeout", "lost", "requeue", "rerun"]
    seq: int | None
    error: dict[str, Any] | None
    host: str | None
    ended_at: Any = field(compare=False)
    by: str | None = None
