"""Shared memory between the supervisor, the housekeeper and the workers: one slot per worker process.

One anonymous mapping, made before the first fork. Every field is 8 bytes and has one writer, so nothing is ever torn, and what
a worker wrote before a SIGKILL is still there. The supervisor reads a dead worker's slot to know which job it was running.
Long, because the layout and all that reads and writes it have to agree.
"""

from __future__ import annotations

import mmap
import time
import uuid
from collections.abc import Iterator
from enum import IntEnum

from pgqueue.meter import Meter, Meters

HELD = 1024
"""How many claims one worker can hold at once."""
RESULT_BYTES = 248
"""Results up to this size are kept here until they are settled, so that the death of their worker does not lose them."""
_FIELDS = 16
_STATES = _FIELDS + HELD  # behind the claims: for each of them what has become of it, then its result
_RESULTS = _STATES + HELD
_WORDS = RESULT_BYTES // 8
_LIMITS = _RESULTS + HELD * _WORDS  # for each of the claims: when its time is over (nanoseconds; 0: never), and which step of it
_LIMITED = _LIMITS + HELD
_STRIDE = _LIMITED + HELD
_HEAD = 16  # before the first slot: what supervisor and housekeeper say of themselves

# The state of a held claim, in one word, so that it is never half written: waiting since (nanoseconds), running since, ended,
# or ended with a result that is kept here.
_RUNNING, _ENDED, _KEPT = 1 << 60, 1 << 61, 1 << 62


class Phase(IntEnum):
    """What a worker is doing. Written by the worker, except FREE and DEAD, which are the supervisor's."""

    FREE = 0
    BOOTING = 1
    IDLE = 2
    BUSY = 3
    DEAD = 4


class Order(IntEnum):
    """What the supervisor wants of a worker."""

    WORK = 0
    DRAIN = 1
    PAUSE = 2


# Field numbers within a slot, with who writes them.
_ID_HIGH, _ID_LOW, _PID, _ORDER = 0, 1, 2, 3  # supervisor
_PHASE, _INFLIGHT, _LAST, _DONE, _REGISTERED = 4, 6, 7, 8, 9  # worker
_REVOKED = 10  # housekeeper
_TICKS, _LEFT = 11, 13  # worker; two fields, and one

# Field numbers of the head. All the supervisor's but _OF_HOUSEKEEPER.
_OF_SUPERVISOR, _OF_HOUSEKEEPER, _STOPPING = 0, 2, 4  # the first two have two fields each


class Ticks:
    """The sign of life of one loop: when it last went round, and whether it waits for the database since then."""

    def __init__(self, cells: memoryview) -> None:
        self._cells = cells

    def tick(self, rest: float = 0.0) -> None:
        """The loop goes round, or will after so many seconds of rest: until then it does not stand still."""
        self._cells[1] = 0
        self._cells[0] = time.monotonic_ns() + int(rest * 1e9)

    def ask(self) -> None:
        """From now until the next tick the loop may wait for the database, and who knows how long that takes."""
        self._cells[1] = 1

    @property
    def asking(self) -> bool:
        """Does it wait for the database?"""
        return bool(self._cells[1])

    @property
    def age(self) -> float:
        """Seconds since the last tick. Infinite before the first."""
        at = self._cells[0]
        return max(0.0, (time.monotonic_ns() - at) / 1e9) if at else float("inf")


