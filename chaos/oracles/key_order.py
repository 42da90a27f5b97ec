"""The jobs of a key run one after the other, in the order in which they were enqueued, where a key has one at a time.

Fails where one began for the first time, or left the running jobs for the last time, behind one of its key and priority that was
enqueued later: also where its worker was killed or drained meanwhile. Only jobs that are put off (a later retry, a sleep) let
others by.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from chaos.history import Commit, Start


def check(history: Iterable[Commit], queue: str, places: Mapping[str, int]) -> list[str]:
    """``places``: where each job was in the order of the enqueues. Those that are not in there let others by."""
    first: dict[str, Start] = {}  # the claims in the order in which they were first ...
    ended: dict[str, Start] = {}  # ... and those that ended, in the order in which they last did
    for commit in history:
        for job in commit.ended:
            if job in first:
                ended.pop(job, None)
                ended[job] = first[job]
        for start in commit.began:
            if start.queue == queue and start.key is not None and start.job in places:
                first.setdefault(start.job, start)
    return [
        f"{later.job} of the key {later.key} {what} behind {before.job}, which was enqueued later"
        for what, order in (("began", first), ("ended", ended))
        for before, later in _neighbours(order.values())
        if places[before.job] > places[later.job]
    ]


def _neighbours(starts: Iterable[Start]) -> Iterable[tuple[Start, Start]]:
    """Those of a key and priority that follow each other."""
    last: dict[tuple[str | None, int], Start] = {}
    for start in starts:
        series = (start.key, start.lane // 2)
        if series in last:
            yield last[series], start
        last[series] = start
