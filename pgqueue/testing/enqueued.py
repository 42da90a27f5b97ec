"""What is enqueued, and whether a wanted call is among it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib import resources
from typing import Any

import msgspec
import psycopg

from pgqueue.app import App
from pgqueue.errors import BadValue
from pgqueue.functions import Call, Function
from pgqueue.retry import seconds

_QUERY = (resources.files("pgqueue.testing") / "enqueued.sql").read_text()
_COMPARED = ("queue", "priority", "key", "delay", "at")
_SHOWN = 20  # jobs in the message of a failed assertion


@dataclass(frozen=True)
class Enqueued:
    """A job that is enqueued and does not run yet."""

    id: str
    name: str
    arguments: dict[str, Any]  #: as the function will get them, defaults included; of an unknown function: plain JSON
    queue: str
    priority: int
    key: str | None
    due: datetime | None  #: not before this moment; None: at once
    enqueued_at: datetime
    input: str  #: the arguments as they are stored

    def __str__(self) -> str:
        extras = [f"queue={self.queue!r}", f"priority={self.priority}"]
        if self.key is not None:
            extras.append(f"key={self.key!r}")
        if self.due is not None:
            extras.append(f"due={self.due:%Y-%m-%d %H:%M:%S%z}")
        return f"{shown_call(self.name, self.arguments)}  {' '.join(extras)}"


def enqueued(conn: psycopg.Connection[Any], app: App) -> list[Enqueued]:
    """Everything that is enqueued, in the order in which it was."""
    return [
        Enqueued(id, name, _arguments(app.functions.get(name), input), queue, priority, key, due, enqueued_at, input)
        for id, name, input, queue, priority, key, due, enqueued_at in conn.execute(_QUERY)
    ]


def _arguments(function: Function[Any, Any] | None, input: str) -> dict[str, Any]:
    if function is not None:
        try:
            return function.input.decode(input, f"the input of {function.name}")
        except BadValue:  # enqueued by somebody who does not have the code: its run will fail
            pass
    plain: dict[str, Any] = msgspec.json.decode(input)
    return plain


class Wanted:
    """A call that should be enqueued."""

    def __init__(self, call: Call[Any]) -> None:
        for option in call.options:
            if option not in _COMPARED:
                raise TypeError(f"assert_enqueued compares the options {', '.join(_COMPARED)}, not {option}")
        self._function = call.function
        self._options = call.options
        stored = self._function.input.encode(call.arguments, f"the input of {self._function.name}")
        self._arguments = _arguments(self._function, stored)

    def __str__(self) -> str:
        options = "".join(f"  {name}={value!r}" for name, value in self._options.items())
        return shown_call(self._function.name, self._arguments) + options

    def find(self, jobs: Sequence[Enqueued]) -> Enqueued | None:
        """The first job that is this call."""
        return next((job for job in jobs if self._is(job)), None)

    def _is(self, job: Enqueued) -> bool:
        options = self._options
        return (
            job.name in self._function.known_names
            and _arguments(self._function, job.input) == self._arguments
            and all(getattr(job, name) == options[name] for name in ("queue", "priority", "key") if name in options)
            and ("at" not in options or job.due == options["at"])
            and ("delay" not in options or _delay(job) == round(seconds(options["delay"]), 6))
        )


def _delay(job: Enqueued) -> float | None:
    return None if job.due is None else (job.due - job.enqueued_at).total_seconds()


def shown_call(name: str, arguments: dict[str, Any]) -> str:
    """A call as people write it."""
    return f"{name}({', '.join(f'{parameter}={value!r}' for parameter, value in arguments.items())})"


def listed(jobs: Sequence[Enqueued]) -> str:
    """The jobs for the message of a failed assertion, one a line."""
    lines = [f"    {job}" for job in jobs[:_SHOWN]]
    if len(jobs) > _SHOWN:
        lines.append(f"    ... and {len(jobs) - _SHOWN} more")
    return "\n".join(lines)
