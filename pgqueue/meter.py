"""Counters in memory that several processes share: each counts in a region of its own, and one process reads them all.

A region has one writer, and every number in it is 8 bytes, stored at once: nothing is ever torn, and what was counted before a
SIGKILL is there after it. When the writer is dead, the supervisor adds its region to the totals, so a counter never goes back.

A series (a metric with one set of label values) gets its place at its first use:

    region   | used | series | series | ...          series   | lengths | key, as JSON | numbers |

``used`` is written last. There is room for so many series and no more; what comes later is counted as ``other``.
"""

from __future__ import annotations

import mmap
import os
import threading
import time
import weakref
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import msgspec

from pgqueue.metrics import METRICS, OTHER, Family

REGION, TOTALS = 1 << 14, 1 << 17  # words of 8 bytes: 128 KiB for each process, 1 MiB for all that were
SERIES, ALL_SERIES = 200, 1000  # of one metric, in a region, and in the totals
LONGEST = 128  # characters of a label's value
_LARGEST = 512  # words that a series may need
_RESERVE = 1 << 12  # words that are left for the series called "other"

Key = bytes
Numbers = list[float]
Words = Any  # a memoryview of 8-byte numbers
_encode, _decode = msgspec.json.encode, msgspec.json.decode


def _key(family: Family, labels: Sequence[str]) -> Key:
    return _encode((family.name, *labels))


def declaration(family: Family) -> Key:
    """A metric of the application's own, as its processes tell it to those that do not know the application."""
    return _encode(family)


def _full(used: int, size: int, of_family: int, most: int) -> bool:
    """Is there no room for another series of this metric? Writers and readers judge alike."""
    return of_family >= most or used + _LARGEST + _RESERVE > size


