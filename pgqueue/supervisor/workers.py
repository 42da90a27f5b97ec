"""The workers that there should be: started, replaced, and told what to do. Who has died is taken out by ``remove``."""

from __future__ import annotations

import logging
import random
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from pgqueue.config import WorkSettings
from pgqueue.failpoints import failpoint
from pgqueue.slots import Order, Phase, Slot, Slots
from pgqueue.supervisor.child import STABLE_AFTER, Child, Place, Scratch, kill_group, poke
from pgqueue.supervisor.fork import fork
from pgqueue.supervisor.stacks import say
from pgqueue.worker.process import work

log = logging.getLogger(__name__)

ROOM_TO_GROW = 16  # more workers than at the start, by SIGTTIN or a reload
SPARE_SLOTS = 16  # so that a dead worker's slot can be kept until its jobs are given back


def slots_for(workers: int) -> int:
    """How many slots: each worker can have a successor, or a predecessor that still has something to do."""
    return 2 * (workers + ROOM_TO_GROW) + SPARE_SLOTS


class Workers:
    """N places, and those that have left theirs and end what they run."""

    def __init__(
        self, settings: WorkSettings, slots: Slots, wakes: Sequence[tuple[int, int]], private: Callable[[], list[int]]
    ) -> None:
        self.settings = settings
        self.generation = 1
        self.places: list[Place] = []
        self.leaving: list[Child] = []
        self.order = Order.WORK
        self._slots = slots
        self._wakes = wakes
        self._private = private
        self._most = (len(slots) - SPARE_SLOTS) // 2
        self._no_room = False  # and that was said

    def __iter__(self) -> Iterator[Child]:
        for place in self.places:
            yield from filter(None, (place.child, place.successor))
        yield from self.leaving

    def resize(self, count: int) -> None:
        """There should be so many. Those of too many leave when they have ended what they run."""
        if count > self._most:
            log.warning("%d workers are more than there is room for: %d. For more, start with more", count, self._most)
        count = max(1, min(count, self._most))
        for place in self.places[count:]:
            for child in filter(None, (place.child, place.successor)):
                self._dismiss(child)
        del self.places[count:]
        self.places.extend(Place() for _ in range(count - len(self.places)))

    # ------------------------------------------------------------------------------------- starting, replacing

    def start_due(self) -> None:
        """Fill empty places, and begin and finish replacements."""
        now = time.monotonic()
        for place in self.places:
            if place.child is None and place.successor is not None:
                place.child, place.successor = place.successor, None
            if place.child is None and now >= place.pause.until:
                place.child = self._start()
        self._replace(now)

    def _replace(self, now: float) -> None:
        """A new one first, and when it has booted the old one leaves. Never more than a quarter of all at once."""
        booting = sum(place.successor is not None for place in self.places)
        for place in self.places:
            old, new = place.child, place.successor
            if old is None:
                continue
            if new is not None and new.booted:
                if old.worn_out:
                    place.pause.died(now, well=old.slot.done > 0)  # one that has done nothing says that the next will not either
                self._dismiss(old)
                place.child, place.successor = new, None
            elif new is None and self._wants_another(old) and now >= place.pause.until and booting < 1 + len(self.places) // 4:
                place.successor = self._start()
                if old.worn_out and place.successor is not None:
                    log.info("worker %s is replaced: %s", old.worker, old.worn_out)
                booting += 1

    def call_off_successors(self) -> None:
        """Those that boot are not wanted any more."""
        for place in self.places:
            if place.successor is not None:
                self._dismiss(place.successor)
                place.successor = None

    def _wants_another(self, child: Child) -> bool:
        if child.generation != self.generation:
            return True
        if child.most_jobs and child.slot.done >= child.most_jobs - child.most_jobs // 10:
            child.worn_out = child.worn_out or f"it has run {child.slot.done} jobs"
        return child.worn_out is not None

    def _start(self) -> Child | None:
        slot = self._unused_slot()
        if slot is None:
            if not self._no_room:
                log.warning("no worker can be started until one of the %d that leave has ended its jobs", len(self.leaving))
            self._no_room = True
            return None
        self._no_room = False
        worker, settings = str(uuid.uuid4()), self.settings
        wake, stacks = self._wakes[slot.index], Scratch()
        most_jobs = settings.max_jobs and random.randint(settings.max_jobs - settings.max_jobs // 10, settings.max_jobs)  # noqa: S311
        slot.assign(worker)
        slot.order = self.order
        failpoint("supervisor.before_fork")
        others = [descriptor for pair in self._wakes if pair is not wake for descriptor in pair]
        child_stacks = [child.stacks.descriptor for child in self]
        close = [*self._private(), *others, *child_stacks]
        tell = partial(say, stacks.descriptor)
        pid = fork(lambda: work(settings, worker, slot, wake, most_jobs, tell), close, True, stacks.descriptor)
        slot.pid = pid
        log.info("worker %s started", worker, extra={"worker_pid": pid})
        return Child(pid, worker, slot, time.monotonic(), self.generation, stacks, most_jobs)

    def _unused_slot(self) -> Slot | None:
        """A free slot; if there is none, because the database is away and many have died, the one of some dead worker."""
        unused = (slot for slot in self._slots if slot.phase in (Phase.FREE, Phase.DEAD))
        return min(unused, key=lambda slot: slot.phase, default=None)

    # -------------------------------------------------------------------------------------------------- orders

    def give(self, order: Order) -> None:
        """From now on, to all of them that do not leave."""
        self.order = order
        for child in self:
            if child not in self.leaving or order == Order.DRAIN:
                self._tell(child, order)

    def _dismiss(self, child: Child) -> None:
        self.leaving.append(child)
        if child.booted:
            self._tell(child, Order.DRAIN)
        else:
            self.kill(child)

    def _tell(self, child: Child, order: Order) -> None:
        child.slot.order = order
        poke(self._wakes[child.slot.index][1])

    def kill(self, child: Child) -> None:
        """With what its jobs have started."""
        failpoint("supervisor.before_kill")
        child.killed = True
        kill_group(child.pid)

    def remove(self, child: Child) -> None:
        """It has died."""
        now = time.monotonic()
        if child in self.leaving:
            self.leaving.remove(child)
        for place in self.places:
            if child in (place.child, place.successor):
                well = child.slot.left or child.slot.done > 1 or now - child.born > STABLE_AFTER
                place.pause.died(now, well)
                place.child = None if place.child is child else place.child
                place.successor = None if place.successor is child else place.successor
        child.stacks.close()

    @property
    def next_start(self) -> float:
        """When there may be something to start; always soon where somebody boots."""
        soon = time.monotonic() + 0.1
        if any(not child.booted for child in self):
            return soon
        return min((max(soon, place.pause.until) for place in self.places if place.child is None), default=float("inf"))
