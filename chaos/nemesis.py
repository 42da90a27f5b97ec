"""Who injects the faults of a storm: a timetable that follows from the seed, and a thread for each lane that keeps to it."""

from __future__ import annotations

import random
import threading
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import NamedTuple

from chaos.arena import Arena
from chaos.faults import Fault

AGAIN = 0.2  # seconds after which a fault that found nothing to break looks again ...
PATIENCE = 2.0  # ... for so many seconds ...
LAST = 20.0  # ... or so many, where it has not happened once


class Entry(NamedTuple):
    """One fault in the timetable."""

    at: float  # seconds from the beginning
    fault: str
    seed: str  # of what the fault chooses


def timetable(every: Mapping[str, float], seconds: float, seed: str) -> list[Entry]:
    """The same for the same seed. ``every``: seconds between two of a fault, on average."""
    entries = []
    for fault, mean in every.items():
        chance = random.Random(f"{seed} {fault}")
        at, number = chance.uniform(0, min(mean, seconds * 0.9)), 0  # at least once
        while at < seconds:
            entries.append(Entry(round(at, 3), fault, f"{seed} {fault} {number}"))
            at, number = at + chance.expovariate(1 / mean), number + 1
    return sorted(entries)


class Nemesis:
    """Keeps to a timetable."""

    def __init__(self, arena: Arena, entries: list[Entry], faults: Mapping[str, Fault]) -> None:
        self._arena = arena
        self._faults = faults
        lanes: dict[str, list[Entry]] = defaultdict(list)
        for entry in entries:
            lanes[faults[entry.fault].lane].append(entry)
        self.planned = Counter(entry.fault for entry in entries)
        self._threads = [
            threading.Thread(target=self._walk, args=(lane,), name=name, daemon=True) for name, lane in lanes.items()
        ]
        self._hurry = threading.Event()
        self.over = threading.Event()
        self.done = threading.Event()  # never: the storm ends when its time is over

    def start(self) -> None:
        """Now is the beginning."""
        self._began = time.monotonic()
        for thread in self._threads:
            thread.start()

    def owes(self) -> bool:
        """Is there a fault that has not happened once, and still may?"""
        missing = {fault for fault in self.planned if not self._arena.injected[fault]}
        return any(thread.is_alive() and thread.name == self._faults[fault].lane for fault in missing for thread in self._threads)

    def hurry(self) -> None:
        """From now on only what is owed."""
        self._hurry.set()

    def stop(self, patience: float = 90.0) -> None:
        """No new faults. Those that are under way are mended when this returns."""
        self.over.set()
        for thread in self._threads:
            thread.join(patience)
            if thread.is_alive():
                self._arena.findings.append(f"liveness: a fault of the lane {thread.name} was not mended in {patience:g} s")

    def _walk(self, entries: list[Entry]) -> None:
        for number, entry in enumerate(entries):
            if self.over.wait(max(0.0, entry.at - (time.monotonic() - self._began))):
                return
            owed = not self._arena.injected[entry.fault]
            if self._hurry.is_set() and not owed:
                continue
            last = all(later.fault != entry.fault for later in entries[number + 1 :])
            try:
                self._inject(entry, LAST if owed and last else PATIENCE)
            except Exception as error:  # noqa: BLE001 -- the suite's own trouble, which must be seen too
                self._arena.chaos.note("injecting failed", fault=entry.fault, trace=traceback.format_exc())
                self._arena.findings.append(f"suite: injecting {entry.fault} failed: {error!r}")

    def _inject(self, entry: Entry, patience: float) -> None:
        """With the same choices again and again, until there is something to break."""
        until = time.monotonic() + patience
        while (what := self._faults[entry.fault].inject(self._arena, random.Random(entry.seed))) is None:
            if self.over.wait(AGAIN) or time.monotonic() > until:
                self._arena.found_nothing(entry.fault)
                return
        self._arena.note(entry.fault, what)