class Slot:
    """One worker's piece of the shared memory."""

    def __init__(self, cells: memoryview, index: int, meters: Meters) -> None:
        self._cells = cells
        self._meters = meters
        self._bytes = cells.cast("B")
        self.index = index
        self.ticks = Ticks(cells[_TICKS : _TICKS + 2])

    def assign(self, worker: str) -> None:
        """The supervisor gives the slot to a new incarnation: everything of the last one is gone."""
        for i in (*range(_RESULTS), *range(_LIMITS, _STRIDE)):
            self._cells[i] = 0
        high, low = divmod(uuid.UUID(worker).int, 1 << 64)
        self._cells[_ID_HIGH], self._cells[_ID_LOW] = high, low
        self._cells[_PHASE] = Phase.BOOTING

    def free(self) -> None:
        """The process is gone."""
        self._cells[_PHASE] = Phase.FREE
        self._cells[_ID_HIGH] = self._cells[_ID_LOW] = self._cells[_REGISTERED] = 0

    @property
    def worker(self) -> str | None:
        """The incarnation that has the slot."""
        value = self._cells[_ID_HIGH] << 64 | self._cells[_ID_LOW]
        return str(uuid.UUID(int=value)) if value else None

    def meter(self) -> Meter:
        """What its worker counts with."""
        return self._meters.meter(self.index)

    def _get_pid(self) -> int:
        return self._cells[_PID]

    def _set_pid(self, pid: int) -> None:
        self._cells[_PID] = pid

    pid = property(_get_pid, _set_pid)

    def _get_order(self) -> Order:
        return Order(self._cells[_ORDER])

    def _set_order(self, order: Order) -> None:
        self._cells[_ORDER] = order

    order = property(_get_order, _set_order)

    def _get_phase(self) -> Phase:
        return Phase(self._cells[_PHASE])

    def _set_phase(self, phase: Phase) -> None:
        self._cells[_PHASE] = phase

    phase = property(_get_phase, _set_phase)

    @property
    def registered(self) -> bool:
        """Has the worker a row in the database, which wants heartbeats?"""
        return bool(self._cells[_REGISTERED])

    def set_registered(self) -> None:
        self._cells[_REGISTERED] = 1

    @property
    def left(self) -> bool:
        """Has the worker ended in order, with nothing left?"""
        return bool(self._cells[_LEFT])

    def set_left(self) -> None:
        self._cells[_LEFT] = 1

    # -------------------------------------------------------------------------------- which claims it holds

    @property
    def inflight(self) -> int:
        """The token of the claim call that is on its way; 0: none."""
        return self._cells[_INFLIGHT]

    def announce(self, token: int) -> None:
        """Before a claim is sent: whatever carries this token is not lost, only on its way."""
        self._cells[_INFLIGHT] = token

    def revoke(self, token: int) -> bool:
        """The housekeeper takes back what a claim brought, because the worker does not get to read the answer. False: it did.

        Mark first, then look; the worker looks for the mark after it has said that nothing is on its way any more."""
        self._cells[_REVOKED] = token
        return bool(self._cells[_INFLIGHT] == token)

    def is_revoked(self, token: int) -> bool:
        """Must what this claim brought not begin?"""
        return token != 0 and bool(self._cells[_REVOKED] == token)

    def hold(self, place: int, digest: int) -> None:
        """A claimed job arrived, and waits."""
        self._cells[_STATES + place] = time.monotonic_ns()
        self._cells[_FIELDS + place] = digest

    def forget(self, place: int) -> None:
        """It is settled."""
        self._cells[_FIELDS + place] = 0

    def held(self) -> set[int]:
        """Digests of all claims that the worker knows of."""
        return set(self._cells[_FIELDS:_STATES].tolist())

    def waiting(self, seconds: float) -> set[int]:
        """Digests of those that have not begun so long after they came."""
        before = time.monotonic_ns() - int(seconds * 1e9)
        digests, states = self._cells[_FIELDS:_STATES].tolist(), self._cells[_STATES:_RESULTS].tolist()
        return {digest for digest, state in zip(digests, states, strict=True) if digest and state < before}

    def keep(self, place: int, result: bytes, seen: int) -> None:
        """A held job has succeeded: whoever finds this worker dead can settle it. Large results are not kept."""
        if len(result) <= RESULT_BYTES:
            at = 8 * (_RESULTS + place * _WORDS)
            self._bytes[at : at + len(result)] = result
            self._cells[_STATES + place] = _KEPT | seen << 16 | len(result)  # last, and in one store: never half there

    def kept(self) -> dict[int, tuple[str, int]]:
        """Of jobs that are not settled: their digest, their result, and the last checkpoint that their run saw."""
        found = {}
        digests, states = self._cells[_FIELDS:_STATES].tolist(), self._cells[_STATES:_RESULTS].tolist()
        for place, (digest, state) in enumerate(zip(digests, states, strict=True) if any(digests) else ()):
            if digest and state & _KEPT:
                at = 8 * (_RESULTS + place * _WORDS)
                result = bytes(self._bytes[at : at + (state & 0xFFFF)])
                if self._cells[_STATES + place] == state and self._cells[_FIELDS + place] == digest:  # still the same job's
                    found[digest] = (result.decode(), (state & ~_KEPT) >> 16)
        return found

    # ----------------------------------------------------------------------------------- what it runs now

    def begin(self, place: int) -> float:
        """A job's code is about to run: if the process dies now, this job is charged. For how many seconds it has waited.

        Mark first, then look: whoever takes away what has waited too long looks for the mark, and allows for more time."""
        arrived, now = self._cells[_STATES + place], time.monotonic_ns()
        self._cells[_STATES + place] = _RUNNING | now
        self._cells[_LAST] = 0
        return (time.monotonic_ns() - arrived) / 1e9

    def put_back(self, place: int) -> None:
        """It does not begin after all."""
        self._cells[_STATES + place] = _ENDED

    def end(self, place: int) -> None:
        """The job's code has returned. It can be charged until the next begins: a death may still be its doing, and once it is
        settled there is nothing left to charge."""
        self._cells[_LAST] = self._cells[_FIELDS + place]
        if not self._cells[_STATES + place] & _KEPT:
            self._cells[_STATES + place] = _ENDED
        self._cells[_DONE] += 1

    def limit(self, place: int, seq: int, at: float | None) -> None:
        """This job may run until then (by the monotonic clock), because of the time limit of that step. None: for ever."""
        self._cells[_LIMITED + place] = seq
        self._cells[_LIMITS + place] = int(at * 1e9) if at is not None else 0

    def overdue(self) -> tuple[int, int] | None:
        """A job whose time is over: its digest, and the step."""
        now = time.monotonic_ns()
        for place, at in enumerate(self._cells[_LIMITS:_LIMITED].tolist()):
            if at and at < now and self._cells[_FIELDS + place]:
                return self._cells[_FIELDS + place], self._cells[_LIMITED + place]
        return None

    @property
    def started(self) -> list[int]:
        """Digests of the jobs whose code runs now, and of the last one that has ended."""
        running = [
            self._cells[_FIELDS + place]
            for place in range(HELD)
            if self._cells[_STATES + place] & (_RUNNING | _ENDED | _KEPT) == _RUNNING and self._cells[_FIELDS + place]
        ]
        last = self._cells[_LAST]
        return [*running, last] if last and last not in running else running

    @property
    def done(self) -> int:
        """Jobs run by this incarnation."""
        return self._cells[_DONE]


