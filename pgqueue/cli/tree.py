"""A job as a tree: its steps in order, and beneath each its tries that did not succeed and the jobs that it has started.

Read level by level with a few queries for each, and with a limit in each of them, however many jobs there are. ``pgqueue show``
reads it; draw.py draws it, and now.py says where the job is.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import psycopg

from pgqueue import protocol
from pgqueue.database import run
from pgqueue.model import ENDED
from pgqueue.values import read_error

EACH = 20  # children of one step that are shown
LEVEL = 200  # jobs of one level that are shown
TRIES = 5  # of one step that are shown
STEPS_BELOW = 10  # steps of each job below the first; of that one all
ACTIVE = ("running", "waiting", "scheduled", "ready")
STATES = (*ENDED, *ACTIVE)


@dataclass
class Try:
    """A run of a step (or of the job) that did not succeed; or a requeue or rerun of the job."""

    kind: str
    error: str
    host: str | None
    ended_at: datetime
    by: str | None


@dataclass
class Wait:
    """What a step waits for."""

    seq: int
    name: str
    kind: str
    key: str
    until: datetime | None
    began_at: datetime


@dataclass
class Step:
    """One step. ``status``: succeeded or failed; waiting; or open, where nothing is stored of it yet."""

    seq: int
    name: str = ""
    status: str = "open"
    text: str = ""
    ended_at: datetime | None = None
    tries: list[Try] = field(default_factory=list)
    wait: Wait | None = None
    counts: dict[str, int] = field(default_factory=dict)  # of the jobs that it has started, by state
    jobs: list[Job] = field(default_factory=list)  # some of them

    @property
    def stored(self) -> bool:
        return self.status in ("succeeded", "failed")

    @property
    def missing(self) -> dict[str, int]:
        """How many of its jobs have not ended, by state."""
        return {state: self.counts[state] for state in ACTIVE if self.counts.get(state)}


@dataclass
class Job:
    """One job of the tree."""

    id: str
    name: str
    state: str
    ordinal: int | None
    created_at: datetime
    run_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    error: str
    steps: dict[int, Step] = field(default_factory=dict)
    tries: list[Try] = field(default_factory=list)  # of the job itself
    earlier: int = 0  # steps that are not shown

    def step(self, seq: int | None) -> Step:
        """The step of this number. 0 stands for what belongs to none."""
        return self.steps.setdefault(seq or 0, Step(seq or 0))

    @property
    def in_order(self) -> list[Step]:
        return [self.steps[seq] for seq in sorted(self.steps)]

    @property
    def last(self) -> int:
        """The number of the last step that is stored; 0: none is."""
        return max((step.seq for step in self.steps.values() if step.stored), default=0)

    @property
    def ended(self) -> bool:
        return self.state in ENDED


def load(conn: psycopg.Connection[Any], root: Job, depth: int) -> None:
    """Read everything beneath a job: ``depth`` levels of children, and of those below only how many there are."""
    level = [root]
    for remaining in range(depth, -1, -1):
        jobs = {job.id: job for job in level}
        if not jobs:
            return
        _steps(conn, jobs, *((50_000, 1000) if remaining == depth else (STEPS_BELOW, 2 * TRIES)))
        for parent, seq, state, amount in run(conn, protocol.child_counts(list(jobs))):
            jobs[parent].step(seq).counts[state] = amount
        level = []
        if remaining:
            for parent, seq, *row in run(conn, protocol.child_rows(list(jobs), EACH, LEVEL, STATES)):
                level.append(_child(row))
                jobs[parent].step(seq).jobs.append(level[-1])
        for job in jobs.values():
            for step in job.steps.values():
                step.jobs.sort(key=lambda child: (child.ordinal or 0, child.id))
                if step.counts and not step.name:
                    step.name = "(children)"


def missing(conn: psycopg.Connection[Any], job: str, seq: int) -> list[Job]:
    """The first children of a step that have not ended."""
    rows = run(conn, protocol.child_rows([job], 5, LEVEL, ACTIVE))
    return [_child(row) for _, of, *row in rows if of == seq]


def short(error: str | None) -> str:
    """An error in a few words."""
    if not error:
        return ""
    said = read_error(error)
    return f"{said.get('type', '')}: {said.get('message', '')}"


def _child(row: Iterable[Any]) -> Job:
    ordinal, id, name, state, created_at, run_at, started_at, finished_at, error = row
    return Job(id, name, state, ordinal, created_at, run_at, started_at, finished_at, short(error))


def _steps(conn: psycopg.Connection[Any], jobs: dict[str, Job], each: int, tries: int) -> None:
    ids = list(jobs)
    for job, seq, name, status, result, error, created_at in run(conn, protocol.step_lines(ids, each)):
        jobs[job].steps[seq] = Step(seq, name, status, short(error) if error else result, created_at)
    for job in jobs.values():
        job.earlier = max(0, min(job.steps) - 1) if len(job.steps) == each else 0
    for id, *row in run(conn, protocol.open_waits(ids)):
        wait = Wait(*row)
        step = jobs[id].step(wait.seq)
        step.name, step.status, step.wait = wait.name, "waiting", wait
    for id, kind, seq, error, host, ended_at, by in run(conn, protocol.attempt_lines(ids, tries)):
        job = jobs[id]
        if seq is None:
            job.tries.append(Try(kind, short(error), host, ended_at, by))
        elif seq > job.earlier:
            job.step(seq).tries.append(Try(kind, short(error), host, ended_at, by))
