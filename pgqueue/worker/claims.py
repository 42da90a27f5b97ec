"""The thread of a worker that claims and settles, while others run the jobs.

    a runner      job = inbox.take() -> run it -> done(settlement)
    this thread   settle what is done + claim what comes next, in one round trip

So a result never waits behind another job's code, and the next jobs are there when the last ones end.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import psycopg

from pgqueue import database, protocol
from pgqueue.descriptors import readable
from pgqueue.errors import DatabaseUnreachable
from pgqueue.failpoints import failpoint
from pgqueue.ids import digest, new_token
from pgqueue.meter import Meter
from pgqueue.metrics import DB_ERRORS
from pgqueue.model import ClaimedJob, Settlement
from pgqueue.runtime.wire import Wire
from pgqueue.slots import HELD, Order, Phase, Slot
from pgqueue.worker.counting import count_claim, count_run
from pgqueue.worker.hints import ScanHints
from pgqueue.worker.inbox import HOSTAGE_AFTER, Half, Inbox
from pgqueue.worker.pace import MOST
from pgqueue.worker.refused import answer, granted, settle_singly
from pgqueue.worker.turns import Turns

log = logging.getLogger(__name__)

FLUSH_AFTER = 0.010  # seconds a result may wait for others
BUSY_PAUSE = 0.05  # seconds before a settlement is sent again that a session of its job still holds
LONGEST_SLEEP = 5.0  # seconds; whoever sleeps longer would look hung
SAFETY_POLL = 10.0  # seconds between polls of an idle worker: the housekeeper polls for all of them, this is the second net


class Claims(threading.Thread):
    """Claims jobs for one worker and settles them."""

    def __init__(
        self,
        dsn: str,
        worker: str,
        queues: Mapping[str, frozenset[bool]],  # with the colours of the functions that use them
        turns: Turns,
        names: Sequence[str],
        slot: Slot,
        inbox: Inbox,
        wake: tuple[int, int],
        meter: Meter | None = None,
        most_jobs: int = 0,
    ):
        super().__init__(name="pgqueue-claims", daemon=True)
        self._dsn = dsn
        self._worker = worker
        self._queues = queues
        self._turns = turns
        self._names = list(names)
        self._slot = slot
        self._inbox = inbox
        self._wake_read, self._wake_write = wake
        self._meter = meter or Meter()
        self._most_jobs = most_jobs  # to run before we leave; 0: no end
        self._finished: deque[Settlement] = deque()
        self._unsettled: list[Settlement] = []  # sent, and not acknowledged
        self._free = list(range(HELD))
        self._finished_since = 0.0  # when this thread first saw something finished that it has not sent
        self._called = False  # by the housekeeper
        self._rounds = 0
        self._hints = ScanHints(list(queues))
        self._when_done: Callable[[], None] = lambda: None

    def on_end(self, call: Callable[[], None]) -> None:
        """What to call when the worker is to stop and has nothing left."""
        self._when_done = call

    # ---------------------------------------------------------------------------------- those who run the jobs

    def done(self, half: Half, job: ClaimedJob, settlement: Settlement | None, seconds: float) -> None:
        """The job was run; None: there is nothing (left) to settle."""
        if settlement is not None and settlement.how == "succeeded" and settlement.result is not None:
            self._slot.keep(job.place, settlement.result.encode(), settlement.seen)
        job.took = seconds
        self._finished.append(settlement or Settlement(job, "nothing"))
        self._inbox.ended(half, job, seconds)
        if len(self._finished) == 1 or not half.waiting:
            self.poke()

    def poke(self) -> None:
        """Make this thread look around. (Whoever writes a dot, the housekeeper, says that there may be jobs.)"""
        try:
            os.write(self._wake_write, b"d")
        except BlockingIOError:
            pass  # it has not read the last ones yet

    # ------------------------------------------------------------------------------------------ this thread

    def run(self) -> None:
        """Until the worker is told to stop and has nothing left."""
        try:
            self._keep_serving()
            self._when_done()
        except BaseException:  # a bug of ours: without this thread the worker would stand still for ever
            log.exception("internal error")
            os._exit(70)

    def _keep_serving(self) -> None:
        tries = 0
        while True:
            self._slot.ticks.ask()
            try:
                with database.connect(self._dsn, f"pgqueue:{self._worker}:claims") as conn:
                    tries = 0
                    self._wire = Wire(conn)
                    self._serve(conn)
                    return
            except (psycopg.Error, DatabaseUnreachable) as error:
                # What was sent is in doubt: settlements are sent again (that is safe), a lost claim is given back by the
                # housekeeper, because we announce it no longer.
                log.warning("claims: %s", database.brief(error))
                self._meter.add(DB_ERRORS, ("claims",))
                self._slot.announce(0)
                self._hints.reset()
                if self._slot.order == Order.DRAIN and self._all_done():
                    return  # what the lost reply has brought is given back when we are gone
                tries += 1
                time.sleep(database.backoff(tries))

    def _serve(self, conn: psycopg.Connection[Any]) -> None:
        retry_at = 0.0  # when to send busy settlements again
        poll_at = 0.0  # when to look for jobs, though nobody says that there are any
        while True:
            self._slot.ticks.tick()
            draining = self._slot.order == Order.DRAIN or self._worn_out
            for job in self._inbox.take_late(everything=draining):  # nobody is charged, no attempt is used
                self._finished.append(Settlement(job, "release"))
            batch = self._take_finished(retry_at)
            want, queues = self._want() if self._slot.order == Order.WORK else (0, [])
            if not batch and self._idle and not self._called and time.monotonic() < poll_at:
                want = 0
            if batch or want:
                self._called = False
                found = self._exchange(conn, batch, want, queues)
                retry_at = time.monotonic() + BUSY_PAUSE if self._unsettled else 0.0
                if want and not found:
                    rest = SAFETY_POLL * random.uniform(0.8, 1.2)  # noqa: S311 -- spreading load
                    once_more = not self._idle and self._at_once(queues) > 0  # it is going idle
                    poll_at = 0.0 if once_more else time.monotonic() + rest
                    self._slot.phase = Phase.IDLE  # from now on somebody wakes us
                continue
            if draining and self._all_done():
                return
            if self._slot.order == Order.PAUSE and self._all_done():
                self._slot.phase = Phase.IDLE
            self._wait(self._patience(retry_at, poll_at))

    @property
    def _idle(self) -> bool:
        """Is there room, and nothing to claim?"""
        return bool(self._slot.phase == Phase.IDLE)

    def _all_done(self) -> bool:
        """Is nothing left in this worker? The order of the looks is the opposite of a job's way through it."""
        return not self._inbox.waiting and not self._inbox.running and not self._finished and not self._unsettled

    def _want(self) -> tuple[int, list[str]]:
        """How many jobs to claim now, and from which queues, in which order. Only what can start soon: a job behind a long one
        is a hostage."""
        rooms = {queue: self._inbox.room(colours) for queue, colours in self._queues.items()}
        queues = self._turns.next([queue for queue, room in rooms.items() if room])
        most = min(len(self._free), MOST)
        if self._most_jobs:
            held = HELD - len(self._free)
            most = min(most, max(0, self._most_jobs - self._slot.done - held))
        return min([most, *(rooms[queue] for queue in queues)]) if queues else 0, queues

    @property
    def _worn_out(self) -> bool:
        """Has this worker run as many jobs as it should?"""
        return self._most_jobs > 0 and self._slot.done >= self._most_jobs

    def _take_finished(self, retry_at: float) -> list[Settlement]:
        """What to settle now: all that is done, unless more will follow within the flush time."""
        more_to_come = self._inbox.waiting or self._inbox.running
        if self._finished and more_to_come and len(self._finished) < MOST and self._flush_at() > time.monotonic():
            return []
        batch, self._unsettled = (self._unsettled, []) if time.monotonic() >= retry_at else ([], self._unsettled)
        while self._finished:
            settlement = self._finished.popleft()
            if settlement.how == "nothing":
                count_run(self._meter, settlement, None)
                self._forget(settlement.job)
            else:
                batch.append(settlement)
        self._finished_since = 0.0
        return batch

    def _flush_at(self) -> float:
        if self._finished_since == 0.0:
            self._finished_since = time.monotonic()
        return self._finished_since + FLUSH_AFTER

    def _patience(self, retry_at: float, poll_at: float) -> float | None:
        """How long to sleep when nothing can be done now."""
        moments = []
        if self._finished:
            moments.append(self._flush_at())
        if self._unsettled:
            moments.append(retry_at)
        if self._idle and self._slot.order == Order.WORK:
            moments.append(poll_at)
        if self._inbox.alone_until > time.monotonic():
            moments.append(self._inbox.alone_until)
        if self._inbox.waiting:
            moments.append(time.monotonic() + HOSTAGE_AFTER / 2)
        return max(0.0, min(moments) - time.monotonic()) if moments else None

    def _wait(self, seconds: float | None) -> None:
        seconds = LONGEST_SLEEP if seconds is None else min(seconds, LONGEST_SLEEP)
        self._slot.ticks.tick(seconds)
        if readable([self._wake_read], seconds):
            self._called = b"." in os.read(self._wake_read, 4096)

    def _exchange(self, conn: psycopg.Connection[Any], batch: list[Settlement], want: int, queues: list[str]) -> int:
        """Settle and claim in one round trip: two transactions, so a Sync in between. Without it they would be one, and the
        claim's asynchronous commit would cover the settlements. Returns how many jobs came."""
        waiting = self._unsettled  # busy ones whose time has not come
        self._unsettled = batch + waiting  # in doubt until acknowledged
        began = time.monotonic()
        settling: list[protocol.Call[Any]] = []
        if batch:
            failpoint("settle.before")
            settling = [protocol.settle(batch)]
        claiming: list[protocol.Call[Any]] = []
        token = 0
        if want:
            token = new_token()
            self._rounds += 1
            self._slot.announce(token)
            failpoint("claim.before")
            claiming = [protocol.newest_position(queues), self._claim(token, want, queues)]
        answers = self._send(conn, settling, claiming)
        if batch:
            settled = answers.pop(0)
            if isinstance(settled, psycopg.Error):
                settled = settle_singly(batch, lambda call: self._send(conn, [call])[0])
            failpoint("settle.committed")
            self._unsettled = waiting + self._acknowledge(batch, settled)
        if not want:
            return 0
        failpoint("claim.committed")
        newest, found = map(granted, answers)
        count_claim(self._meter, len(found))
        self._hints.learn(queues, found, newest, want, time.monotonic() - began)
        self._turns.learn(queues, [job.queue for job, _ in found], want)
        self._receive([job for job, _ in found], token)
        return len(found)

    def _send(self, conn: psycopg.Connection[Any], *groups: Sequence[protocol.Call[Any]]) -> list[Any]:
        """Each group is a transaction. All are one message: in the middle of one, a job that keeps the interpreter from us would
        leave a transaction open."""
        groups = tuple(group for group in groups if group)
        self._slot.ticks.ask()
        with conn.lock:
            self._wire.send(*groups)
            results = conn.wait(self._wire.answers())
        self._slot.ticks.tick()
        calls = [call for group in groups for call in group]
        return [answer(conn, call, result) for call, result in zip(calls, results, strict=True)]

    def _claim(self, token: int, want: int, queues: list[str]) -> protocol.Call[list[tuple[ClaimedJob, int]]]:
        """The next claim. Every 16th reads the lanes backwards, so that no priority starves."""
        backwards = self._rounds // len(queues) % 16 == 15
        hints = self._hints.next(queues)
        return protocol.claim(self._worker, token, queues, self._names, want, hints, backwards, self._at_once(queues))

    def _at_once(self, queues: Sequence[str]) -> int:
        """How many jobs could begin at this moment, of that one of these queues for which there is most room."""
        return max(0, *(self._inbox.free(self._queues[queue]) for queue in queues))

    def _receive(self, jobs: Sequence[ClaimedJob], token: int) -> None:
        for job in jobs:
            job.place = self._free.pop()
            self._slot.hold(job.place, digest(job.id, job.token))
        self._slot.announce(0)
        if self._slot.is_revoked(token):
            self._finished.extend(Settlement(job, "release") for job in jobs)
        elif jobs:
            self._slot.phase = Phase.BUSY
            self._inbox.put(jobs)

    def _acknowledge(self, batch: Sequence[Settlement], answers: dict[str, str]) -> list[Settlement]:
        """Forget what is settled or lost. Returns what is busy, and to be sent again."""
        for settlement in batch:
            answer = answers.get(settlement.job.id)
            if answer == "lost":
                log.warning("job %s: the claim is lost, its result is discarded", settlement.job.id)
            if answer != "busy":
                count_run(self._meter, settlement, answer)
                self._forget(settlement.job)
        return [s for s in batch if answers.get(s.job.id) == "busy"]

    def _forget(self, job: ClaimedJob) -> None:
        self._slot.forget(job.place)
        self._free.append(job.place)
