"""What a job did already: its checkpoints in order, read as the replay comes by."""

from __future__ import annotations

from collections import deque
from typing import Any

from pgqueue import protocol
from pgqueue.errors import NonDeterministic
from pgqueue.functions import Function
from pgqueue.model import ClaimedJob
from pgqueue.runtime.session import Session


class History:
    """Hands out sequence numbers, each with what was stored under it. Holds at most one page of checkpoints in memory."""

    def __init__(self, session: Session, job: ClaimedJob, came_back: bool | None = None) -> None:
        self._session = session
        self._job_id = job.id
        self._ahead: deque[tuple[int, str, str | None, str | None]] = deque()
        self._read_to = 0
        self._complete = not (job.came_back if came_back is None else came_back)  # a fresh job has no history
        self._seq = 0
        self.seen = 0  # the last checkpoint known to be stored

    def next(self, function: Function[Any, Any]) -> tuple[int, tuple[str | None, str | None] | None]:
        """The number of the next step, and its (result, error) if it was stored. NonDeterministic if that was another step's."""
        self._seq += 1
        seq = self._seq
        recorded = self._peek()
        if recorded is None or recorded[0] != seq:
            if recorded is not None:
                raise NonDeterministic(
                    f"step {seq} ({function.name}) has no checkpoint, but step {recorded[0]} ({recorded[1]}) has one"
                )
            return seq, None
        if not function.known_as(recorded[1]):
            raise NonDeterministic(
                f"step {seq} was {recorded[1]} when it ran, and is {function.name} now: the workflow's code has changed, or "
                "it decides by something that is not a checkpoint (time, randomness, a global). If the function was renamed, "
                "give it aliases=[...]"
            )
        self._ahead.popleft()
        self.seen = seq
        return seq, recorded[2:]

    def stored(self, seq: int) -> None:
        """The checkpoint of this step was acknowledged."""
        self.seen = seq

    def check_complete(self) -> None:
        """The workflow has returned: NonDeterministic if there are checkpoints of steps that it did not call."""
        recorded = self._peek()
        if recorded is not None:
            raise NonDeterministic(
                f"the workflow returned after {self._seq} steps, but has a checkpoint of step {recorded[0]} ({recorded[1]}): "
                "its code has changed, or it decides by something that is not a checkpoint"
            )

    def _peek(self) -> tuple[int, str, str | None, str | None] | None:
        if not self._ahead and not self._complete:
            self._ahead.extend(self._session.run(protocol.history(self._job_id, self._read_to)))  # type: ignore[arg-type]
            self._complete = not self._ahead
            if self._ahead:
                self._read_to = self._ahead[-1][0]
        return self._ahead[0] if self._ahead else None
