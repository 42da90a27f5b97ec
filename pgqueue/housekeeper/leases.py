"""Whose lease is over? Judged by beat numbers and our own monotonic clock, never by comparing timestamps."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass
class _Watched:
    beat: int
    first_seen: float
    last_seen: float
    observations: int


class Leases:
    """Remembers when each worker's beat was last seen to change.

    A lease is over when the same beat was seen at least 6 times over ``lease`` seconds, never more than ``lease / 5`` apart. A
    longer gap (this process was stopped, the database was away) starts the count again: it fences nobody.
    """

    def __init__(self, lease: float) -> None:
        self._lease = lease
        self._watched: dict[str, _Watched] = {}

    def observe(self, beats: Iterable[tuple[str, int]], now: float) -> list[tuple[str, int]]:
        """Take note of all beats; the (worker, beat) whose lease is over."""
        seen = dict(beats)
        for worker in [w for w in self._watched if w not in seen]:
            del self._watched[worker]
        over = []
        for worker, beat in seen.items():
            watched = self._watched.get(worker)
            if watched is None or watched.beat != beat or now - watched.last_seen > self._lease / 5:
                self._watched[worker] = _Watched(beat, now, now, 1)
                continue
            watched.last_seen = now
            watched.observations += 1
            if watched.observations >= 6 and now - watched.first_seen >= self._lease:
                over.append((worker, beat))
        return over
