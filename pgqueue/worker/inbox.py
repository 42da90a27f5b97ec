"""The jobs that a worker has claimed and not begun, and how many of them run.

A worker has two halves: threads, which run ``def`` jobs, and an event loop for ``async def`` jobs. The thread that claims puts
jobs in; a half that has room takes one. Whoever takes a job out owns it: to run it, or to give it back.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from pgqueue.model import ClaimedJob
from pgqueue.slots import Slot
from pgqueue.worker.pace import Pace

HOSTAGE_AFTER = 0.5  # seconds that a job may wait here; the housekeeper takes it away after 0.75, whatever this process does
# A job whose last worker died begins alone, so that its neighbours are not blamed: it waits for them to end, and then nothing
# begins beside it, for so many seconds.
QUIET_WITHIN, ALONE_FOR = 0.3, 2.0
LATE = 0.1  # seconds after the start that a rate has given to a job: then it is given back, and gets another one


class Half:
    """One half of a worker."""

    def __init__(self, capacity: int, arrived: Callable[[int], None]) -> None:
        self.capacity = capacity  # jobs at once
        self.arrived = arrived  # called when there are so many more
        self.waiting: deque[tuple[ClaimedJob, float]] = deque()  # with the moment at which it came
        self.running = 0
        self.moved = 0.0  # when a job last began or ended
        self.pace = Pace(capacity)

    def room(self, now: float) -> int:
        """How many more jobs could begin soon."""
        free = self.capacity - self.running
        stuck = free == 0 and now - self.moved > HOSTAGE_AFTER
        ahead = 0 if stuck else self.pace.ahead()
        waiting = len(self.waiting)
        return max(0, free + ahead - waiting) if waiting <= max(ahead // 2, free - 1) else 0


class Inbox:
    """Both halves, and what they may not do at the same time."""

    def __init__(self, slot: Slot, halves: dict[bool, Half], is_async: Callable[[str], bool]) -> None:
        self._slot = slot
        self._halves = halves  # by: is it the one for async def?
        self._is_async = is_async
        self._lock = threading.Lock()
        self.alone_until = 0.0  # a suspect has begun
        self._late: list[ClaimedJob] = []  # waited too long: to be given back
        self.running = 0  # in both halves
        self._promised = 0

    # ------------------------------------------------------------------------------- the thread that claims

    def put(self, jobs: Sequence[ClaimedJob]) -> None:
        """Jobs were claimed."""
        now = time.monotonic()
        for colour, half in self._halves.items():
            mine = jobs if len(self._halves) == 1 else [job for job in jobs if self._is_async(job.name) is colour]
            if mine:
                with self._lock:
                    half.waiting.extend([(job, now) for job in mine])
                half.arrived(len(mine))

    def room(self, colours: Iterable[bool]) -> int:
        """How many jobs of these colours to claim: as many as fit into each half, because nobody knows what will come."""
        now = time.monotonic()
        return 0 if self.alone_until > now else min(self._halves[colour].room(now) for colour in colours)

    def take_late(self, everything: bool = False) -> list[ClaimedJob]:
        """What has waited too long, or all that waits: it is to be given back."""
        before = time.monotonic() - (0.0 if everything else HOSTAGE_AFTER)
        with self._lock:
            for half in self._halves.values():
                while half.waiting and (everything or half.waiting[0][1] <= before):
                    self._late.append(half.waiting.popleft()[0])
            late, self._late = self._late, []
        return late

    def free(self, colours: Iterable[bool]) -> int:
        """How many jobs of these colours could begin at this moment."""
        return min(half.capacity - half.running - len(half.waiting) for colour, half in self._halves.items() if colour in colours)

    @property
    def waiting(self) -> int:
        """Jobs that have not begun."""
        return sum(len(half.waiting) for half in self._halves.values()) + len(self._late) + self._promised

    # ------------------------------------------------------------------------------------------ the two halves

    def take(self, half: Half) -> ClaimedJob | None:
        """The next job of this half, which begins now. None: there is nothing that can begin."""
        with self._lock:
            while half.waiting and half.running < half.capacity:
                job, arrived = half.waiting[0]
                now = time.monotonic()
                if job.starts_at > now:
                    return None
                if self.running and (now < self.alone_until or (job.suspect and now - arrived < QUIET_WITHIN)):
                    return None
                half.waiting.popleft()
                if self._begins(half, job, now):
                    return job
        return None

    def promise(self, half: Half, fits: Callable[[ClaimedJob], bool]) -> ClaimedJob | None:
        """The next job, for somebody who is about to be free, and then says ``take_promised``. It has not begun yet."""
        with self._lock:
            if (
                not half.waiting
                or half.waiting[0][0].suspect
                or self.alone_until
                or half.waiting[0][0].starts_at
                or not fits(half.waiting[0][0])
            ):
                return None
            self._promised += 1
            return half.waiting.popleft()[0]

    def take_promised(self, half: Half, job: ClaimedJob) -> bool:
        """It begins now. False: it has waited too long."""
        with self._lock:
            self._promised -= 1
            return self._begins(half, job, time.monotonic())

    def _begins(self, half: Half, job: ClaimedJob, now: float) -> bool:
        late = job.starts_at and now > job.starts_at + LATE
        waited = self._slot.begin(job.place)
        if waited > HOSTAGE_AFTER or late:
            self._slot.put_back(job.place)
            self._late.append(job)
            return False
        if job.waited is not None:
            job.waited += waited
        self.running += 1
        half.running += 1
        half.moved = now
        self.alone_until = now + ALONE_FOR if job.suspect else 0.0
        return True

    def ended(self, half: Half, job: ClaimedJob, seconds: float) -> None:
        """A job of this half has ended."""
        half.pace.ran(seconds)
        self._slot.end(job.place)
        with self._lock:
            self.running -= 1
            half.running -= 1
            half.moved = time.monotonic()
            if not self.running:
                self.alone_until = 0.0
