"""Never more of a queue, or of a key in it, are running than may.

Fails where a claim was committed while too much was running, whatever had been killed before. A job that costs more than the
whole limit may run alone. ``most`` and ``use`` say how much was in use at most, and on average while there was work: a limit that
nobody reaches is no limit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from chaos.history import Commit, Start


def check(history: Iterable[Commit], queue: str, limit: int | None = None, per_key: int | None = None) -> list[str]:
    """Judges each commit that let jobs of this queue begin."""
    running: dict[str, Start] = {}
    wrong = []
    for commit in history:
        began = _apply(commit, queue, running)
        cost = sum(start.cost for start in running.values())
        if began and limit is not None and cost > limit and len(running) > 1:
            wrong.append(f"{commit.at}: {cost} of {limit} are running in {queue}: {_names(running.values())}")
        if began and per_key is not None:
            for key, count in Counter(start.key for start in running.values()).items():
                if key is not None and count > per_key:
                    wrong.append(f"{commit.at}: {count} of {per_key} of the key {key} are running in {queue}")
    return wrong


def most(history: Iterable[Commit], queue: str) -> int:
    """The most that ran at once, by cost."""
    running: dict[str, Start] = {}
    found = 0
    for commit in history:
        _apply(commit, queue, running)
        found = max(found, sum(start.cost for start in running.values()))
    return found


def use(history: Iterable[Commit], queue: str) -> float:
    """How much ran on average, from the first claim until the last."""
    running: dict[str, Start] = {}
    area, since, total, first = 0.0, None, 0.0, None
    for commit in history:
        before = sum(start.cost for start in running.values())
        if since is not None:
            area += before * (commit.at - since).total_seconds()
        began = _apply(commit, queue, running)
        if began and first is None:
            first = commit.at
        since = commit.at if first is not None else None
        if began and first is not None:  # what comes behind the last claim does not count
            total, until = area, commit.at
    return total / (until - first).total_seconds() if first is not None and until > first else 0.0


def _apply(commit: Commit, queue: str, running: dict[str, Start]) -> list[Start]:
    for job in commit.ended:
        running.pop(job, None)
    began = [start for start in commit.began if start.queue == queue]
    running.update({start.job: start for start in began})
    return began


def _names(starts: Iterable[Start]) -> str:
    return ", ".join(sorted(f"{start.job} ({start.cost})" for start in starts))
