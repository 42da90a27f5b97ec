"""The parts of a worker: pace, scan hints, and the two threads that share its jobs."""

from __future__ import annotations

import os
from collections import deque
from typing import Any

import pytest

from pgqueue.model import ClaimedJob, Settlement
from pgqueue.slots import HELD, Order, Phase, Slots
from pgqueue.worker import hints as hints_module
from pgqueue.worker.claims import Claims
from pgqueue.worker.hints import ScanHints
from pgqueue.worker.pace import MOST, Pace


def job(number: int = 0, queue: str = "default", lane: int = 11) -> ClaimedJob:
    return ClaimedJob(f"01920000-0000-7000-8000-{number:012d}", 1, "n", "{}", queue, lane, None)


@pytest.fixture
def claims() -> Claims:
    slots = Slots(1)
    slots[0].assign("01920000-0000-7000-8000-000000000000")
    read, write = os.pipe()
    os.set_blocking(write, False)
    return Claims("", "w", ["default"], [], slots[0], (read, write))


def test_a_job_is_always_visible_somewhere(claims: Claims) -> None:
    """A draining worker leaves when nothing is left. A job that the main thread has just popped must count."""
    seen: list[bool] = []

    class Spying(deque[ClaimedJob]):
        def popleft(self) -> ClaimedJob:
            popped = super().popleft()
            seen.append(claims._all_done())  # the other thread looks at the worst moment
            return popped

    claims._inbox = Spying([job()])
    taken = claims.next_job()
    seen.append(claims._all_done())
    assert taken is not None
    claims.done(taken, Settlement(taken, "succeeded", "null"), 0.001)
    seen.append(claims._all_done())
    assert seen == [False, False, False]


def test_unstarted_jobs_are_given_back_and_the_started_one_is_not(claims: Claims) -> None:
    claims._inbox.extend(job(n) for n in range(3))
    started = claims.next_job()
    assert started is not None
    claims._release_unstarted()
    assert [s.how for s in claims._finished] == ["release", "release"]
    assert started.id not in {s.job.id for s in claims._finished}
    assert claims._want() == 0, "behind a job nothing is claimed until we know how long jobs take"


def test_pace_grows_slowly_and_falls_fast() -> None:
    pace = Pace()
    assert pace.amount() == 1
    for _ in range(200):
        pace.ran(0.00001)
    amounts = [pace.amount() for _ in range(8)]
    assert amounts[0] <= 4
    assert amounts[-1] == MOST
    pace.ran(2.0)
    pace.ran(2.0)
    assert pace.amount() == 1


def test_hints_trail_and_sweeps_ignore_them(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(hints_module.time, "monotonic", lambda: now[0])
    hints = ScanHints(["a", "b"])
    assert hints.next() == [0] * 40, "as long as a scan from the start is cheap, there are no hints"
    hints._duration = {True: 0.001, False: 0.010}
    hints.learn([(job(1, "b", 11), 50), (job(2, "b", 11), 40)], newest=60, asked=2, took=0.01)
    hints._duration = {True: 0.001, False: 0.010}
    assert hints.next() == [0] * 40, "younger than 250 ms: what is older may still be uncommitted"
    now[0] += 0.3
    trailing = hints.next()
    assert trailing[20 + 11] == 40
    assert sum(trailing) == 40, "lanes that were not looked through keep their place"
    hints.learn([(job(3, "a", 3), 70)], newest=90, asked=5, took=0.001)
    hints._duration = {True: 0.001, False: 0.010}
    now[0] += 0.3
    everywhere = hints.next()
    assert everywhere[3] == 70
    assert everywhere[4] == 90, "an empty lane starts at the newest position that was given out before"
    now[0] += 1.0
    assert hints.next() == [0] * 40, "once a second from the start: late commits"
    assert hints.next() != [0] * 40
    hints.reset()
    assert hints.next() == [0] * 40


def test_slots_are_shared_with_children_and_survive_them() -> None:
    slots = Slots(2)
    slots[1].assign("01920000-0000-7000-8000-0000000000aa")
    pid = os.fork()
    if pid == 0:
        slots[1].phase = Phase.BUSY
        slots[1].hold(HELD - 1, 77)
        slots[1].begin(77)
        slots[1].announce(5)
        os.kill(os.getpid(), 9)
    os.waitpid(pid, 0)
    slot: Any = slots[1]
    assert (slot.worker, slot.phase, slot.started, slot.inflight) == ("01920000-0000-7000-8000-0000000000aa", Phase.BUSY, 77, 5)
    assert 77 in slot.held()
    assert slot.order == Order.WORK
    assert [s.index for s in slots.used()] == [1]
    slot.free()
    assert slots.used() == []
