"""The housekeeper's loop: a list of duties, each done when it is due or when somebody asks for it.

Long, because all duties share one loop and what it has heard; how each is done is in the files beside it.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any

import msgspec
import psycopg

from pgqueue import database, protocol
from pgqueue.config import WorkSettings
from pgqueue.context import process
from pgqueue.database import run
from pgqueue.descriptors import readable
from pgqueue.errors import DatabaseUnreachable
from pgqueue.failpoints import failpoint
from pgqueue.housekeeper import recovery
from pgqueue.housekeeper.counting import count_ended, count_recovered
from pgqueue.housekeeper.exposition import Exposition, Health
from pgqueue.housekeeper.heartbeat import Heartbeat
from pgqueue.housekeeper.hostages import Hostages
from pgqueue.housekeeper.idle import Idle
from pgqueue.housekeeper.leases import Leases
from pgqueue.housekeeper.ticks import tick_due
from pgqueue.listening import Listener
from pgqueue.logs import count_dropped, hide
from pgqueue.metrics import DB_ERRORS, RECOVERY
from pgqueue.slots import Slots
from pgqueue.supervisor.child import Death

log = logging.getLogger(__name__)
EARLY = 0.04  # seconds; claims look 50 ms ahead
AGAIN = 0.1  # seconds until the next look while there is work and workers rest: after one that came late, the rate is kept again
STAGGER = 0.005  # seconds from one worker's wake-up to the others': most often there is one job, and they would be in its way
LOOK_FOR_HOSTAGES = 0.25  # seconds, unless no worker has anything in hand
NOBODY_BEHIND = "ffffffff-ffff-ffff-ffff-ffffffffffff"  # the id behind all others
SELDOM = 30.0  # seconds until a duty is done though nobody has seen a reason for it
PROMOTE_AT_ONCE = WAKE_AT_ONCE = 5000
PRUNE_AT_ONCE = 500


class Housekeeper:
    """Runs until its supervisor is gone. ``run()`` returns the exit code."""

    def __init__(
        self,
        settings: WorkSettings,
        dsn: str,
        queues: Sequence[str],
        slots: Slots,
        wakes: Sequence[int],
        supervisor: socket.socket,
        life: int,
    ) -> None:
        self._settings = settings
        self._dsn = dsn
        self._queues = queues
        self._slots = slots
        self._idle = Idle(slots, wakes)
        self._hostages = Hostages(slots)
        self._supervisor = supervisor
        self._life = life
        self._name = f"pgqueue:housekeeper:{uuid.uuid4()}"
        self._leases = Leases(settings.lease)
        self._deaths: dict[str, Death] = {}  # told by the supervisor, still to be dealt with
        self._due: dict[Callable[[psycopg.Connection[Any]], float], float] = {}  # duty -> when
        self._listening = False
        self._lively_until = 0.0  # there is, or was a moment ago, something to do
        self._looked_to: str | None = None  # how far the look at all waiting jobs has come
        self._others_at = 0.0  # when it goes on
        self._meter = slots.meter()
        self._health = Health()

    def run(self) -> int:
        process.role = "housekeeper"
        hide(self._dsn, self._settings.listen_dsn)
        count_dropped(self._meter)
        Heartbeat(self._dsn, self._name, self._settings.beat, self._workers, self._report_fenced, self._meter).start()
        if self._settings.metrics:
            pages = Exposition(self._slots, self._health, self._settings.target, self._queues)
            pages.serve(self._settings.metrics, self._dsn, self._meter)
        tries = 0
        while True:
            self._slots.housekeeper.ask()
            try:
                with database.connect(self._dsn, self._name) as conn, closing(self._listen(conn)) as self._listener:
                    tries = 0
                    self._health.schema_fits = database.schema_fits(conn)
                    self._plan()
                    recovery.fence_vanished(conn, self._slots.workers())
                    self._keep_house(conn)
                    return 0
            except (psycopg.Error, DatabaseUnreachable) as error:
                log.warning("housekeeper: %s", database.brief(error))
                self._meter.add(DB_ERRORS, ("housekeeper",))
                tries += 1
                if self._pause(database.backoff(tries)):
                    self._kill_orphans()  # the jobs are reaped by others, when the lease is over
                    return 0

    def _listen(self, conn: psycopg.Connection[Any]) -> Listener:
        listener = Listener(conn, self._settings.listen_dsn, self._name, "pgqueue", "pgqueue_wake")
        if listener.deaf:
            log.info("behind a connection pooler nothing is heard: polling (PGQUEUE_LISTEN_DSN may name the server itself)")
        return listener

    def _plan(self) -> None:
        duties = (
            self._look,
            self._observe_leases,
            self._reap_lapsed,
            self._tick,
            self._promote,
            self._wake,
            self._end_cancelled,
            self._reconcile,
            self._prune,
            self._free_hostages,
            self._wake_others,
        )
        self._due = dict.fromkeys(duties, 0.0)
        if self._settings.burst:
            self._due[self._check_burst] = 0.0
        self._listening = False

    def _keep_house(self, conn: psycopg.Connection[Any]) -> None:
        """Until the supervisor is gone."""
        while True:
            for worker, death in list(self._deaths.items()):
                self._bury(conn, worker, death)
                self._deaths.pop(worker)
                self._say("reaped", worker)
            now = time.monotonic()
            for duty, when in self._due.items():
                if now >= when:
                    self._due[duty] = time.monotonic() + duty(conn)
                    self._health.answered()
            if self._wait(conn):
                self._inherit(conn)
                return

    def _bury(self, conn: psycopg.Connection[Any], worker: str, death: Death) -> None:
        slot = self._slots.of(worker)
        recovered, ended = recovery.bury(conn, worker, slot, death.started, death.reason, death.overdue)
        count_recovered(self._meter, death.kind, recovered)
        if recovered:
            self._meter.observe(RECOVERY, (), time.monotonic() - death.at)
        count_ended(self._meter, run(conn, protocol.job_names(ended)) if ended else [])

    def _wait(self, conn: psycopg.Connection[Any]) -> bool:
        """Until something is due, or somebody calls. True: the supervisor is gone."""
        self._slots.housekeeper.tick()
        patience = max(0.0, min(self._due.values()) - time.monotonic())
        if not self._listening:
            patience = min(patience, 0.1)  # workers may go idle any moment, and shared memory does not call
        heard = readable([*self._listener.filenos(), self._supervisor.fileno(), self._life], patience)
        if self._life in heard:
            return True
        if self._supervisor.fileno() in heard:
            self._hear()
        if set(self._listener.filenos()) & set(heard) or self._listener.deaf:
            channels = {notice.channel for notice in self._listener.heard()}
            if "pgqueue" in channels:
                self._wake_idle()
                self._soon(self._promote, STAGGER)  # something may be due before our next look
            if "pgqueue_wake" in channels:
                self._due[self._wake] = self._due[self._end_cancelled] = 0.0
        if not self._listening and self._idle.workers():
            self._due[self._look] = 0.0
        self._slots.housekeeper.ask()
        return False

    def _pause(self, seconds: float) -> bool:
        """While there is no database. True: the supervisor is gone."""
        self._slots.housekeeper.tick()
        heard = readable([self._supervisor.fileno(), self._life], seconds)
        if self._supervisor.fileno() in heard:
            self._hear()
        return self._life in heard

    # ---------------------------------------------------------------------------------- talking to processes

    def _hear(self) -> None:
        data = self._supervisor.recv(65536)
        if data:
            death = msgspec.json.decode(data, type=Death)
            self._deaths[death.worker] = death

    def _say(self, what: str, worker: str = "") -> None:
        try:
            self._supervisor.send(msgspec.json.encode({what: worker}))
        except OSError:
            pass  # it is gone, and we shall notice

    def _report_fenced(self, worker: str) -> None:
        self._say("fenced", worker)

    def _workers(self) -> list[str]:
        return [slot.worker for slot in self._slots.used() if slot.registered and slot.worker]

    def _wake_idle(self) -> None:
        """There is work, or there may be."""
        self._lively_until = time.monotonic() + 2
        self._soon(self._free_hostages, LOOK_FOR_HOSTAGES)
        if self._idle.wake_one():
            self._soon(self._wake_others, STAGGER)

    def _wake_others(self, conn: psycopg.Connection[Any]) -> float:
        self._idle.wake_others()
        return math.inf

    def _rest(self) -> float:
        """Seconds until the next look at what a notification would tell. Where nothing is heard, less while there is work."""
        if any(slot.started for slot in self._slots.used()):
            self._lively_until = time.monotonic() + 2
        return 0.1 if self._listener.deaf and time.monotonic() < self._lively_until else 1.0

    # ------------------------------------------------------- duties: each returns the seconds until the next time

    def _observe_leases(self, conn: psycopg.Connection[Any]) -> float:
        beats = run(conn, protocol.beats())
        for worker, beat in self._leases.observe(((row[0], row[1]) for row in beats), time.monotonic()):
            if run(conn, protocol.fence_worker(worker, beat, f"its lease of {self._settings.lease:g} s ran out")):
                log.warning("worker %s has not been heard of for %g s: fenced", worker, self._settings.lease)
                self._due[self._reap_lapsed] = 0.0
        return self._settings.lease / 10

    def _reap_lapsed(self, conn: psycopg.Connection[Any]) -> float:
        count_recovered(self._meter, "lost", recovery.reap_lapsed(conn, except_for=list(self._deaths)))
        return self._settings.lease / 5

    def _promote(self, conn: psycopg.Connection[Any]) -> float:
        failpoint("promote.before")
        moved, next_due = run(conn, protocol.promote(PROMOTE_AT_ONCE))
        if moved:
            self._wake_idle()
        if moved == PROMOTE_AT_ONCE:
            return 0.0
        return SELDOM if next_due is None else min(SELDOM, max(0.01, next_due))

    def _tick(self, conn: psycopg.Connection[Any]) -> float:
        enqueued, next_due = tick_due(conn)
        if enqueued:
            self._wake_idle()
        return SELDOM if next_due is None else min(SELDOM, next_due)

    def _wake(self, conn: psycopg.Connection[Any]) -> float:
        """What goes on may be followed at once by what waits behind it, by the rate of its key. The look at others is for once a
        second."""
        failpoint("wake.before")
        quick = time.monotonic() < self._others_at
        moved, more, reached = run(conn, protocol.wake(WAKE_AT_ONCE, NOBODY_BEHIND if quick else self._looked_to))
        if not quick:
            self._looked_to, self._others_at = reached, time.monotonic() + 0.9
        if moved:
            self._wake_idle()
        if more or moved:
            return 0.0 if more else EARLY
        over_in = run(conn, protocol.next_wake())
        return SELDOM if over_in is None else min(SELDOM, max(0.01, over_in))

    def _end_cancelled(self, conn: psycopg.Connection[Any]) -> float:
        for worker in recovery.running_cancelled(conn, self._slots.used()):
            self._say("cancelled", worker)
        return 0.0 if run(conn, protocol.cancel_waiting()) else SELDOM

    def _prune(self, conn: psycopg.Connection[Any]) -> float:
        """The next step of the walk over what has ended. Never more than half of our time."""
        began = time.monotonic()
        try:
            _, next_look = run(conn, protocol.prune_due(PRUNE_AT_ONCE))
        except psycopg.errors.LockNotAvailable:
            return 10.0
        return max(next_look, time.monotonic() - began)

    def _reconcile(self, conn: psycopg.Connection[Any]) -> float:
        recovery.release_unknown(conn, self._slots.used())
        return self._settings.beat

    def _free_hostages(self, conn: psycopg.Connection[Any]) -> float:
        if self._hostages.free(conn):
            self._wake_idle()
        return LOOK_FOR_HOSTAGES if self._hostages.possible() else 1.0

    def _look(self, conn: psycopg.Connection[Any]) -> float:
        """One question a second, from which follows what else has to be done; also for whom there is work: one poll for all idle
        workers of this host. While there are any, producers are asked to notify. Where a rate says when the next job may begin,
        workers are woken a little earlier: a claim may come before the start that it is given."""
        self._listening = bool(self._idle.workers())
        seen = run(conn, protocol.look(self._queues, 2.5 if self._listening and not self._listener.deaf else None))
        self._soon(self._promote, seen.promote_in)
        self._soon(self._tick, seen.tick_in)
        self._soon(self._wake, 0.0 if seen.waits else None)
        self._soon(self._end_cancelled, 0.0 if seen.cancels else None)
        work_in = seen.work_in
        if self._listening and self._listener.deaf:  # it asks nobody to notify, and nobody else's listening must end
            work_in = run(conn, protocol.has_work(self._queues))
        if work_in is None:
            return self._rest()
        if work_in <= EARLY:
            self._wake_idle()
            return min(self._rest(), AGAIN) if work_in == 0 else EARLY
        return min(self._rest(), work_in - EARLY / 2)

    def _soon(self, duty: Callable[[psycopg.Connection[Any]], float], seconds: float | None) -> None:
        if seconds is not None:
            self._due[duty] = min(self._due[duty], time.monotonic() + seconds)

    def _check_burst(self, conn: psycopg.Connection[Any]) -> float:
        """--burst: leave when nothing is ready, running or due."""
        ready_to_work = [slot for slot in self._slots.used() if slot.registered]
        if ready_to_work and run(conn, protocol.remaining(self._queues)) == 0:
            self._say("finished")
            return 60.0
        return 0.2

    # ------------------------------------------------------------------------------ when the supervisor is gone

    def _kill_orphans(self) -> list[tuple[str, int]]:
        """Kill the workers' process groups: the kernel kills workers with their supervisor, but not what their jobs started."""
        orphans = [(slot.worker, slot.pid) for slot in self._slots.used() if slot.worker and slot.pid]
        for _, pid in orphans:
            for kill in (os.killpg, os.kill):
                try:
                    kill(pid, signal.SIGKILL)
                except (ProcessLookupError, PermissionError):
                    pass
        recovery.wait_for_exit([pid for _, pid in orphans], 5.0)
        return orphans

    def _inherit(self, conn: psycopg.Connection[Any]) -> None:
        """Give back what the supervisor's workers held, and leave: nobody has to wait for the leases."""
        for worker, _ in self._kill_orphans():
            recovery.bury(conn, worker, self._slots.of(worker), [], None)
        for worker, death in self._deaths.items():
            self._bury(conn, worker, death)
