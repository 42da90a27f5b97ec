"""What the verbs of pgqueue do, said once more in plain Python: a dictionary of jobs, without SQL and without anything at once.

Each method changes the model as its verb must change the database, and returns what the verb must answer. Time is whole minutes,
which pass only when ``now`` is set. Where the protocol leaves a choice (which of several jobs that became ready in one call is
claimed first), the method is told what was chosen, and checks that it could be.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

ENDED = ("succeeded", "failed", "cancelled")
Turn = tuple[Any, ...]


@dataclass
class Job:
    """One job, and all that is known about it."""

    id: str
    name: str
    content: int
    priority: int
    state: str = "ready"
    lane: int = 0
    turn: Turn = ()  # ready: lower comes first. Equal: nobody knows
    due: Turn = ()  # scheduled: (the minute, then who was told it first)
    worker: str = ""
    token: int | None = None  # of the claim that holds it, or that ended it
    checkpoints: dict[int, bool] = field(default_factory=dict)  # seq -> is it an error
    attempts: list[tuple[str, int | None, int]] = field(default_factory=list)  # (kind, seq, number of checkpoints then)
    crashes: list[int] = field(default_factory=list)  # the number of checkpoints at each crash since the last requeue
    failed_seqs: list[int] = field(default_factory=list)
    requested: bool = False
    suspect: bool = False  # its last worker died while it ran, and perhaps because of it
    ended_at: int = 0

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    def end(self, status: str, token: int | None, now: int) -> None:
        self.state, self.token, self.ended_at, self.requested = status, token, now, False

    def record(self, kind: str, seq: int | None = None) -> None:
        self.attempts.append((kind, seq, len(self.checkpoints)))

    def forget(self, seqs: Iterable[int]) -> None:
        for seq in seqs:
            self.checkpoints.pop(seq, None)


@dataclass
class Worker:
    """One incarnation of a worker process."""

    beat: int = 0
    fenced: bool = False
    reason: str = ""
    started: list[str] | None = None  # what it had begun, from who saw it die


class Conflict(Exception):
    """The same id with other content, or a step that was stored before."""


class Model:
    """All jobs and workers."""

    def __init__(self, max_crashes: dict[str, int]) -> None:
        self.now = 0
        self.jobs: dict[str, Job] = {}
        self.workers: dict[str, Worker] = {}
        self._max_crashes = max_crashes
        self._calls = 0

    def _next_call(self) -> int:
        self._calls += 1
        return self._calls

    def _in(self, *states: str) -> list[Job]:
        return [job for job in self.jobs.values() if job.state in states]

    def holds(self, job: str, token: int, seen: int = 0) -> bool:
        """The fence: does this claim hold the job, and is the last checkpoint that it saw still there?"""
        found = self.jobs.get(job)
        return found is not None and (found.state, found.token) == ("running", token) and (seen == 0 or seen in found.checkpoints)

    def ended_by(self, job: str, token: int) -> bool:
        return job in self.jobs and self.jobs[job].ended and self.jobs[job].token == token

    def _back(self, job: Job, turn: Turn) -> None:
        """Ready again: before the fresh ones of its priority."""
        job.state, job.lane, job.turn = "ready", job.lane - job.lane % 2, turn

    # ------------------------------------------------------------------------------------------------ producers

    def enqueue(self, jobs: Sequence[tuple[Job, int]]) -> None:
        """Jobs, each with a delay in minutes. Conflict, and nothing changed, where an id exists with other content."""
        call = self._next_call()
        new: dict[str, Job] = {}
        for number, (job, delay) in enumerate(jobs):
            there = self.jobs.get(job.id) or new.get(job.id)
            if there is not None and (there.name, there.content) != (job.name, job.content):
                raise Conflict
            if there is None:
                job.lane = 2 * job.priority + 1
                job.state = "scheduled" if delay else "ready"
                job.turn, job.due = (call, number), (self.now + delay, call, number)
                new[job.id] = job
        self.jobs.update(new)

    def cancel(self, ids: Sequence[str]) -> dict[str, str]:
        answers = {}
        for job_id in ids:
            job = self.jobs.get(job_id)
            if job is not None and not job.ended:
                job.requested = True
            answers[job_id] = "unknown" if job is None else job.state if job.ended else "requested"
        return answers

    def requeue(self, ids: Sequence[str]) -> dict[str, str]:
        call = self._next_call()
        answers = {}
        for job_id in ids:
            job = self.jobs.get(job_id)
            if job is None:
                answers[job_id] = "unknown"
            elif job.state in ("failed", "cancelled"):
                job.record("requeue")
                job.forget(job.failed_seqs)
                job.crashes = []
                job.lane = 2 * job.priority
                job.token, job.suspect = None, False
                self._back(job, (call,))
                answers[job_id] = "requeued"
            else:
                answers[job_id] = "succeeded" if job.ended else "active"
        return answers

    def prune(self, statuses: Sequence[str], minutes: int) -> int:
        gone = [job.id for job in self._in(*statuses) if job.ended_at + minutes <= self.now]
        for job_id in gone:
            del self.jobs[job_id]
        return len(gone)

    # -------------------------------------------------------------------------------------------------- workers

    def claim(
        self,
        worker: str,
        token: int,
        names: Sequence[str],
        amount: int,
        backwards: bool,
        left: Collection[str],
        got: Sequence[str],
    ) -> None:
        """``left`` are the jobs that are no longer ready, ``got`` is the answer, in its order."""
        if worker not in self.workers or self.workers[worker].fenced:
            assert (list(left), list(got)) == ([], [])
            return

        def rank(job: Job) -> Turn:
            return (-job.lane if backwards else job.lane, job.turn)

        line = sorted(self._in("ready"), key=rank)
        picked = [self.jobs[job] for job in left]
        assert len(picked) == min(amount, len(line))
        assert sorted(map(rank, picked)) == [rank(job) for job in line[: len(picked)]], "not the first ones"
        assert not any(self.jobs[job].requested for job in got), "handed out, although somebody had asked to cancel it"
        expected = []
        for job in sorted(picked, key=rank):
            if job.requested:
                job.end("cancelled", None, self.now)
            elif job.name not in names:
                job.state, job.suspect = "waiting", False
            else:
                expected.append(job)
        aside = [job.id for job in self._in("waiting") if job.name in names and not job.requested and job not in picked]
        from_aside = set(got).intersection(aside)
        assert len(from_aside) == min(amount - len(expected), len(aside))
        assert [rank(self.jobs[job]) for job in got if job not in from_aside] == [rank(job) for job in expected], "not in order"
        for job_id in got:
            job = self.jobs[job_id]
            job.state, job.worker, job.token = "running", worker, token

    def store(self, job_id: str, token: int, seen: int, seq: int, error: bool) -> str:
        """Conflict where that step was stored before."""
        if not self.holds(job_id, token, seen):
            return "lost"
        job = self.jobs[job_id]
        if seq in job.checkpoints:
            raise Conflict
        job.checkpoints[seq] = error
        if error:
            job.record("error", seq)
        return "cancel" if job.requested else "stored"

    def finish(self, job_id: str, token: int) -> bool:
        held = self.holds(job_id, token)
        if held:
            self.jobs[job_id].end("succeeded", token, self.now)
        return held

    def failures(self, job_id: str, seq: int | None) -> int:
        """How often a step, or the job itself, has failed since the last requeue. For a step, since the job itself did."""
        since: list[tuple[str, int | None]] = []
        for kind, step, _ in self.jobs[job_id].attempts if job_id in self.jobs else []:
            starts_again = kind == "requeue" or (seq is not None and (kind, step) == ("error", None))
            since = [] if starts_again else [*since, (kind, step)]
        return since.count(("error", seq))

    def resolve(self, job_id: str, token: int) -> str:
        return "held" if self.holds(job_id, token) else "settled" if self.ended_by(job_id, token) else "lost"

    def settle(self, batch: Sequence[tuple[str, int, str, int, dict[str, Any]]]) -> dict[str, str]:
        """Rows of (job, token, how, seen, detail)."""
        call = self._next_call()
        answers = {}
        for job_id, token, how, seen, detail in batch:
            if self.holds(job_id, token, seen):
                self._settle(self.jobs[job_id], how, detail, call)
            elif not self.ended_by(job_id, token):
                answers[job_id] = "lost"
        return answers

    def _settle(self, job: Job, how: str, detail: dict[str, Any], call: int) -> None:
        if job.requested and how in ("retry", "release"):
            how = "cancelled"
        for error in detail.get("errors", []):
            job.record("error", error.get("seq"))
        if how in ENDED:
            job.failed_seqs = detail.get("failed_seqs", [])
            job.end(how, job.token, self.now)
            return
        if how == "retry":
            job.forget(detail["failed_seqs"])
        self._back(job, (call,))
        if how == "retry" and detail["delay"]:
            job.state, job.suspect, job.due = "scheduled", False, (self.now + detail["delay"] // 60, call)

    # ---------------------------------------------------------------------------------------------- housekeepers

    def promote(self, amount: int, left: Collection[str]) -> int:
        """``left`` are the jobs that are no longer scheduled."""
        call = self._next_call()
        due = sorted(job.due for job in self._in("scheduled") if job.due[0] <= self.now)
        assert sorted(self.jobs[job].due for job in left) == due[:amount], "not those that are longest due"
        for job_id in left:
            job = self.jobs[job_id]
            job.state, job.turn = "ready", (call, job.due)
        return len(left)

    def cancel_waiting(self) -> int:
        asked = [job for job in self._in("scheduled", "waiting") if job.requested]
        for job in asked:
            job.end("cancelled", None, self.now)
        return len(asked)

    def heartbeat(self, workers: Sequence[str]) -> set[str]:
        alive = {worker for worker in workers if worker in self.workers and not self.workers[worker].fenced}
        for worker in alive:
            self.workers[worker].beat += 1
        return alive

    def fence_worker(self, worker: str, seen_beat: int | None, reason: str, started: list[str] | None = None) -> bool:
        known = self.workers.get(worker)
        if known is None or known.fenced or seen_beat not in (None, known.beat):
            return False
        known.fenced, known.reason, known.started = True, reason, started
        return True

    def reap(self, worker: str, started: Collection[str], kind: str, reason: str | None) -> tuple[int, int]:
        """(jobs taken from the worker, how many of them were poison). The worker must not be alive."""
        call = self._next_call()
        known = self.workers.pop(worker, Worker())
        if kind == "lost" and known.started is not None:
            kind, started, reason = "crash", known.started, known.reason if known.started else None
        taken = [job for job in self._in("running") if job.worker == worker]
        poisoned = 0
        for job in taken:
            charged = reason is not None and (job.id in started or (kind == "lost" and len(taken) == 1))
            if charged:
                job.record("crash")
                job.crashes.append(len(job.checkpoints))
            elif kind == "lost" and reason is not None:
                job.record("lost")
            patience = self._max_crashes[job.name] * (3 if len(started) > 1 else 1)
            poison = charged and job.crashes.count(len(job.checkpoints)) >= patience
            poisoned += poison
            if job.requested or poison:
                job.failed_seqs = []
                job.end("cancelled" if job.requested else "failed", job.token, self.now)
            else:
                self._back(job, (call,))
                job.suspect = charged or job.suspect
        return len(taken), poisoned
