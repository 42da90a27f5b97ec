"""The supervisor's loop: fork workers and a housekeeper, notice deaths, obey signals, leave.

Jobs never travel through here. What a dead worker was running is read from shared memory and told to the housekeeper, which
gives the jobs back; until it has confirmed that, the death is not forgotten.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import time
from collections.abc import Callable, Container

from pgqueue.config import Exit, WorkSettings
from pgqueue.failpoints import failpoint
from pgqueue.metrics import WORKER_EXITS
from pgqueue.slots import Order, Phase, Slots
from pgqueue.supervisor import watch
from pgqueue.supervisor.child import Child, kill_group, pipe, tell
from pgqueue.supervisor.deaths import death_of, exit_reason
from pgqueue.supervisor.fork import adopt_orphans
from pgqueue.supervisor.housekeeping import Housekeeping
from pgqueue.supervisor.notify import ServiceManager
from pgqueue.supervisor.orphans import Orphans
from pgqueue.supervisor.probe import Facts
from pgqueue.supervisor.probing import Probing
from pgqueue.supervisor.reload import Reload
from pgqueue.supervisor.report import Rate, full_status, status_line
from pgqueue.supervisor.signals import STOP, Signals
from pgqueue.supervisor.workers import Workers, slots_for

log = logging.getLogger(__name__)

BOOT_FAILURES = 5  # in a row, by workers that never got to work: a crash loop
FAREWELL = 5.0  # seconds for the housekeeper to give the last jobs back
SAME_CTRL_C = 1.0  # seconds within which a second SIGINT is part of the first


class Supervisor:
    """Runs until told to stop. ``run()`` returns the exit code."""

    def __init__(self, settings: WorkSettings) -> None:
        self.settings = settings
        self._signals = Signals()
        self._manager = ServiceManager()
        self._orphans = Orphans()
        self._drain_until: float | None = None
        self._stop_asked = 0.0
        self._exit = Exit.OK
        self._boot_failures = 0
        self._stacks_due: float | None = None
        self._rate = Rate()

    def run(self) -> int:
        self._signals.listen()
        adopt_orphans()
        found = self._look_first()
        if not isinstance(found, Facts):
            return found
        self._set_up(found)
        while not self._finished():
            self._slots.supervisor.tick()
            self._collect()
            self._obey()
            self._hear_housekeeper()
            self._slots.meters.admit()
            self._watch()
            self._follow_reload()
            self._start_due()
            self._enforce_deadline()
            self._say_how_it_goes()
            self._sleep()
        return self._leave()

    # ---------------------------------------------------------------------------------------------- starting

    def _look_first(self) -> Facts | int:
        """What the probe finds out, or the exit code. Whoever wants us to stop does not wait for it."""
        probing = Probing(self.settings, self._signals.descriptors)
        while True:
            select.select([self._signals.fileno()], [], [], 0.5)
            signals = self._signals.take()
            if any(number in STOP for number in signals):
                probing.kill()
                log.info("stopped before the start")
                return Exit.OK
            self._signals.put_back(signals)
            probing.enforce_limit()
            for pid, code in self._dead([probing.pid]):
                if pid == probing.pid:
                    return probing.answer(code)

    def _set_up(self, facts: Facts) -> None:
        self._facts, self.settings = facts, facts.settings
        self._life, self._life_held = os.pipe()
        self._slots = Slots(slots_for(self.settings.workers))
        wakes = [pipe() for _ in self._slots]
        self._housekeeping = Housekeeping(self._slots, wakes, self._life, self._private)
        self._workers = Workers(
            self.settings, self._slots, wakes, lambda: [*self._private(), *self._housekeeping.descriptors, self._life]
        )
        self._workers.resize(self.settings.workers)
        self._reload = Reload(self._workers, facts, self._use)
        log.info("%s: %d workers for %s", self.settings.target, self.settings.workers, ", ".join(facts.queues))

    def _private(self) -> list[int]:
        """Descriptors that no child may have. Above all our end of the life line: its closing tells that we are gone."""
        return [*self._signals.descriptors, self._life_held]

    def _start_due(self) -> None:
        self._housekeeping.start_due(self.settings, self._facts)
        if not self._draining:
            self._workers.start_due()

    # ------------------------------------------------------------------------------------------- the loop

    @property
    def _draining(self) -> bool:
        return self._drain_until is not None

    def _finished(self) -> bool:
        return self._draining and not any(True for _ in self._workers)

    def _sleep(self) -> None:
        self._orphans.look()
        moments = [self._workers.next_start, self._drain_until, self._stacks_due]
        if any(child.condemned for child in self._workers):
            moments.append(time.monotonic() + watch.LAST_WORDS)
        patience = min([self._manager.patience, *(moment - time.monotonic() for moment in moments if moment is not None)])
        select.select([self._signals.fileno(), *self._housekeeping.descriptors], [], [], max(0.0, patience))

    def _obey(self) -> None:
        """Do what the signals that came say."""
        for number in self._signals.take():
            if number == signal.SIGTERM:
                self.drain()
            elif number == signal.SIGINT:
                if self._draining and time.monotonic() - self._stop_asked > SAME_CTRL_C:
                    self.stop_now()
                self.drain()
            elif number == signal.SIGQUIT:
                self.stop_now()
            elif number == signal.SIGHUP:
                self.reload()
            elif number == signal.SIGUSR1:
                self._ask_for_stacks()
            elif number in (signal.SIGTSTP, signal.SIGUSR2):
                self._pause(number == signal.SIGTSTP)
            elif number in (signal.SIGTTIN, signal.SIGTTOU):
                self._resize(+1 if number == signal.SIGTTIN else -1)

    # ----------------------------------------------------------------------------------------------- stopping

    def drain(self) -> None:
        """Take nothing new, let what runs end, up to the deadline."""
        if self._draining:
            return
        log.info("draining, for at most %g s", self.settings.drain_timeout)
        failpoint("drain.signal")
        self._manager.stopping(self.settings.drain_timeout + 2 * FAREWELL)
        self._slots.set_stopping()
        self._stop_asked = time.monotonic()
        self._drain_until = time.monotonic() + self.settings.drain_timeout
        self._reload.abandon()
        self._workers.give(Order.DRAIN)
        for child in self._workers:
            if not child.booted:  # and now it never takes a job
                self._workers.kill(child)

    def stop_now(self) -> None:
        """Give back what runs."""
        self.drain()
        self._drain_until = time.monotonic()

    def _enforce_deadline(self) -> None:
        if self._drain_until is None or time.monotonic() < self._drain_until:
            return
        for child in self._workers:
            if not child.killed:
                if child.has_jobs:
                    log.warning("worker %s is still busy at the deadline: its jobs are given back", child.worker)
                    self._exit = Exit.GIVEN_BACK
                self._workers.kill(child)
        self._drain_until = time.monotonic() + 1.0  # and look again

    # ------------------------------------------------------------------------------------------ other signals

    def _pause(self, pause: bool) -> None:
        if not self._draining:
            log.info("paused: no jobs are claimed until SIGUSR2 comes" if pause else "claiming jobs")
            self._workers.give(Order.PAUSE if pause else Order.WORK)

    def _resize(self, by: int) -> None:
        if not self._draining:
            self._workers.resize(len(self._workers.places) + by)
            log.info("%d workers from now on", len(self._workers.places))

    def _ask_for_stacks(self) -> None:
        log.info("%s", full_status(self._workers, self._rate, self._doing))
        for pid in (*(child.pid for child in self._workers), self._housekeeping.pid):
            tell(pid, signal.SIGUSR1) if pid else None
        self._stacks_due = time.monotonic() + watch.LAST_WORDS

    # ------------------------------------------------------------------------------------------------- reload

    def reload(self) -> None:
        """Replace all workers by others with the code and the settings of now. Where that cannot be, they stay."""
        if not self._draining:
            self._manager.reloading()
            close = [*self._private(), *self._housekeeping.descriptors, self._life]
            self._reload.begin(lambda: Probing(self.settings, close))

    def _follow_reload(self) -> None:
        if self._reload.follow(nobody_boots=self._boot_failures >= BOOT_FAILURES):
            self.reload()

    def _use(self, facts: Facts) -> None:
        """Work by these from now on."""
        keeps_house_by = (self._facts.dsn, self._facts.queues, self.settings.lease)
        self._facts, self.settings = facts, facts.settings
        self._boot_failures = 0
        self._workers.settings = facts.settings
        self._workers.resize(facts.settings.workers)
        if keeps_house_by != (facts.dsn, facts.queues, facts.settings.lease):
            self._housekeeping.replace()

    # ------------------------------------------------------------------------------------------------ watching

    def _watch(self) -> None:
        """Kill workers with a job that takes longer than it may, and those that do not get on; see who is worn out."""
        self._housekeeping.replace_if_stuck()
        for child in self._workers:
            if child.killed:
                continue
            if watch.is_overdue(child):
                log.warning("worker %s: a job has taken longer than it may: killing the worker", child.worker)
                self._workers.kill(child)
            elif why := watch.standstill(child, self.settings):
                if watch.say_last_words(child):
                    log.warning("killing worker %s: %s", child.worker, why)
                    watch.log_stacks(child)
                    self._workers.kill(child)
            else:
                child.condemned = None
                watch.wear_out(child, self.settings.max_memory)

    def _say_how_it_goes(self) -> None:
        self._manager.feed()
        if any(child.booted for child in self._workers) and not self._reload.under_way and not self._draining:
            self._manager.ready()
        self._rate.measure(self._workers)
        self._manager.status(status_line(self._workers, self._rate, self._doing))
        if self._stacks_due is not None and time.monotonic() > self._stacks_due:
            self._stacks_due = None
            for child in self._workers:
                watch.log_stacks(child)
            self._housekeeping.log_stacks()

    @property
    def _doing(self) -> str:
        if self._draining:
            return "draining"
        if self._reload.under_way:
            return "reloading"
        return "paused" if self._workers.order == Order.PAUSE else ""

    # ----------------------------------------------------------------------------------------------- deaths

    def _dead(self, ours: Container[int]) -> list[tuple[int, int]]:
        """Reap whoever has died, also strangers that came to us. What one of ``ours`` has started dies with it."""
        found: list[tuple[int, int]] = []
        while True:
            try:
                dead = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return found
            if dead is None:
                return found
            if dead.si_pid in ours:
                kill_group(dead.si_pid)  # not reaped yet, so the number is still its own
                self._orphans.kill_new()
            _, status = os.waitpid(dead.si_pid, 0)
            failpoint("supervisor.child_reaped")
            found.append((dead.si_pid, os.waitstatus_to_exitcode(status)))

    def _collect(self) -> None:
        """Bury the dead."""
        probing = self._reload.probing
        ours = {child.pid for child in self._workers} | ({probing.pid} if probing is not None else set())
        for pid, code in self._dead(ours):
            child = next((child for child in self._workers if child.pid == pid), None)
            if child is not None:
                self._bury(child, code)
            elif pid == self._housekeeping.pid:
                self._slots.fold()
                self._housekeeping.ended(code)
            elif probing is not None and pid == probing.pid:
                self._reload.probe_ended(code)

    def _bury(self, child: Child, code: int) -> None:
        death, how = death_of(child, code)
        booted = child.booted
        self._rate.of_the_dead += child.slot.done
        watch.log_stacks(child)
        self._workers.remove(child)
        self._slots.fold(child.slot)
        self._slots.meters.supervisor.add(WORKER_EXITS, (exit_reason(child, code),))
        child.slot.phase = Phase.DEAD
        self._housekeeping.report(death)
        log.log(logging.WARNING if death.reason else logging.INFO, "worker %s ended: %s", child.worker, how)
        self._boot_failures = 0 if booted else self._boot_failures + 1
        if self._boot_failures >= BOOT_FAILURES and not self._draining and not any(c.booted for c in self._workers):
            log.error("no worker can start (%d failures in a row), giving up", self._boot_failures)
            self.drain()
            self._exit = Exit.CRASH_LOOP

    def _hear_housekeeper(self) -> None:
        """Workers whose lease is gone, or whose job is to be ended, and the end of a burst."""
        for message in self._housekeeping.hear():
            if "fenced" in message:
                self._kill(message["fenced"], "it has lost its lease")
            if "cancelled" in message:
                self._kill(message["cancelled"], "its job is to be cancelled at once")
            if "finished" in message:
                self.drain()

    def _kill(self, worker: str, why: str) -> None:
        for child in self._workers:
            if child.worker == worker:
                log.warning("killing worker %s: %s", worker, why)
                self._workers.kill(child)

    # ---------------------------------------------------------------------------------------------- leaving

    def _leave(self) -> int:
        """All workers are gone: let the housekeeper give the last jobs back, then close its life line."""
        self._wait_until(lambda: not self._housekeeping.deaths)
        os.close(self._life_held)
        if not self._wait_until(lambda: not self._housekeeping.pid):
            kill_group(self._housekeeping.pid)
        if self._housekeeping.deaths and self._exit == Exit.OK:
            self._exit = Exit.GIVEN_BACK  # the database is away: others will reap when the lease is over
        log.info("stopped")
        return self._exit

    def _wait_until(self, condition: Callable[[], bool]) -> bool:
        deadline = time.monotonic() + FAREWELL
        while not condition():
            if time.monotonic() > deadline:
                return False
            self._manager.feed()
            select.select([self._signals.fileno(), *self._housekeeping.descriptors], [], [], 0.05)
            self._signals.take()
            self._hear_housekeeper()
            if self._housekeeping.pid in dict(self._dead(())):
                self._housekeeping.forget()
        return True
