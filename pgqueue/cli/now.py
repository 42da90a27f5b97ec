"""Says in plain words where a job is: what it does, or what it waits for, and until when."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from pgqueue.cli.draw import amounts, awaited, line, span
from pgqueue.cli.output import cell
from pgqueue.cli.tree import Job, Step

_Said = tuple[str, datetime | None, datetime | None]  # text, since, until


def now(facts: Mapping[str, Any], job: Job, missing: Sequence[Job], clock: datetime) -> dict[str, Any]:
    """The answer as a line of ``text``, and its parts: ``state``, ``step`` (that runs or is next; None after the end), ``since``,
    ``until``, and ``missing``: how many of the children that it waits for are in which state. ``clock``: what time it is.
    """
    place = _Place(facts, job, clock)
    text, since, until = place.ended() if job.ended else getattr(place, job.state)()
    for_children = job.state == "waiting" and place.step.wait is not None and place.step.wait.kind == "children"
    if for_children:
        text += _children(place.step, missing)
    if facts["cancel_requested"] and not job.ended:
        text += "; its cancel was requested" + (f" by {line(facts['cancel_by'])}" if facts["cancel_by"] else "")
    return {
        "text": text,
        "state": job.state,
        "step": None if job.ended else place.step.seq,
        "since": since,
        "until": until,
        "missing": place.step.missing if for_children else {},
    }


class _Place:
    """Where a job is. A method for each state that it can be in."""

    def __init__(self, facts: Mapping[str, Any], job: Job, clock: datetime) -> None:
        self._facts = facts
        self._job = job
        self._clock = clock
        tried = [step for step in job.in_order if not step.stored and step.seq and (step.wait or step.tries)]
        self.step = tried[-1] if tried else job.steps.get(job.last + 1) or Step(job.last + 1)

    def ready(self) -> _Said:
        paused = ", which is paused" if self._facts["paused"] else ""
        where = f"ready in queue {self._facts['queue']}{paused}: no worker has taken it yet"
        return f"{where}; next is {_named(self.step)}{self._tried}", None, None

    def running(self) -> _Said:
        facts, since = self._facts, self._job.started_at or self._clock
        where = f"{line(facts['host'] or 'a host that is gone')}, process {facts['pid'] or '?'}, worker {facts['worker']}"
        when = f"since {cell(since)} ({span((self._clock - since).total_seconds())})"
        return f"running on {where} {when}, in or before {_named(self.step)}{self._tried}", since, None

    def scheduled(self) -> _Said:
        due = self._job.run_at or self._clock
        left = (due - self._clock).total_seconds()
        when = f"until {cell(due)} ({f'in {span(left)}' if left > 0 else 'which is over: it goes on within a moment'})"
        if self.step.wait is not None and self.step.wait.kind == "sleep":
            return f"sleeping in {_named(self.step)} {when}", self.step.wait.began_at, due
        what = "put off" if self._tried or self._job.last else "delayed"
        return f"{what} {when}; next is {_named(self.step)}{self._tried}", None, due

    def waiting(self) -> _Said:
        until, wait = self._facts["waiting_until"], self.step.wait
        if self._facts["waiting_for"] == "key":
            queue, _, key = str(self._facts["waiting_key"]).partition("/")
            return f"waiting for its turn in queue {queue}: others of the key {line(key)} come first", None, until
        if self._facts["waiting_for"] == "name" or wait is None:
            name, _, version = line(str(self._facts["waiting_key"])).partition("@")
            return f"waiting for a worker that knows version {version or 1} of {name}: those that have looked do not", None, until
        since = f"since {cell(wait.began_at)} ({span((self._clock - wait.began_at).total_seconds())})"
        deadline = f", and the job has time until {cell(until)}" if until and until != wait.until else ""
        return f"{awaited(wait)} in {_named(self.step)} {since}{deadline}", wait.began_at, until

    def ended(self) -> _Said:
        job, at = self._job, self._job.finished_at or self._clock
        text = f"{job.state} at {cell(at)}"
        if job.state == "succeeded":
            return f"{text}, {span((at - (job.run_at or job.created_at)).total_seconds())} after it was due", at, None
        failed = [job.steps[seq] for seq in self._facts["failed_seqs"] if seq in job.steps]
        text += f" in {', '.join(map(_named, failed))}" if failed else f" before the end of step {job.last + 1}"
        text += f" with {line(job.error)}" if job.error.strip(": ") else ""
        again = f"runs {' and '.join(map(_named, failed))} again" if failed else f"goes on at step {job.last + 1}"
        return f'{text}; "pgqueue requeue {job.id}" {again}', at, None

    @property
    def _tried(self) -> str:
        """What the step (or, where the job is just one, the job) has come to so far."""
        tries = self.step.tries or [one for one in self._job.tries if one.kind not in ("requeue", "rerun")]
        if not tries:
            return ""
        times = "once" if len(tries) == 1 else f"{len(tries)} times"
        return f", tried {times}, the last time with {line(tries[-1].error)}"


def _named(step: Step) -> str:
    return f"step {step.seq}" + (f" ({line(step.name)})" if step.name else "")


def _children(step: Step, missing: Sequence[Job]) -> str:
    total, amount = sum(step.counts.values()), sum(step.missing.values())
    if not amount:
        return f": all {total:,} have ended, and it goes on within a moment"
    first = ", ".join(f"#{job.ordinal} {job.id} {job.state}" for job in missing)
    more = ", ..." if amount > len(missing) else ""
    return f": {amount:,} of {total:,} have not ended ({amounts(step.missing)}): {first}{more}"
