"""The thread of a worker that claims and settles, while the main thread runs the jobs.

    main thread   next_job() -> run it -> done(settlement)
    this thread   settle what is done + claim what comes next, in one round trip

So a result never waits behind another job's code, and the next jobs are there when the last ones end. The two share two deques;
whoever pops a job from ``inbox`` owns it: the main thread from the left to run it, this thread from the right to give it back.
"""

from __future__ import annotations

import logging
import os
import random
import select
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import psycopg

from pgqueue import database, protocol
from pgqueue.errors import DatabaseUnreachable
from pgqueue.failpoints import failpoint
from pgqueue.ids import digest, new_token
from pgqueue.model import LANES, ClaimedJob, Settlement
from pgqueue.slots import HELD, Order, Phase, Slot
from pgqueue.worker.hints import ScanHints
from pgqueue.worker.pace import MOST, Pace

log = logging.getLogger(__name__)

FLUSH_AFTER = 0.010  # seconds a result may wait for others
HOSTAGE_AFTER = 0.5  # seconds of one job after which the jobs behind it are given back
BUSY_PAUSE = 0.05  # seconds before a settlement is sent again that a session of its job still holds
SAFETY_POLL = 5.0  # seconds between polls of an idle worker: the housekeeper polls for all of them, this is the second net


