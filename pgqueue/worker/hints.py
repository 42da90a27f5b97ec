"""Where a claim starts to look.

While anyone holds a snapshot, the index entries of claimed jobs cannot be removed, and a scan from the start visits them all.
So a claimer remembers, per queue and lane, the position of a claim that is at least 250 ms old: what is younger may still be
uncommitted and would be missed. Once a second it looks from the start anyway, which finds what committed late. Nothing depends
on a hint, and as long as looking from the start is cheap, none is used.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence

from pgqueue.model import LANES, ClaimedJob

AGE = 0.25  # seconds
SWEEP_EVERY = 1.0  # seconds
WORTH_IT = 0.002  # seconds that a scan from the start may take longer than a hinted one


class ScanHints:
    """The hints of one worker."""

    def __init__(self, queues: Sequence[str]) -> None:
        self._queues = {name: index for index, name in enumerate(queues)}
        self.reset()

    def reset(self) -> None:
        """After a lost connection positions may have gone back: start without hints."""
        count = len(self._queues) * LANES
        self._none = [0] * count
        self._old = [0] * count
        self._samples: deque[tuple[float, list[int]]] = deque()
        self._last_sweep = time.monotonic()
        self._duration = {True: 0.0, False: 0.0}  # seconds that hinted claims take, and claims from the start
        self._hinted = False

    def next(self, queues: Sequence[str]) -> list[int]:
        """The hints for the next claim: 20 positions for each of these queues."""
        now = time.monotonic()
        while self._samples and self._samples[0][0] <= now - AGE:
            self._old = self._samples.popleft()[1]
        self._hinted = self._duration[False] - self._duration[True] > WORTH_IT
        if now - self._last_sweep >= max(SWEEP_EVERY, 20 * self._duration[False]):
            self._last_sweep = now
            self._hinted = not self._hinted  # the other way: to find late commits, or to learn what a hint would save
        hints = self._old if self._hinted else self._none
        return [hint for queue in queues for hint in hints[self._queues[queue] * LANES : (self._queues[queue] + 1) * LANES]]

    def learn(self, queues: Sequence[str], found: Sequence[tuple[ClaimedJob, int]], newest: int, asked: int, took: float) -> None:
        """What a claim from these queues brought: jobs with their positions, the newest position given out before it (0: it may
        not have looked at all), and its duration."""
        old = self._duration[self._hinted]
        self._duration[self._hinted] = took if old == 0.0 else 0.8 * old + 0.2 * took
        sample = list(self._samples[-1][1] if self._samples else self._old)
        if newest and len(found) < asked:  # every lane was looked through to its end
            for queue in queues:
                first = self._queues[queue] * LANES
                sample[first : first + LANES] = [newest] * LANES
        lowest: dict[int, int] = {}
        for job, position in found:
            place = self._queues[job.queue] * LANES + job.lane
            lowest[place] = min(position, lowest.get(place, position))
        for place, position in lowest.items():
            sample[place] = position
        self._samples.append((time.monotonic(), sample))
