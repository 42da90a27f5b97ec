"""The supervisor's loop: fork workers and a housekeeper, notice deaths, drain, leave.

Jobs never travel through here. What a dead worker was running is read from shared memory and told to the housekeeper, which
gives the jobs back; until it has confirmed that, the death is not forgotten.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from pgqueue.config import Exit, WorkSettings
from pgqueue.failpoints import failpoint
from pgqueue.housekeeper.housekeeper import Housekeeper
from pgqueue.metrics import WORKER_EXITS
from pgqueue.slots import Order, Phase, Slot, Slots
from pgqueue.supervisor.child import (
    RESPAWN_FIRST,
    RESPAWN_LONGEST,
    Child,
    Death,
    Place,
    describe,
    exit_reason,
    kill_group,
    pipe,
    poke,
)
from pgqueue.supervisor.fork import fork
from pgqueue.supervisor.probe import Facts, probe, read_facts
from pgqueue.worker.process import work

log = logging.getLogger(__name__)

SPARE_SLOTS = 16  # so that a dead worker's slot can be kept until its jobs are given back
STABLE_AFTER = 10.0  # seconds of life, or one finished job, after which a death says nothing about the next start
BOOT_FAILURES = 5  # in a row, by workers that never got to work: a crash loop
FAREWELL = 5.0  # seconds for the housekeeper to give the last jobs back


@dataclass
class Supervisor:
    """Runs until told to stop. ``run()`` returns the exit code."""

    settings: WorkSettings
    _places: list[Place] = field(default_factory=list)
    _deaths: dict[str, Death] = field(default_factory=dict)
    _housekeeper: int = 0
    _signals: list[int] = field(default_factory=list)
    _drain_until: float | None = None
    _exit: Exit = Exit.OK
    _boot_failures: int = 0
    _interrupted: float = 0.0

    def run(self) -> int:
        self._listen_to_signals()
        facts = self._probe()
        if not isinstance(facts, Facts):
            return facts
        self._facts, self.settings = facts, facts.settings
        self._life, self._life_held = os.pipe()
        self._slots = Slots(2 * self.settings.workers + SPARE_SLOTS)
        self._wakes = [pipe() for _ in self._slots]
        self._places = [Place() for _ in range(self.settings.workers)]
        self._start_housekeeper()
        log.info("%s: %d workers for %s", self.settings.target, self.settings.workers, ", ".join(facts.queues))
        while not self._finished():
            self._slots.supervisor.tick()
            self._start_due()
            self._sleep()
            self._obey()
            self._collect()
            self._hear_housekeeper()
            self._slots.meters.admit()
            self._enforce_limits()
            self._enforce_deadline()
        return self._leave()

    # ---------------------------------------------------------------------------------------------- starting

    def _listen_to_signals(self) -> None:
        self._wakeup, wakeup_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC) if hasattr(os, "pipe2") else pipe()
        signal.set_wakeup_fd(wakeup_write, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)  # the wake-up descriptor says which; a handler that raises would be a trap
        self._wakeup_write = wakeup_write

    def _probe(self) -> Facts | int:
        read, write = os.pipe()
        pid = fork(lambda: probe(self.settings, write), [read, self._wakeup, self._wakeup_write], dies_with_us=True)
        os.close(write)
        with os.fdopen(read, "rb") as pipe:
            data = pipe.read()
        _, status = os.waitpid(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        if code != 0:
            if code < 0:
                log.error("the process that looks whether %s can be worked for was %s", self.settings.target, describe(code))
            return code if code > 0 else Exit.CRASH_LOOP
        return read_facts(data)

    def _start_housekeeper(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)

        def run() -> int:
            facts, wakes = self._facts, [write for _, write in self._wakes]
            return Housekeeper(self.settings, facts.dsn, facts.queues, self._slots, wakes, theirs, self._life).run()

        self._to_housekeeper = ours
        self._housekeeper = fork(run, [*self._private(), ours.fileno()], dies_with_us=False)
        theirs.close()
        for death in self._deaths.values():
            self._tell(death)

    def _private(self) -> list[int]:
        """Descriptors that no child may have. Above all our end of the life line: its closing tells that we are gone."""
        return [self._wakeup, self._wakeup_write, self._life_held]

    def _start_due(self) -> None:
        if self._draining:
            return
        now = time.monotonic()
        for place in self._places:
            if place.child is None and now >= place.next_start:
                self._start_worker(place)

    def _start_worker(self, place: Place) -> None:
        worker = str(uuid.uuid4())
        settings, slot = self.settings, self._unused_slot()
        wake = self._wakes[slot.index]
        slot.assign(worker)
        failpoint("supervisor.before_fork")
        close = [*self._private(), self._to_housekeeper.fileno(), self._life]
        pid = fork(lambda: work(settings, worker, slot, wake), close, dies_with_us=True)
        slot.pid = pid
        place.child = Child(pid, worker, slot, time.monotonic())
        log.info("worker %s started", worker, extra={"worker_pid": pid})

    def _unused_slot(self) -> Slot:
        """A free slot; if there is none, because the database is away and many have died, the one of some dead worker."""
        return min((slot for slot in self._slots if slot.phase in (Phase.FREE, Phase.DEAD)), key=lambda slot: slot.phase)

    # ------------------------------------------------------------------------------------------- the loop

    @property
    def _draining(self) -> bool:
        return self._drain_until is not None

    def _finished(self) -> bool:
        return self._draining and all(place.child is None for place in self._places)

    def _sleep(self) -> None:
        now = time.monotonic()
        moments = [place.next_start for place in self._places if place.child is None and not self._draining]
        if self._drain_until is not None:
            moments.append(self._drain_until)
        patience = max(0.0, min([1.0, *(moment - now for moment in moments)]))
        readable, _, _ = select.select([self._wakeup, self._to_housekeeper.fileno()], [], [], patience)
        if self._wakeup in readable:
            self._signals.extend(os.read(self._wakeup, 4096))

    def _obey(self) -> None:
        """Do what the signals that came say."""
        for number in self._signals:
            if number == signal.SIGTERM:
                self.drain()
            elif number == signal.SIGINT:
                if self._draining and time.monotonic() - self._interrupted > 1.0:
                    self.stop_now()
                self.drain()
            elif number == signal.SIGQUIT:
                self.stop_now()
        self._signals.clear()

    def drain(self) -> None:
        """Take nothing new, let what runs end, up to the deadline."""
        if self._draining:
            return
        log.info("draining, for at most %g s", self.settings.drain_timeout)
        failpoint("drain.signal")
        self._interrupted = time.monotonic()
        self._slots.set_stopping()
        self._drain_until = time.monotonic() + self.settings.drain_timeout
        for place in self._places:
            if place.child is not None:
                place.child.slot.order = Order.DRAIN
                poke(self._wakes[place.child.slot.index][1])

    def stop_now(self) -> None:
        """Give back what runs."""
        self.drain()
        self._drain_until = time.monotonic()

    def _enforce_limits(self) -> None:
        """Kill workers with a job that has taken longer than it may. That job is charged, its neighbours are given back."""
        for place in self._places:
            child = place.child
            if child is not None and not child.ended_by_us and (overdue := child.slot.overdue()) is not None:
                log.warning("worker %s: a job has taken longer than it may: killing the worker", child.worker)
                failpoint("supervisor.before_kill")
                child.ended_by_us, child.overdue = True, overdue
                kill_group(child.pid)

    def _enforce_deadline(self) -> None:
        if self._drain_until is None or time.monotonic() < self._drain_until:
            return
        for place in self._places:
            child = place.child
            if child is not None and not child.ended_by_us:
                child.ended_by_us = True
                if child.slot.held() != {0}:
                    log.warning("worker %s is still busy at the deadline: its jobs are given back", child.worker)
                    self._exit = Exit.GIVEN_BACK
                kill_group(child.pid)
        self._drain_until = time.monotonic() + 1.0  # and look again

    # ----------------------------------------------------------------------------------------------- deaths

    def _collect(self) -> None:
        """Bury the dead. As pid 1 also strangers'."""
        while True:
            try:
                dead = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if dead is None:
                return
            pid = dead.si_pid
            place = next((p for p in self._places if p.child is not None and p.child.pid == pid), None)
            if place is not None and place.child is not None:
                kill_group(pid)  # what the job had started dies with it; not reaped yet, so the number is still its own
            _, status = os.waitpid(pid, 0)
            failpoint("supervisor.child_reaped")
            if place is not None and place.child is not None:
                self._bury(place, place.child, os.waitstatus_to_exitcode(status))
            elif pid == self._housekeeper:
                log.warning("the housekeeper ended (%s), starting another", describe(os.waitstatus_to_exitcode(status)))
                self._to_housekeeper.close()
                self._slots.fold()
                self._start_housekeeper()

    def _bury(self, place: Place, child: Child, code: int) -> None:
        place.child = None
        asked_to_go = self._draining and code == 0
        charged = not child.ended_by_us and not asked_to_go
        slot = child.slot
        booted, worked = slot.phase != Phase.BOOTING, slot.done > 1
        reason = describe(code) + (" (perhaps out of memory)" if code == -signal.SIGKILL and charged else "")
        death = Death(child.worker, slot.started if charged else [], reason if charged else None)
        if child.overdue is not None:
            job, step = child.overdue
            death = Death(child.worker, [job], "it took longer than its time limit, and its worker was killed", step)
        self._slots.fold(slot)
        self._slots.meters.supervisor.add(WORKER_EXITS, (exit_reason(child, code, self._draining),))
        slot.phase = Phase.DEAD  # and kept until the housekeeper has read from it what was finished
        log.log(logging.WARNING if charged else logging.INFO, "worker %s ended: %s", child.worker, reason)
        self._deaths[death.worker] = death
        self._tell(death)
        if worked or time.monotonic() - child.born > STABLE_AFTER:
            place.delay, place.next_start = RESPAWN_FIRST, 0.0
        else:
            place.next_start = time.monotonic() + place.delay
            place.delay = min(RESPAWN_LONGEST, place.delay * 2)
        self._boot_failures = 0 if booted else self._boot_failures + 1
        if self._boot_failures >= BOOT_FAILURES and not self._draining:
            log.error("no worker can start (%d failures in a row), giving up", self._boot_failures)
            self.drain()
            self._exit = Exit.CRASH_LOOP

    def _tell(self, death: Death) -> None:
        try:
            self._to_housekeeper.send(msgspec.json.encode(death))
        except OSError:
            pass  # it is dead or overwhelmed: told again when it is replaced, or below

    def _hear_housekeeper(self) -> None:
        """Confirmations of deaths, workers whose lease is gone, and the end of a burst."""
        while True:
            try:
                data = self._to_housekeeper.recv(65536)
            except (BlockingIOError, ConnectionError):
                return
            if not data:
                return
            message = msgspec.json.decode(data, type=dict[str, str])
            if "reaped" in message:
                self._deaths.pop(message["reaped"], None)
                slot = self._slots.of(message["reaped"])
                if slot is not None and slot.phase == Phase.DEAD:
                    slot.free()
            if "fenced" in message:
                self._kill(message["fenced"], "it has lost its lease")
            if "cancelled" in message:
                self._kill(message["cancelled"], "its job is to be cancelled at once")
            if "finished" in message:
                self.drain()

    def _kill(self, worker: str, why: str) -> None:
        for place in self._places:
            if place.child is not None and place.child.worker == worker:
                log.warning("killing worker %s: %s", worker, why)
                failpoint("supervisor.before_kill")
                place.child.ended_by_us = True
                kill_group(place.child.pid)

    # ---------------------------------------------------------------------------------------------- leaving

    def _leave(self) -> int:
        """All workers are gone: let the housekeeper give the last jobs back, then close its life line."""
        self._wait_until(lambda: not self._deaths)
        os.close(self._life_held)
        if not self._wait_until(self._housekeeper_is_gone):
            kill_group(self._housekeeper)
        if self._deaths and self._exit == Exit.OK:
            self._exit = Exit.GIVEN_BACK  # the database is away: others will reap when the lease is over
        log.info("stopped")
        return self._exit

    def _wait_until(self, condition: Callable[[], bool]) -> bool:
        deadline = time.monotonic() + FAREWELL
        while not condition():
            if time.monotonic() > deadline:
                return False
            select.select([self._wakeup, self._to_housekeeper.fileno()], [], [], 0.05)
            self._hear_housekeeper()
        return True

    def _housekeeper_is_gone(self) -> bool:
        try:
            return os.waitpid(self._housekeeper, os.WNOHANG)[0] == self._housekeeper
        except ChildProcessError:
            return True
