"""Time limits of a job and of its steps.

An ``async def`` is cancelled when its time is over. A ``def`` cannot be, so the supervisor is told until when this process may
live; and so it is where an ``async def`` does not let itself be cancelled.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

from pgqueue.errors import StepTimeout
from pgqueue.functions import Function
from pgqueue.model import ClaimedJob
from pgqueue.runtime.ground import Ground

T = TypeVar("T")

GRACE = 1.0  # seconds for a coroutine to end, when its time is over
WHOLE = -1  # in place of the number of a step: a job that is just one


class Limits:
    """Of one run."""

    def __init__(self, job: ClaimedJob, ground: Ground) -> None:
        self._job = job
        self._ground = ground
        self._deadline = None if job.seconds_left is None else time.monotonic() + job.seconds_left
        self._until: dict[int, float] = {} if self._deadline is None else {0: self._deadline}  # step -> when its time is over

    @property
    def passed(self) -> bool:
        """Is the time of the job over?"""
        return self._deadline is not None and time.monotonic() > self._deadline

    def begin(self) -> None:
        """The job's code begins."""
        if self._until:
            self._watch()

    def end(self) -> None:
        """It has ended."""
        if self._until:
            self._until.clear()
            self._watch()

    async def within(self, function: Function[Any, Any], seq: int, code: Coroutine[Any, Any, T]) -> T:
        """Run a step's code within its time limit. StepTimeout where it can be stopped without a kill."""
        limit = function.definition.timeout
        if limit is None and (self._deadline is None or not function.is_async):
            return await code
        left = min(limit or math.inf, math.inf if self._deadline is None else self._deadline - time.monotonic())
        self._until[seq or WHOLE] = time.monotonic() + left + (GRACE if function.is_async else 0.0)
        self._watch()
        try:
            if not (function.is_async and self._ground.on_loop):
                return await code
            async with asyncio.timeout(left) as scope:
                return await code
            raise AssertionError
        except TimeoutError:
            if function.is_async and self._ground.on_loop and scope.expired():
                raise StepTimeout(f"{function.name} took longer than {left:g} s") from None
            raise
        finally:
            self._until.pop(seq or WHOLE, None)
            self._watch()

    def _watch(self) -> None:
        if self._ground.watch is not None:
            until = dict(self._until)  # steps may run at once, in threads
            seq = min(until, key=until.__getitem__) if until else 0
            self._ground.watch(self._job.place, max(0, seq), until.get(seq))
