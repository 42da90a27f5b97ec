"""What a job did already: its checkpoints in order, read as the replay comes by."""

from __future__ import annotations

from collections import deque

from pgqueue import protocol
from pgqueue.errors import NonDeterministic, OutsideJob
from pgqueue.model import ClaimedJob
from pgqueue.runtime.session import Sessions

Recorded = tuple[str | None, str | None]
"""Result and error of a checkpoint; one of them is None."""


class History:
    """Hands out sequence numbers, and what is stored under them. Holds at most one page of checkpoints in memory."""

    def __init__(self, sessions: Sessions, job: ClaimedJob, came_back: bool | None = None) -> None:
        self._sessions = sessions
        self._job_id = job.id
        self._ahead: deque[tuple[int, str, str | None, str | None]] = deque()
        self._read_to = 0
        self._complete = not (job.came_back if came_back is None else came_back)  # a fresh job has no history
        self._given = 0
        self._begun = 0
        self.seen = 0  # the last checkpoint known to be stored

    def give(self) -> int:
        """The number of the next step. Given at the call, so that it does not depend on who is scheduled first."""
        self._given += 1
        return self._given

    async def find(self, seq: int, name: str, known_as: frozenset[str]) -> Recorded | None:
        """What is stored of step ``seq``; None: nothing. NonDeterministic if that was another step's."""
        if seq != self._begun + 1:
            raise OutsideJob(f"{name} was called as step {seq}, but step {self._begun + 1} was not awaited before it")
        self._begun = seq
        recorded = await self._peek()
        if recorded is None or recorded[0] != seq:
            if recorded is not None:
                raise NonDeterministic(f"step {seq} ({name}) has no checkpoint, but step {recorded[0]} ({recorded[1]}) has one")
            return None
        if recorded[1] not in known_as:
            raise NonDeterministic(
                f"step {seq} was {recorded[1]} when it ran, and is {name} now: the workflow's code has changed, or "
                "it decides by something that is not a checkpoint (time, randomness, a global). If the function was renamed, "
                "give it aliases=[...]"
            )
        self._ahead.popleft()
        self.seen = seq
        return recorded[2:]

    def stored(self, seq: int) -> None:
        """The checkpoint of this step was acknowledged."""
        self.seen = seq

    async def check_complete(self) -> None:
        """The workflow has returned: NonDeterministic if there are checkpoints of steps that it did not call."""
        if self._begun != self._given:
            raise OutsideJob(f"the workflow returned, but step {self._begun + 1} was called and never awaited")
        recorded = await self._peek()
        if recorded is not None:
            raise NonDeterministic(
                f"the workflow returned after {self._given} steps, but has a checkpoint of step {recorded[0]} ({recorded[1]}): "
                "its code has changed, or it decides by something that is not a checkpoint"
            )

    async def _peek(self) -> tuple[int, str, str | None, str | None] | None:
        if not self._ahead and not self._complete:
            self._ahead.extend(await self._sessions.run(protocol.history(self._job_id, self._read_to)))  # type: ignore[arg-type]
            self._complete = not self._ahead
            if self._ahead:
                self._read_to = self._ahead[-1][0]
        return self._ahead[0] if self._ahead else None
