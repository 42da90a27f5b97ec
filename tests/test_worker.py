"""The parts of a worker: pace, scan hints, and the two threads that share its jobs."""

from __future__ import annotations

import os
from collections import deque
from typing import Any

import pytest

from pgqueue.ids import digest
from pgqueue.model import ClaimedJob, Settlement
from pgqueue.slots import HELD, Order, Phase, Slots
from pgqueue.worker import hints as hints_module
from pgqueue.worker import inbox as inbox_module
from pgqueue.worker.claims import Claims
from pgqueue.worker.hints import ScanHints
from pgqueue.worker.inbox import Half, Inbox
from pgqueue.worker.pace import MOST, Pace
from pgqueue.worker.turns import Turns

QUEUES = ["a", "b"]


def job(number: int = 0, queue: str = "default", lane: int = 11) -> ClaimedJob:
    return ClaimedJob(f"01920000-0000-7000-8000-{number:012d}", 1, "n", "{}", queue, lane, None)


class Worker:
    """The parts of a worker, put together without processes and database."""

    def __init__(self, threads: int = 1, concurrency: int = 0) -> None:
        slots = Slots(1)
        self.slot = slots[0]
        self.slot.assign("01920000-0000-7000-8000-000000000000")
        read, write = os.pipe()
        os.set_blocking(write, False)
        self.half = Half(threads, lambda _: None)
        self.loop = Half(concurrency, lambda _: None)
        halves = {False: self.half, True: self.loop} if concurrency else {False: self.half}
        self.inbox = Inbox(self.slot, halves, lambda name: name == "async")
        queues = {"default": frozenset(halves)}
        self.claims = Claims("", "w", queues, Turns([dict.fromkeys(queues, 1)]), [], self.slot, self.inbox, (read, write))

    def receive(self, *jobs: ClaimedJob) -> None:
        self.claims._receive(jobs, 0)

    def take(self) -> ClaimedJob | None:
        return self.inbox.take(self.half)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The monotonic clock of the inbox and of shared memory, to be moved by hand."""
    now = [1000.0]
    monkeypatch.setattr(inbox_module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(inbox_module.time, "monotonic_ns", lambda: int(now[0] * 1e9))
    return now


def test_a_job_is_always_visible_somewhere() -> None:
    """A draining worker leaves when nothing is left. A job that has just been taken must count."""
    worker = Worker()
    seen: list[bool] = []

    class Spying(deque[tuple[ClaimedJob, float]]):
        def popleft(self) -> tuple[ClaimedJob, float]:
            seen.append(worker.claims._all_done())
            return super().popleft()

    worker.half.waiting = Spying()
    worker.receive(job())
    taken = worker.take()
    seen.append(worker.claims._all_done())
    assert taken is not None
    worker.claims.done(worker.half, taken, Settlement(taken, "succeeded", "null"), 0.001)
    seen.append(worker.claims._all_done())
    assert seen == [False, False, False]


def test_what_waits_too_long_is_given_back_and_what_has_begun_is_not(clock: list[float]) -> None:
    worker = Worker()
    worker.receive(*(job(n) for n in range(3)))
    started = worker.take()
    assert started is not None
    assert worker.take() is None, "one thread, one job"
    assert worker.inbox.take_late() == []
    clock[0] += 0.6
    assert [late.id for late in worker.inbox.take_late()] == [job(1).id, job(2).id]
    assert worker.claims._want() == (0, []), "behind a job nothing is claimed until we know how long jobs take"


def test_what_the_housekeeper_may_have_taken_away_never_begins(clock: list[float]) -> None:
    """It looks for what has not begun after 0.75 s. A worker that was stopped, or had no turn, is not to begin that."""
    worker = Worker()
    worker.receive(job(1))
    clock[0] += 0.6
    assert worker.take() is None
    assert worker.slot.started == []
    assert [late.id for late in worker.inbox.take_late()] == [job(1).id]


def test_the_housekeeper_sees_what_waits_too_long(clock: list[float]) -> None:
    worker = Worker()
    worker.receive(job(1), job(2))
    assert worker.take() is not None
    assert worker.slot.waiting(0.75) == set()
    clock[0] += 0.8
    assert worker.slot.waiting(0.75) == {digest(job(2).id, 1)}


def test_a_suspect_begins_alone(clock: list[float]) -> None:
    """Its last worker died with several jobs in it. If it dies again, its neighbours are not to be blamed."""
    worker = Worker(threads=4)
    suspect = job(2)
    suspect.suspect = True
    worker.receive(job(1), suspect, job(3))
    first = worker.take()
    assert first is not None
    assert worker.take() is None, "the suspect waits for the others to end"
    worker.claims.done(worker.half, first, None, 0.001)
    assert worker.take() is suspect
    assert worker.take() is None, "and for a moment nothing begins beside it"
    assert worker.inbox.room([False]) == 0
    clock[0] += 0.45
    assert worker.take() is None
    worker.receive(job(4))
    clock[0] += 1.6
    worker.inbox.take_late()
    worker.receive(job(3))
    after = worker.take()
    assert after is not None
    assert after.id == job(3).id


def test_a_suspect_does_not_wait_for_ever(clock: list[float]) -> None:
    worker = Worker(threads=4)
    suspect = job(2)
    suspect.suspect = True
    worker.receive(job(1), suspect)
    assert worker.take() is not None
    clock[0] += 0.35
    assert worker.take() is suspect


def test_threads_and_the_loop_take_their_own_jobs() -> None:
    worker = Worker(threads=2, concurrency=10)
    asynchronous = job(2)
    asynchronous.name = "async"
    worker.receive(job(1), asynchronous)
    taken = worker.inbox.take(worker.loop)
    assert taken is asynchronous
    assert worker.inbox.take(worker.loop) is None
    assert worker.take() is not None


def test_pace_grows_slowly_and_falls_fast() -> None:
    pace = Pace(1)
    assert pace.ahead() == 0
    for _ in range(200):
        pace.ran(0.00001)
    amounts = [pace.ahead() for _ in range(8)]
    assert amounts[0] <= 4
    assert amounts[-1] == MOST
    pace.ran(2.0)
    pace.ran(2.0)
    assert pace.ahead() == 0


def test_hints_trail_and_sweeps_ignore_them(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(hints_module.time, "monotonic", lambda: now[0])
    hints = ScanHints(QUEUES)
    assert hints.next(QUEUES) == [0] * 40, "as long as a scan from the start is cheap, there are no hints"
    hints._duration = {True: 0.001, False: 0.010}
    hints.learn(QUEUES, [(job(1, "b", 11), 50), (job(2, "b", 11), 40)], newest=60, asked=2, took=0.01)
    hints._duration = {True: 0.001, False: 0.010}
    assert hints.next(QUEUES) == [0] * 40, "younger than 250 ms: what is older may still be uncommitted"
    now[0] += 0.3
    trailing = hints.next(QUEUES)
    assert trailing[20 + 11] == 40
    assert sum(trailing) == 40, "lanes that were not looked through keep their place"
    hints.learn(QUEUES, [(job(3, "a", 3), 70)], newest=90, asked=5, took=0.001)
    hints._duration = {True: 0.001, False: 0.010}
    now[0] += 0.3
    everywhere = hints.next(QUEUES)
    assert everywhere[3] == 70
    assert everywhere[4] == 90, "an empty lane starts at the newest position that was given out before"
    hints.learn(QUEUES, [], newest=0, asked=5, took=0.001)
    now[0] += 0.3
    assert hints.next(QUEUES) == everywhere, "of a queue that is paused nobody knows what is ready"
    now[0] += 1.0
    assert hints.next(QUEUES) == [0] * 40, "once a second from the start: late commits"
    assert hints.next(QUEUES) != [0] * 40
    hints.reset()
    assert hints.next(QUEUES) == [0] * 40


def test_slots_are_shared_with_children_and_survive_them() -> None:
    slots = Slots(2)
    slots[1].assign("01920000-0000-7000-8000-0000000000aa")
    pid = os.fork()
    if pid == 0:
        slots[1].phase = Phase.BUSY
        slots[1].hold(HELD - 1, 77)
        slots[1].begin(HELD - 1)
        slots[1].announce(5)
        os.kill(os.getpid(), 9)
    os.waitpid(pid, 0)
    slot: Any = slots[1]
    assert (slot.worker, slot.phase, slot.started, slot.inflight) == ("01920000-0000-7000-8000-0000000000aa", Phase.BUSY, [77], 5)
    assert 77 in slot.held()
    assert slot.order == Order.WORK
    assert [s.index for s in slots.used()] == [1]
    slot.free()
    assert slots.used() == []


def test_ticks_tell_how_old_they_are_and_whether_the_database_is_asked() -> None:
    slots = Slots(1)
    assert slots.supervisor.age == float("inf")
    slots.supervisor.tick(rest=60)
    assert slots.supervisor.age == 0.0
    pid = os.fork()
    if pid == 0:
        slots.supervisor.tick()
        slots[0].ticks.tick()
        slots.housekeeper.ask()
        os._exit(0)
    os.waitpid(pid, 0)
    assert 0 <= slots.supervisor.age < 60
    assert 0 <= slots[0].ticks.age < 60
    assert (slots.supervisor.asking, slots.housekeeper.asking, slots.housekeeper.age) == (False, True, float("inf"))
    slots[0].assign("01920000-0000-7000-8000-0000000000aa")
    assert slots[0].ticks.age == float("inf"), "another incarnation"


def test_a_promised_job_counts_and_may_come_too_late(clock: list[float]) -> None:
    worker = Worker()
    worker.receive(job(1), job(2), job(3))
    running = worker.take()
    assert running is not None
    promised = worker.inbox.promise(worker.half, lambda _: True)
    assert promised is not None
    assert worker.slot.waiting(-1) == {digest(job(2).id, 1), digest(job(3).id, 1)}, "it has not begun"
    worker.inbox.take_late(everything=True)
    worker.claims.done(worker.half, running, None, 0.001)
    worker.claims._take_finished(0.0)
    assert not worker.claims._all_done(), "a draining worker runs it"
    clock[0] += 0.6
    assert not worker.inbox.take_promised(worker.half, promised)
    assert [late.id for late in worker.inbox.take_late()] == [job(2).id]
    worker.claims._take_finished(0.0)
    assert worker.claims._all_done()


def test_only_what_fits_is_promised() -> None:
    worker = Worker()
    suspect = job(1)
    suspect.suspect = True
    worker.receive(suspect)
    assert worker.inbox.promise(worker.half, lambda _: True) is None, "a suspect begins alone"
    assert worker.inbox.promise(worker.half, lambda _: False) is None
