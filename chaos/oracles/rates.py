"""Never more begins in any window of time than a rate allows, by the stamps of the claims.

Fails where the costs of what begins within ``per`` sum up to more than n + burst - 1 (with the largest cost in place of the
burst, if that is more). The stamps are those by which the rate is kept, so a clock that is set lets no more through by them. By
true times it does: ``extra`` is what is allowed on top, at most a burst for each time that it was set forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta


def check(stamps: Sequence[tuple[datetime, int]], n: int, per: float = 1.0, burst: int = 1, extra: int = 0) -> list[str]:
    """``stamps``: when each began, and what it costs."""
    largest = max((cost for _, cost in stamps), default=1)
    allowed = n + max(burst, largest) - 1 + extra
    count, window = busiest(stamps, per)
    return [f"{count} began within {per:g} s from {window}, {allowed} may"] if count > allowed else []


def busiest(stamps: Sequence[tuple[datetime, int]], per: float) -> tuple[int, datetime | None]:
    """The most that began in a window of this length, and where that begins."""
    ordered = sorted(stamps)
    most, window, inside, first = 0, None, 0, 0
    for stamp, cost in ordered:
        inside += cost
        while ordered[first][0] <= stamp - timedelta(seconds=per):
            inside -= ordered[first][1]
            first += 1
        if inside > most:
            most, window = inside, ordered[first][0]
    return most, window


def throughput(stamps: Sequence[tuple[datetime, int]]) -> float:
    """What began per second, from the first to the last."""
    ordered = sorted(stamps)
    took = (ordered[-1][0] - ordered[0][0]).total_seconds()
    return sum(cost for _, cost in ordered[1:]) / took
