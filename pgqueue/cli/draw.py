"""Draws the tree of a job, a line for each step, try and child."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime

from pgqueue.cli.output import cell
from pgqueue.cli.tree import STATES, TRIES, Job, Step, Try, Wait

BOXES = ("├─ ", "└─ ", "│  ", "   ")
ASCII = ("|- ", "`- ", "|  ", "   ")
CUT = 160  # characters of a result or error


@dataclass
class Line:
    """One line, and what is beneath it."""

    text: str
    below: list[Line] = field(default_factory=list)


def drawn(job: Job) -> Iterator[str]:
    """The lines beneath a job: with box-drawing characters on a terminal that has them, and not wider than it is."""
    terminal = sys.stdout.isatty()
    boxes = BOXES if terminal and (sys.stdout.encoding or "").lower().replace("-", "") == "utf8" else ASCII
    width = shutil.get_terminal_size().columns if terminal else 10_000
    for line in _rendered(_job_lines(job), boxes, ""):
        yield line[:width].rstrip()


def span(seconds: float) -> str:
    """A duration, in its two largest units.

    >>> span(0.0421), span(12.34), span(195), span(7500), span(273600)
    ('0.042s', '12.3s', '3m15s', '2h05m', '3d04h')
    """
    if seconds < 1:
        return f"{max(0.0, seconds):.3f}s"
    if seconds < 60:
        return f"{seconds:.1f}s"
    for size, unit, smaller, name in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if seconds >= size:
            return f"{int(seconds // size)}{unit}{int(seconds % size // smaller):02}{name}"
    raise AssertionError


def line(text: str, limit: int = CUT) -> str:
    """A text of unknown origin as a part of a line."""
    text = cell(" ".join(text.split()))
    return text if len(text) <= limit else text[: limit - 3] + "..."


def amounts(counts: dict[str, int]) -> str:
    """How many jobs are in each state.

    >>> amounts({"failed": 10, "succeeded": 9970})
    '9,970 succeeded, 10 failed'
    """
    return ", ".join(f"{counts[state]:,} {state}" for state in STATES if counts.get(state))


def awaited(wait: Wait) -> str:
    """What a wait is for, in words."""
    said = {
        "sleep": "sleeping",
        "event": f"waiting for event {wait.key!r}",
        "message": f"waiting for a message of topic {wait.key!r}",
        "job": f"waiting for job {wait.key}",
        "children": "waiting for its children",
    }[wait.kind]
    return line(said + (f" until {cell(wait.until)}" if wait.until else ""))


def _rendered(lines: list[Line], boxes: tuple[str, str, str, str], before: str) -> Iterator[str]:
    for number, one in enumerate(lines, 1):
        last = number == len(lines)
        yield before + boxes[last] + one.text
        yield from _rendered(one.below, boxes, before + boxes[2 + last])


def _job_lines(job: Job) -> list[Line]:
    steps = job.in_order
    lines = [Line(f"... {job.earlier:,} earlier steps")] if job.earlier else []
    numbers = max((len(str(step.seq)) for step in steps), default=1)
    names = min(40, max((len(step.name) for step in steps), default=1))
    before = job.run_at or job.created_at
    for step in steps:
        lines.append(_step_line(job, step, before, numbers, names))
        before = step.ended_at or before
    tries, shown = job.tries, job.tries[-2 * TRIES :]
    if len(shown) < len(tries):
        lines.append(Line(f"... {len(tries) - len(shown):,} earlier tries"))
    return lines + [Line("job: " + _try(one)) for one in shown]


def _step_line(job: Job, step: Step, before: datetime, numbers: int, names: int) -> Line:
    status = {"succeeded": "ok", "waiting": "left" if job.ended else "waiting", "open": "retrying" if step.tries else "open"}
    text = (
        f"{str(step.seq or '-').rjust(numbers)} {line(step.name).ljust(names)}  {status.get(step.status, step.status).ljust(8)}"
    )
    if step.ended_at is not None:
        text += f"  {cell(step.ended_at)}  {('+' + span((step.ended_at - before).total_seconds())).ljust(7)}  {line(step.text)}"
    elif step.wait is not None:
        text += f"  {awaited(step.wait)}"
    hidden = len(step.tries) - TRIES
    below = [Line(f"... {hidden:,} earlier tries")] if hidden > 0 else []
    below += [Line(_try(one)) for one in step.tries[-TRIES:]]
    below += [Line(_child(child), _job_lines(child)) for child in step.jobs]
    rest = dict(step.counts)
    for child in step.jobs:
        rest[child.state] = rest.get(child.state, 0) - 1
    more = sum(max(0, amount) for amount in rest.values())
    if more:
        below.append(Line(f"{'... and ' if step.jobs else ''}{more:,} {'more' if step.jobs else 'children'}: {amounts(rest)}"))
    return Line(text.rstrip(), below)


def _try(one: Try) -> str:
    said = [one.kind, cell(one.ended_at)]
    if one.host:
        said.append(f"on {line(one.host)}")
    if one.by:
        said.append(f"by {line(one.by)}")
    return " ".join(said) + (f": {line(one.error)}" if one.error.strip(": ") else "")


def _child(job: Job) -> str:
    number = "" if job.ordinal is None else f"#{job.ordinal} "
    text = f"{number}{line(job.name)} {job.id} {job.state}"
    if job.finished_at is not None:
        text += f" after {span((job.finished_at - (job.run_at or job.created_at)).total_seconds())}"
    elif job.state == "scheduled" and job.run_at is not None:
        text += f" until {cell(job.run_at)}"
    elif job.started_at is not None:
        text += f" since {cell(job.started_at)}"
    return text + (f": {line(job.error)}" if job.error.strip(": ") else "")