class Claims(threading.Thread):
    """Claims jobs for one worker and settles them."""

    def __init__(self, dsn: str, worker: str, queues: Sequence[str], names: Sequence[str], slot: Slot, wake: tuple[int, int]):
        super().__init__(name="pgqueue-claims", daemon=True)
        self._dsn = dsn
        self._worker = worker
        self._queues = list(queues)
        self._names = list(names)
        self._slot = slot
        self._wake_read, self._wake_write = wake
        self._inbox: deque[ClaimedJob] = deque()
        self._finished: deque[Settlement] = deque()
        self._unsettled: list[Settlement] = []  # sent, and not acknowledged
        self._free = list(range(HELD))
        self._arrived = threading.Event()
        self._active = False  # the main thread has a job, or is about to take one
        self._finished_since = 0.0  # when this thread first saw something finished that it has not sent
        self._stopped = False
        self._rounds = 0
        self._hints = ScanHints(queues)
        self._pace = Pace()

    # -------------------------------------------------------------------------------------- the main thread

    def next_job(self) -> ClaimedJob | None:
        """The next job to run; None when the worker is to stop."""
        while True:
            try:
                self._active = True  # before the pop: see _all_done
                return self._inbox.popleft()
            except IndexError:
                self._active = False
                if self._stopped:
                    return None
            self._arrived.clear()
            if not self._inbox and not self._stopped:
                self._arrived.wait()

    def done(self, job: ClaimedJob, settlement: Settlement | None, seconds: float) -> None:
        """The job was run; None: there is nothing (left) to settle."""
        self._pace.ran(seconds)
        if settlement is not None and settlement.how == "succeeded" and settlement.result is not None:
            self._slot.keep(job.place, settlement.result.encode(), settlement.seen)
        self._finished.append(settlement or Settlement(job, "nothing"))
        self._active = False
        if len(self._finished) == 1 or not self._inbox:
            self.poke()

    def poke(self) -> None:
        """Make this thread look around."""
        try:
            os.write(self._wake_write, b".")
        except BlockingIOError:
            pass  # it has not read the last ones yet

    # ------------------------------------------------------------------------------------------ this thread

    def run(self) -> None:
        try:
            self._keep_serving()
        except BaseException:  # a bug of ours: without this thread the worker would stand still for ever
            log.exception("internal error")
            os._exit(70)

    def _keep_serving(self) -> None:
        tries = 0
        while not self._stopped:
            try:
                with database.connect(self._dsn, f"pgqueue:{self._worker}:claims") as conn:
                    tries = 0
                    self._serve(conn)
            except (psycopg.Error, DatabaseUnreachable) as error:
                # What was sent is in doubt: settlements are sent again (that is safe), a lost claim is given back by the
                # housekeeper, because we announce it no longer.
                log.warning("claims: %s", " ".join(str(error).split()))
                self._slot.announce(0)
                self._hints.reset()
                tries += 1
                time.sleep(database.backoff(tries))

    def _serve(self, conn: psycopg.Connection[Any]) -> None:
        retry_at = 0.0  # when to send busy settlements again
        while True:
            draining = self._slot.order == Order.DRAIN
            if draining or self._slot.running_for > HOSTAGE_AFTER:
                self._release_unstarted()
            batch = self._take_finished(retry_at)
            want = 0 if draining else self._want()
            if batch or want:
                found = self._exchange(conn, batch, want)
                retry_at = time.monotonic() + BUSY_PAUSE if self._unsettled else 0.0
                if want and found == 0 and not batch and self._slot.phase == Phase.IDLE:
                    rest = SAFETY_POLL * random.uniform(0.8, 1.2)  # noqa: S311 -- spreading load
                    self._wait(self._patience(retry_at) if self._unsettled else rest)
                elif want and found == 0:
                    self._slot.phase = Phase.IDLE  # and claim once more: from now on somebody wakes us
                continue
            if draining and self._all_done():
                self._stopped = True
                self._arrived.set()
                return
            self._wait(self._patience(retry_at))

    def _all_done(self) -> bool:
        """Is nothing left in this worker? The order of the looks is the opposite of a job's way through it."""
        return not self._inbox and not self._active and not self._finished and not self._unsettled

    def _want(self) -> int:
        """How many jobs to claim now. Only what can start soon: a job behind a long one is a hostage."""
        if self._slot.order != Order.WORK or self._slot.running_for > HOSTAGE_AFTER:
            return 0
        amount = self._pace.amount()
        waiting = len(self._inbox)
        if amount == 1:
            return 0 if waiting or self._active else 1
        return min(amount - waiting, len(self._free)) if waiting <= amount // 2 else 0

    def _take_finished(self, retry_at: float) -> list[Settlement]:
        """What to settle now: all that is done, unless more will follow within the flush time."""
        more_to_come = bool(self._inbox) or self._active
        if self._finished and more_to_come and len(self._finished) < MOST and self._flush_at() > time.monotonic():
            return []
        batch, self._unsettled = (self._unsettled, []) if time.monotonic() >= retry_at else ([], self._unsettled)
        while self._finished:
            settlement = self._finished.popleft()
            if settlement.how == "nothing":
                self._forget(settlement.job)
            else:
                batch.append(settlement)
        self._finished_since = 0.0
        return batch

    def _flush_at(self) -> float:
        if self._finished_since == 0.0:
            self._finished_since = time.monotonic()
        return self._finished_since + FLUSH_AFTER

    def _patience(self, retry_at: float) -> float | None:
        """How long to sleep when nothing can be done now."""
        if self._finished:
            return max(0.0, self._flush_at() - time.monotonic())
        if self._unsettled:
            return max(0.0, retry_at - time.monotonic())
        return HOSTAGE_AFTER / 2 if self._inbox else None

    def _wait(self, seconds: float | None) -> None:
        if select.select([self._wake_read], [], [], seconds)[0]:
            os.read(self._wake_read, 4096)

    def _exchange(self, conn: psycopg.Connection[Any], batch: list[Settlement], want: int) -> int:
        """Settle and claim in one round trip: two transactions, so a Sync in between. Without it they would be one, and the
        claim's asynchronous commit would cover the settlements. Returns how many jobs came."""
        waiting = self._unsettled  # busy ones whose time has not come
        self._unsettled = batch + waiting  # in doubt until acknowledged
        began = time.monotonic()
        failpoint("settle.before")
        with conn.pipeline() as pipeline:
            if batch:
                answers = database.send(conn, protocol.settle(batch))
                pipeline.sync()
            if want:
                token = new_token()
                self._rounds += 1
                self._slot.announce(token)
                failpoint("claim.before")
                newest = database.send(conn, protocol.newest_position())
                claimed = database.send(conn, self._claim(token, want))
        if batch:
            failpoint("settle.committed")
            self._unsettled = waiting + self._acknowledge(batch, answers())
        if not want:
            return 0
        failpoint("claim.committed")
        found = claimed()
        self._hints.learn(found, newest(), want, time.monotonic() - began)
        self._receive([job for job, _ in found])
        self._slot.announce(0)
        return len(found)

    def _claim(self, token: int, want: int) -> protocol.Call[list[tuple[ClaimedJob, int]]]:
        """The next claim. Each begins with another queue, so that a full one does not starve the others; every 16th reads the
        lanes backwards, so that no priority starves."""
        first = self._rounds % len(self._queues)
        queues, hints = self._queues, self._hints.next()
        queues, hints = queues[first:] + queues[:first], hints[LANES * first :] + hints[: LANES * first]
        return protocol.claim(self._worker, token, queues, self._names, want, hints, self._rounds // len(queues) % 16 == 15)

    def _receive(self, jobs: Sequence[ClaimedJob]) -> None:
        for job in jobs:
            job.place = self._free.pop()
            self._slot.hold(job.place, digest(job.id, job.token))
        if jobs:
            self._slot.phase = Phase.BUSY
            self._inbox.extend(jobs)
            self._arrived.set()

    def _acknowledge(self, batch: Sequence[Settlement], answers: dict[str, str]) -> list[Settlement]:
        """Forget what is settled or lost. Returns what is busy, and to be sent again."""
        for settlement in batch:
            answer = answers.get(settlement.job.id)
            if answer == "lost":
                log.warning("job %s: the claim is lost, its result is discarded", settlement.job.id)
            if answer != "busy":
                self._forget(settlement.job)
        return [s for s in batch if answers.get(s.job.id) == "busy"]

    def _forget(self, job: ClaimedJob) -> None:
        self._slot.hold(job.place, 0)
        self._free.append(job.place)

    def _release_unstarted(self) -> None:
        """Give back what was claimed and not begun: nobody is charged, no attempt is used."""
        while True:
            try:
                job = self._inbox.pop()
            except IndexError:
                return
            self._finished.append(Settlement(job, "release"))
