"""In which order a worker looks into its queues: those of the first level first, and within a level by turns, so that each gets
its share of the jobs that begin. Nothing is kept free for anybody: a claim goes on to the next queue where one has nothing.

Shares are of what this worker takes: a queue that had nothing for a while has no claim to what it did not use.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Mapping, Sequence


class Turns:
    """The queues of one worker, with their weights, level by level.

    >>> turns = Turns([{"critical": 1}, {"default": 3, "low": 1}])
    >>> turns.next(["low", "default", "critical"])[0]
    'critical'
    """

    def __init__(self, levels: Sequence[Mapping[str, int]]) -> None:
        self._levels = levels
        # How much each queue has had, for its weight. Workers begin with different ones.
        self._had = {queue: random.random() / weight for level in levels for queue, weight in level.items()}  # noqa: S311

    def next(self, queues: Collection[str]) -> list[str]:
        """These queues, in the order for the next claim: who has had least is first."""
        return [queue for level in self._levels for queue in sorted(level, key=self._had.__getitem__) if queue in queues]

    def learn(self, asked: Sequence[str], found: Sequence[str], wanted: int) -> None:
        """What a claim has brought: the queues of its jobs. One that had nothing is even with those that had something."""
        taken = Counter(found)
        last = len(asked) if len(found) < wanted else max(map(asked.index, taken), default=0)
        for level in self._levels:
            now = min((self._had[queue] for queue in level if taken[queue]), default=None)
            for queue, weight in level.items():
                if taken[queue]:
                    self._had[queue] += taken[queue] / weight
                elif now is not None and queue in asked[:last]:
                    self._had[queue] = max(self._had[queue], now)
