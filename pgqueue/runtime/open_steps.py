"""Which steps of a job are open, and which of them the code belongs to that runs now."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any


@dataclass(eq=False)
class OpenStep:
    """The step whose code runs now."""

    seq: int
    thread: int  # that it was begun in
    tx: Any = None  # its connection, if it is a transaction


open_step: ContextVar[OpenStep | None] = ContextVar("pgqueue_step", default=None)
chosen_thread: ContextVar[int | None] = ContextVar("pgqueue_thread", default=None)  # by pgqueue, for a def in async code


class Inside:
    """A step is open. (Not a generator: this is on the way of every step.)"""

    __slots__ = ("_open", "_step", "_token")

    def __init__(self, open_steps: set[OpenStep], step: OpenStep) -> None:
        self._open = open_steps
        self._step = step

    def __enter__(self) -> None:
        self._open.add(self._step)
        self._token = open_step.set(self._step)

    def __exit__(self, *_: object) -> None:
        open_step.reset(self._token)
        self._open.discard(self._step)
