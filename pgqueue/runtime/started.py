"""Which jobs a step has started, as its checkpoint remembers it.

A replay compares: under changed code, a step with the same number and name may start other jobs, or more of them, and what the
first run started must not be taken for these. The names are compared, and how many there are; the arguments are not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pgqueue.runtime.run import JobRun

Started = list[list[Any]]
"""``[name, count]`` in order: ten thousand children of one kind are one entry."""


def started(descriptions: Sequence[dict[str, Any]]) -> Started:
    """What these descriptions start.

    >>> started([{"name": "render"}, {"name": "render"}, {"name": "pack"}])
    [['render', 2], ['pack', 1]]
    """
    return _counted(d["name"] for d in descriptions)


def _counted(names: Iterable[str]) -> Started:
    return [[name, len(list(same))] for name, same in groupby(names)]


async def compare(run: JobRun, seq: int, stored: Started, descriptions: Sequence[dict[str, Any]]) -> None:
    """The job ends with NonDeterministic where its code starts other jobs than it did."""
    now = started(descriptions)
    if stored != now and _counted(_present_name(run, name) for name, count in stored for _ in range(count)) != now:
        what = f"step {seq} started {_shown(stored)} when it ran, and starts {_shown(now)} now"
        await run.contradict(run.history.contradiction(what))


def _present_name(run: JobRun, name: str) -> str:
    """What a function is called now that was called so then."""
    return next((f.name for f in run.app.functions.values() if name in f.known_names), name)


def _shown(jobs: Started) -> str:
    return ", ".join(name if count == 1 else f"{count} x {name}" for name, count in jobs) or "nothing"
