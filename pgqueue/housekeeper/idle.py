"""Waking the workers of this host that have nothing to do: one at once, the others a moment later."""

from __future__ import annotations

import os
from collections.abc import Sequence

from pgqueue.slots import Order, Phase, Slot, Slots


class Idle:
    """Those that want to be woken. Most often there is one job for them, and all others would be in the way of who takes it."""

    def __init__(self, slots: Slots, wakes: Sequence[int]) -> None:
        self._slots = slots
        self._wakes = wakes  # a pipe of each slot
        self._turn = 0
        self._woken: list[int] = []  # ahead of the others, one for each reason

    def workers(self) -> list[Slot]:
        """Whose host is paused is woken by its supervisor."""
        return [slot for slot in self._slots.used() if slot.phase == Phase.IDLE and slot.order != Order.PAUSE]

    def wake_one(self) -> bool:
        """The next in turn. False: there is none."""
        idle = self.workers()
        if idle:
            self._turn += 1
            first = idle[self._turn % len(idle)]
            self._call(first)
            self._woken.append(first.index)
        return bool(idle)

    def wake_others(self) -> None:
        """All but the one that was woken, unless there has been another reason since."""
        spared = self._woken if len(self._woken) == 1 else []
        for slot in self.workers():
            if slot.index not in spared:
                self._call(slot)
        self._woken = []

    def _call(self, slot: Slot) -> None:
        try:
            os.write(self._wakes[slot.index], b".")
        except BlockingIOError:
            pass  # it has been called already
