"""What a job did already: its checkpoints in order, read as the replay comes by."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from pgqueue import protocol
from pgqueue.errors import NonDeterministic, OutsideJob, PgQueueError
from pgqueue.model import ClaimedJob
from pgqueue.runtime.session import Sessions

MOST_STEPS = 50_000
SHOWN = 10
"""Steps of each history that a contradiction shows."""


class Recorded(NamedTuple):
    """A checkpoint, with a result or an error; or, with neither, a wait that was begun."""

    seq: int
    name: str
    result: str | None
    error: str | None

    @property
    def pending(self) -> bool:
        return self.result is None and self.error is None


class Wanted(NamedTuple):
    """A step that the code calls now."""

    seq: int
    name: str
    known_as: frozenset[str]


class History:
    """Hands out sequence numbers, and what is stored under them. Holds at most one page of checkpoints in memory."""

    def __init__(self, sessions: Sessions, job: ClaimedJob, came_back: bool | None = None) -> None:
        self._sessions = sessions
        self._job_id = job.id
        self._ahead: deque[Recorded] = deque()
        self._read_to = 0
        self._complete = not (job.came_back if came_back is None else came_back)  # a fresh job has no history
        self._begun_again: bool | None = None  # nobody has asked yet
        self._given = 0
        self._begun = 0
        self._called: deque[str] = deque(maxlen=SHOWN)  # what the code called last, and what is stored of that
        self._stored: deque[str] = deque(maxlen=SHOWN)
        self.seen = 0  # the last checkpoint known to be stored

    def give(self) -> int:
        """The number of the next step. Given at the call, so that it does not depend on who is scheduled first."""
        if self._given == MOST_STEPS:
            raise PgQueueError(
                f"a workflow has at most {MOST_STEPS} steps and waits: leave the rest to children, or to a new job"
            )
        self._given += 1
        return self._given

    async def find(self, wanted: Wanted) -> Recorded | None:
        """What is stored of a step; None: nothing. NonDeterministic if that was another step's."""
        return (await self.find_all([wanted]))[0]

    async def find_all(self, steps: Sequence[Wanted]) -> list[Recorded | None]:
        """The same for steps that run at once: any of them may have no checkpoint yet."""
        if steps[0].seq != self._begun + 1:
            raise OutsideJob(
                f"{steps[0].name} was called as step {steps[0].seq}, but step {self._begun + 1} was not awaited before it"
            )
        found: list[Recorded | None] = []
        for step in steps:
            self._begun = step.seq
            self._called.append(f"{step.seq} {step.name}")
            recorded = await self.peek()
            if recorded is None or recorded.seq != step.seq:
                found.append(None)
                continue
            if recorded.name not in step.known_as:
                raise self.contradiction(f"step {step.seq} was {recorded.name} when it ran, and is {step.name} now")
            self._stored.append(f"{step.seq} {recorded.name}")
            self._ahead.popleft()
            if not recorded.pending:
                self.seen = step.seq
            found.append(recorded)
        if None in found and await self.peek() is not None and not await self._was_begun_again():
            step = steps[found.index(None)]
            raise self.contradiction(f"step {step.seq} ({step.name}) has no checkpoint, but a later one has")
        return found

    def stored(self, seq: int) -> None:
        """The checkpoint of this step was acknowledged."""
        self.seen = seq

    async def check_complete(self) -> None:
        """The workflow has returned: NonDeterministic if there are checkpoints of steps that it did not call."""
        if self._begun != self._given:
            raise OutsideJob(f"the workflow returned, but step {self._begun + 1} was called and never awaited")
        if await self.peek() is not None:
            self._called.append("return")
            raise self.contradiction(f"the workflow returned after {self._given} steps, but there are checkpoints of later ones")

    def contradiction(self, what: str) -> NonDeterministic:
        """The error that the code does something else than it did, with both histories."""
        stored = [*self._stored, *(f"{r.seq} {r.name}" for r in list(self._ahead)[:SHOWN])]
        return NonDeterministic(
            f"{what}: the workflow's code has changed, or it decides by something that is not a checkpoint (time, randomness, a "
            "global). Nothing was run. If a function was renamed, give it aliases=[...]; branch old and new code with patched(). "
            "A job that was requeued, and goes another way now than it did: rerun it from the step that failed. "
            f"Stored: {', '.join(stored)}. Called: {', '.join(self._called)}"
        )

    async def _was_begun_again(self) -> bool:
        """Then of what ended it nothing is stored any more, but of what came behind: how it cleaned up, for example."""
        if self._begun_again is None:
            self._begun_again = await self._sessions.run(protocol.was_begun_again(self._job_id))
        return self._begun_again

    async def peek(self) -> Recorded | None:
        """The next that is stored and was not called yet."""
        if not self._ahead and not self._complete:
            page = await self._sessions.run(protocol.history(self._job_id, self._read_to))
            self._ahead.extend(Recorded(*row) for row in page)
            self._complete = not self._ahead
            if self._ahead:
                self._read_to = self._ahead[-1].seq
        return self._ahead[0] if self._ahead else None
