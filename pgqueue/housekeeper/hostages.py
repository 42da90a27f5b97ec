"""Hostages: what a worker has in hand while a job keeps its whole interpreter. It can neither give back what waits nor settle
what is done, so the housekeeper does, from what the worker has written into its slot."""

from __future__ import annotations

import time
from typing import Any

import psycopg

from pgqueue.housekeeper import recovery
from pgqueue.slots import Phase, Slots


class Hostages:
    """``free()`` every now and then: what it meets twice is stuck."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self._answered: dict[int, float] = {}  # tokens of claims on their way, and when we first saw them
        self._unsettled: dict[str, set[int]] = {}  # results that workers had not settled when we last looked

    def possible(self) -> bool:
        """Has any worker something in hand? One that is idle has room, and may be running jobs all the same."""
        return any(slot.phase != Phase.IDLE or slot.inflight or slot.held() - {0} for slot in self._slots.used())

    def free(self, conn: psycopg.Connection[Any]) -> bool:
        """True: a job was settled, and its worker does not claim next."""
        if any(slot.waiting(recovery.HOSTAGE_AFTER) for slot in self._slots.used()):
            recovery.free_hostages(conn, self._slots.used())
        self._revoke(conn)
        return self._settle(conn)

    def _revoke(self, conn: psycopg.Connection[Any]) -> None:
        """Claims whose answer nobody reads."""
        answered, self._answered = self._answered, {}
        for slot in self._slots.used():
            if slot.inflight:
                first_seen = answered.get(slot.inflight, time.monotonic())
                self._answered[slot.inflight] = first_seen
                if time.monotonic() - first_seen > recovery.HOSTAGE_AFTER:
                    recovery.revoke(conn, slot, slot.inflight)

    def _settle(self, conn: psycopg.Connection[Any]) -> bool:
        settled = False
        seen, self._unsettled = self._unsettled, {}
        for slot in self._slots.used():
            kept = slot.kept()
            if slot.worker and kept:
                self._unsettled[slot.worker] = set(kept)
                if stuck := {key: kept[key] for key in kept.keys() & seen.get(slot.worker, set())}:
                    recovery.settle_kept(conn, slot.worker, stuck)
                    settled = True
        return settled