class Slots:
    """The whole mapping. Made by the supervisor before it forks; children inherit it."""

    def __init__(self, count: int) -> None:
        self._map = mmap.mmap(-1, (_HEAD + count * _STRIDE) * 8)
        cells = memoryview(self._map).cast("Q")
        self.meters = Meters(count + 1)
        self._slots = [Slot(cells[_HEAD + i * _STRIDE : _HEAD + (i + 1) * _STRIDE], i, self.meters) for i in range(count)]
        self._head = cells[:_HEAD]
        self.supervisor = Ticks(self._head[_OF_SUPERVISOR : _OF_SUPERVISOR + 2])
        self.housekeeper = Ticks(self._head[_OF_HOUSEKEEPER : _OF_HOUSEKEEPER + 2])

    def __getitem__(self, index: int) -> Slot:
        return self._slots[index]

    def __iter__(self) -> Iterator[Slot]:
        return iter(self._slots)

    def __len__(self) -> int:
        return len(self._slots)

    def meter(self) -> Meter:
        """What the housekeeper counts with."""
        return self.meters.meter(len(self._slots))

    def fold(self, slot: Slot | None = None) -> None:
        """The worker of this slot is dead (None: the housekeeper): what it has counted is kept."""
        self.meters.fold(len(self._slots) if slot is None else slot.index)

    @property
    def stopping(self) -> bool:
        """Does this host take no more jobs, because it drains?"""
        return bool(self._head[_STOPPING])

    def set_stopping(self) -> None:
        self._head[_STOPPING] = 1

    def used(self) -> list[Slot]:
        """Slots that have a worker."""
        return [slot for slot in self._slots if slot.phase not in (Phase.FREE, Phase.DEAD) and slot.worker is not None]

    def workers(self) -> list[str]:
        """All that their supervisor knows of, also those that have died and are not dealt with yet."""
        return [slot.worker for slot in self._slots if slot.phase != Phase.FREE and slot.worker is not None]

    def of(self, worker: str) -> Slot | None:
        """The slot of this incarnation, dead or alive."""
        return next((slot for slot in self._slots if slot.worker == worker), None)
