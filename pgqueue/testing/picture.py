"""What ``crash_matrix`` has found, as a picture: the steps of the job, the boundaries between them, and what broke where."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import psycopg

from pgqueue import protocol
from pgqueue.database import run
from pgqueue.functions import Call
from pgqueue.testing.boundaries import PLACES, Boundary

#: Why the code of a step has run twice, or not at all, when the process died there; and what can be done about it.
HINTS = {
    "step": """
    The code of {step} had run and its checkpoint was not stored, so its code ran again: a step is at least once.
    Make its effect bear that (give current().step_key as an idempotency key), or make it a transaction that
    writes through the connection it is given.""",
    "transaction": """
    {step} was rolled back, and its code ran again. What it writes through the connection that it is given is part
    of its COMMIT, and is there once. What it does beside that (another connection, a request, a file) is not:
    write it through that connection, or move it into a step of its own.""",
    "body": """
    The workflow ran again from its first line, and its steps were replayed from their checkpoints. What its body
    does outside of steps happens each time: move that into a step.""",
}


@dataclass
class Broken:
    """How the check failed after a kill at one boundary."""

    error: BaseException
    check: Callable[..., object]

    @property
    def line(self) -> str:
        """The error, in one line. (What pytest says of an assertion begins with its message and the values.)"""
        text = " ".join(" ".join(str(self.error).splitlines()[:2]).split())
        kind = type(self.error).__name__
        return f"{kind}: {text}" if text else kind

    @property
    def where(self) -> str:
        """The line of the check."""
        frames = traceback.extract_tb(self.error.__traceback__)
        code = getattr(self.check, "__code__", None)
        own = [frame for frame in frames if code is not None and frame.filename == code.co_filename] or frames
        frame = own[-1]
        return f"{frame.filename.rpartition('/')[2]}:{frame.lineno}: {frame.line}"


class CrashMatrix:
    """What ``pgqueue.crash_matrix`` returns: ``print`` it to see which boundaries there were."""

    def __init__(self, call: Call[Any]) -> None:
        self._call = call
        self._steps: dict[tuple[str, int], str] = {}
        self.boundaries: list[tuple[Boundary, Broken | None]] = []

    def learn(self, conn: psycopg.Connection[Any], passed: list[tuple[Boundary, str]]) -> None:
        """The names of the steps, from a run that nothing has disturbed."""
        for name, job in {boundary.job: job for boundary, job in passed}.items():
            for seq, step, *_ in run(conn, protocol.steps(job)):
                self._steps[name, seq] = step

    def add(self, boundary: Boundary, broken: Broken | None) -> None:
        """It was killed there, and this is what the check said."""
        self.boundaries.append((boundary, broken))

    @property
    def broken(self) -> int:
        """At how many boundaries the check failed."""
        return sum(broken is not None for _, broken in self.boundaries)

    def __str__(self) -> str:
        lines = [f"{self._title()}: killed at each of {len(self.boundaries)} boundaries, and resumed. {self._verdict()}"]
        for (job, seq), group in groupby(self.boundaries, key=lambda found: (found[0].job, found[0].seq)):
            lines += ["", f"  {self._heading(job, seq)}"]
            for boundary, broken in group:
                lines.append(f"{'-->' if broken else '   '}   {'BROKE' if broken else 'ok   '}  {boundary.words}")
                if broken is not None:
                    lines.append(f"             {broken.line[:300]}")
        return "\n".join(lines + self._explanation())

    def _title(self) -> str:
        arguments = ", ".join(f"{value!r}" for value in self._call.arguments.values())
        return f"{self._call.function.name}({arguments})"

    def _verdict(self) -> str:
        return f"{self.broken} broke the check." if self.broken else "The check held each time."

    def _heading(self, job: str, seq: int) -> str:
        if seq == 0:
            return f"{job}{self._kind(job)}"
        step = self._steps.get((job, seq), "?")
        return f"{job}, step {seq}: {step}{self._kind(step)}"

    def _kind(self, name: str) -> str:
        function = self._call.function.app.functions.get(name)
        return f" ({function.kind})" if function is not None else ""

    def _explanation(self) -> list[str]:
        """The first that broke, at length."""
        for boundary, broken in self.boundaries:
            if broken is not None:
                step = self._step(boundary)
                where = f"Killed in {self._heading(boundary.job, boundary.seq)}, {boundary.words}:"
                return [
                    "",
                    where,
                    f"    {broken.where}",
                    f"    {broken.line}",
                    HINTS[self._cause(boundary)].format(step=step),
                ]
        return []

    def _step(self, boundary: Boundary) -> str:
        return self._steps.get((boundary.job, boundary.seq), boundary.job)

    def _cause(self, boundary: Boundary) -> str:
        """What ran again: the code of a step that had no checkpoint yet, or only the body."""
        function = self._call.function.app.functions.get(self._step(boundary))
        kind = function.kind if function is not None else "transaction"
        unstored = PLACES[boundary.name].lost and boundary.how != "durable"
        return kind if unstored and kind in HINTS else "body"