class Meter:
    """Writes one region. Safe to use from several threads."""

    def __init__(self, words: Words | None = None, most: int = SERIES) -> None:
        self._most = most
        self._begin(words)
        this = weakref.ref(self)
        os.register_at_fork(after_in_child=lambda: _leave_alone(this()))

    def _begin(self, words: Words | None = None) -> None:
        self._words = memoryview(bytearray(8 * REGION)).cast("Q") if words is None else words
        self._numbers: Words = self._words.cast("B").cast("d")
        self._words[0] = 1
        self._lock = threading.Lock()
        self._places: dict[tuple[str, tuple[str, ...]], int] = {}
        self._keys: dict[Key, int] = {}
        self._amount: dict[str, int] = {}

    def add(self, family: Family, labels: tuple[str, ...] = (), amount: float = 1.0) -> None:
        """Count."""
        with self._lock:
            self._numbers[self._place(family, labels)] += amount

    def observe(self, family: Family, labels: tuple[str, ...], value: float) -> None:
        """One more value of a histogram."""
        with self._lock:
            at = self._place(family, labels)
            self._numbers[at + bisect_left(family.buckets, value)] += 1.0
            self._numbers[at + len(family.buckets) + 1] += value

    def set(self, family: Family, labels: tuple[str, ...], value: float, add: bool = False) -> None:
        """The value of a gauge; with ``add`` the difference to the last one."""
        with self._lock:
            at = self._place(family, labels)
            self._numbers[at] = self._numbers[at] + value if add else value
            self._numbers[at + 1] = time.monotonic()

    def declare(self, family: Family) -> None:
        """A metric of the application's own: its name, meaning and labels."""
        with self._lock:
            self.place(declaration(family), "", 0)

    # ------------------------------------------------------------------------------------------------ places

    def _place(self, family: Family, labels: tuple[str, ...]) -> int:
        known = self._places.get((family.name, labels))
        if known is not None:
            return known
        texts = [str(label)[:LONGEST].encode("utf-8", "replace").decode() for label in labels]
        place = self.place(_key(family, texts), family.name, family.words)
        if place is None:
            place = self.place(_key(family, [OTHER] * len(labels)), family.name, family.words, of_the_rest=True)
        elif len(self._places) < 4 * self._most:
            self._places[family.name, labels] = place
        return place or len(self._words) - _LARGEST  # not even that: a place that nobody reads

    def place(self, key: Key, name: str, numbers: int, of_the_rest: bool = False) -> int | None:
        """Where the numbers of this series are. None: there is no room for it."""
        known = self._keys.get(key)
        if known is not None:
            return known
        used, length = self._words[0], -(-len(key) // 8)
        size = 1 + length + numbers
        if of_the_rest:
            if used + size + _LARGEST > len(self._words):
                return None
        elif size > _LARGEST or _full(used, len(self._words), self._amount.get(name, 0), self._most):
            return None
        at = used + 1 + length
        self._words[used] = len(key) << 32 | numbers
        self._words[used + 1 : at].cast("B")[: len(key)] = key
        self._words[0] = used + size  # last: from now on it is there
        self._keys[key] = at
        self._amount[name] = self._amount.get(name, 0) + 1
        return at

    def numbers_at(self, place: int, amount: int) -> Words:
        """The numbers of a series, to be changed by the process whose region this is."""
        return self._numbers[place : place + amount]

    def leave_alone(self) -> None:
        """In a process that was forked: the region is its parent's, and what is counted from now on nobody reads."""
        self._begin()


def _leave_alone(meter: Meter | None) -> None:
    if meter is not None:
        meter.leave_alone()


def series(words: Words, begin: int = 1) -> Iterator[tuple[Key, int, int]]:
    """What is in a region: keys, and where their numbers are, and how many."""
    at, end = max(1, begin), words[0]
    while at < end:
        size, numbers = divmod(words[at], 1 << 32)
        first = at + 1 + -(-size // 8)
        yield bytes(words[at + 1 : first].cast("B")[:size]), first, numbers
        at = first + numbers


class Meters:
    """The whole memory. Made by the supervisor before it forks: a region for each of so many processes, and the totals."""

    def __init__(self, count: int) -> None:
        self._map = mmap.mmap(-1, 8 * (1 + TOTALS + count * REGION))
        words: Words = memoryview(self._map).cast("Q")
        self._version = words[:1]  # odd while the totals change
        self._totals = words[1 : 1 + TOTALS]
        begins = [1 + TOTALS + i * REGION for i in range(count)]
        self._regions = [words[begin : begin + REGION] for begin in begins]
        self._families = {family.name: family for family in METRICS}  # as far as this process knows them
        self._looked_at = [1] * count  # by the supervisor
        self.supervisor = Meter(self._totals, ALL_SERIES)
        """The supervisor counts in the totals, which are its own."""

    def meter(self, index: int) -> Meter:
        """For the process that has this region from now on."""
        return Meter(self._regions[index])

    # ------------------------------------------------------------------------------------------ the supervisor

    @property
    def used(self) -> int:
        """How much of the totals is in use, in words of 8 bytes."""
        return int(self._totals[0])

    def admit(self) -> None:
        """Give a place in the totals to every new series. A series that has none is not shown yet."""
        for index, words in enumerate(self._regions):
            if words[0] > self._looked_at[index]:
                for key, _, numbers in series(words, self._looked_at[index]):
                    self._in_totals(key, numbers)
                self._looked_at[index] = words[0]

    def fold(self, index: int) -> None:
        """The process of this region is dead: add what it has counted to the totals, and clear the region."""
        words = self._regions[index]
        numbers = words.cast("B").cast("d")
        self._version[0] += 1
        for key, first, amount in series(words):
            place, family = self._in_totals(key, amount), self._family(key)
            if place is not None and family is not None and amount:
                _merge(family, self.supervisor.numbers_at(place, amount), numbers[first : first + amount].tolist(), alive=False)
        words[: words[0]] = memoryview(bytes(8 * words[0])).cast("Q")
        self._looked_at[index] = 1
        self._version[0] += 1

    def _in_totals(self, key: Key, numbers: int) -> int | None:
        family = self._family(key)
        if family is None:
            return None
        place = self.supervisor.place(key, family.name if numbers else "", numbers)
        if place is None:
            place = self.supervisor.place(_rest(family), family.name, family.words, of_the_rest=True)
        return place

    # ---------------------------------------------------------------------------------------------- whoever reads

    def read(self) -> dict[Family, dict[tuple[str, ...], Numbers]] | None:
        """All metrics: their series by label values, with their numbers. None: the totals are changing, and do not stop to."""
        for _ in range(200):
            before = self._version[0]
            if before % 2 == 0:
                copies = [memoryview(bytes(words[: max(1, words[0])])).cast("Q") for words in (self._totals, *self._regions)]
                if self._version[0] == before:
                    return self._understood(copies)
            time.sleep(0.001)
        return None

    def _understood(self, copies: Sequence[Words]) -> dict[Family, dict[tuple[str, ...], Numbers]]:
        totals: dict[Key, Numbers] = {}
        families: dict[Key, Family] = {}
        amounts: dict[str, int] = {}
        for words in copies:
            values = words.cast("B").cast("d")
            for key, first, amount in series(words):
                family = families.get(key) or self._family(key)
                if family is None or not amount:
                    continue
                numbers = values[first : first + amount].tolist()
                if words is copies[0]:
                    totals[key], families[key] = numbers, family
                    amounts[family.name] = amounts.get(family.name, 0) + 1
                elif key in totals:
                    _merge(family, totals[key], numbers, alive=True)
                elif _full(copies[0][0], TOTALS, amounts.get(family.name, 0), ALL_SERIES):  # it will never have a place there
                    rest = _rest(family)
                    families[rest] = family
                    _merge(family, totals.setdefault(rest, [0.0] * amount), numbers, alive=True)
        found: dict[Family, dict[tuple[str, ...], Numbers]] = {}
        for key, numbers in totals.items():
            family, labels = families[key], tuple(_decode(key)[1:])
            fits = len(labels) == len(family.labels) and len(numbers) == family.words
            if fits and (family.kind != "gauge" or numbers[1]):
                found.setdefault(family, {})[labels] = numbers
        return found

    def _family(self, key: Key) -> Family | None:
        if key.startswith(b"{"):
            family = _decode(key, type=Family)
            self._families[family.name] = family
            return family
        return self._families.get(key[2 : key.index(b'"', 2)].decode())


def _rest(family: Family) -> Key:
    return _key(family, [OTHER] * len(family.labels))


_COMBINE: dict[str, Callable[[Iterable[float]], float]] = {"sum": sum, "max": max, "min": min}


def _merge(family: Family, sums: Words | Numbers, numbers: Numbers, alive: bool) -> None:
    """Add the numbers of one process. A gauge of a process that is gone counts only where the latest one does."""
    if len(sums) != len(numbers):
        return  # it was declared anew, in another way
    if family.kind != "gauge":
        for i, number in enumerate(numbers):
            if number:
                sums[i] += number
        return
    value, at = numbers
    if family.combine == "latest":
        if at > sums[1]:
            sums[0], sums[1] = value, at
    elif at and alive:
        sums[0] = _COMBINE[family.combine]((sums[0], value)) if sums[1] else value
        sums[1] = max(sums[1], at)
