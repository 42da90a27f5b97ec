"""The supervisor's loop: fork workers and a housekeeper, notice deaths, obey signals, leave.

Jobs never travel through here. What a dead worker was running is read from shared memory and told to the housekeeper, which
gives the jobs back; until it has confirmed that, the death is not forgotten.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Container

from pgqueue.config import Exit, WorkSettings
from pgqueue.descriptors import allow_descriptors, readable
from pgqueue.errors import Configuration
from pgqueue.failpoints import failpoint
from pgqueue.logs import hide
from pgqueue.metrics import WORKER_EXITS
from pgqueue.slots import Order, Phase, Slots
from pgqueue.supervisor import capacity
from pgqueue.supervisor.child import Child, kill_group, pipe
from pgqueue.supervisor.deaths import death_of, exit_reason
from pgqueue.supervisor.fork import adopt_orphans
from pgqueue.supervisor.home import Home
from pgqueue.supervisor.housekeeping import Housekeeping
from pgqueue.supervisor.notify import ServiceManager
from pgqueue.supervisor.orphans import Orphans
from pgqueue.supervisor.probe import Facts
from pgqueue.supervisor.probing import Probing
from pgqueue.supervisor.reload import Reload
from pgqueue.supervisor.report import Report
from pgqueue.supervisor.signals import STOP, Signals, hold_back
from pgqueue.supervisor.sources import Sources
from pgqueue.supervisor.standing import Standing
from pgqueue.supervisor.stopping import FAREWELL, Stopping
from pgqueue.supervisor.watch import LAST_WORDS, log_stacks, look_after
from pgqueue.supervisor.workers import Workers, slots_for
from pgqueue.worker.preload import preload

log = logging.getLogger(__name__)

OTHER_DESCRIPTORS = 64  # beside two for each slot, and one for what its worker may write before it dies
BOOT_FAILURES = 5  # in a row, by workers that never got to work: a crash loop


class Supervisor:
    """Runs until told to stop. ``run()`` returns the exit code."""

    def __init__(self, settings: WorkSettings) -> None:
        self.settings = settings
        self._home = Home()
        self._standing = Standing.taken()
        self._signals = Signals()
        self._manager = ServiceManager()
        self._orphans = Orphans()
        self._sources: Sources | None = None
        self._boot_failures = 0
        self._boot_error = ""  # of the last one

    def run(self) -> int:
        try:
            return self._run()
        finally:
            hold_back()  # what comes now comes too late; Python would die of it while it ends

    def _run(self) -> int:
        self._signals.listen()
        adopt_orphans()
        found = self._look_first()
        if not isinstance(found, Facts):
            return found
        try:
            self._set_up(found)
        except Configuration as error:
            log.error("%s", error)
            return Exit.CONFIG
        while not self._finished():
            self._slots.supervisor.tick()
            self._collect()
            self._obey()
            self._hear_housekeeper()
            self._housekeeping.replace_if_stuck()
            look_after(self._workers, self.settings)
            self._follow_reload()
            self._start_due()
            self._stopping.enforce_deadline()
            self._report_progress()
            self._sleep()
        return self._leave()

    # ---------------------------------------------------------------------------------------------- starting

    def _look_first(self) -> Facts | int:
        """What the probe finds out, or the exit code. Whoever wants us to stop does not wait for it."""
        probing = Probing(self.settings, self._signals.descriptors)
        while True:
            readable([self._signals.fileno()], 0.5)
            signals = self._signals.take()
            if any(number in STOP for number in signals):
                probing.kill()
                log.info("stopped before the start")
                return Exit.OK
            self._signals.put_back(signals)
            self._manager.feed()
            probing.enforce_limit()
            for pid, code in self._dead([probing.pid]):
                if pid == probing.pid:
                    return probing.answer(code)

    def _set_up(self, facts: Facts) -> None:
        self._facts, self.settings = facts, facts.settings
        hide(facts.dsn, facts.settings.listen_dsn)
        if self.settings.preload:
            with self._manager.standing_still(self.settings.boot_timeout):  # it has been fed, so it watches, ready or not
                preload(self.settings.target)
            self._signals.listen()  # whatever that has imported
        if self.settings.reload:
            self._sources = Sources(facts.directories)
        count = self._standing.count(self.settings.workers) or capacity.processors()
        self._slots = Slots(slots_for(count))
        allow_descriptors(3 * len(self._slots) + OTHER_DESCRIPTORS, f"{count} workers")
        self._life, self._life_held = os.pipe()
        wakes = [pipe() for _ in self._slots]
        self._housekeeping = Housekeeping(self._slots, wakes, self._life, self._private)
        self._workers = Workers(self.settings, self._slots, wakes, self._not_for_workers)
        self._stopping = Stopping(self._workers, self._slots, self._manager)
        self._reload = Reload(self._workers, facts, self._use, lambda: self._stopping.restart(self.settings.drain_timeout))
        self._report = Report(self._workers, self._housekeeping, self._manager)
        self._workers.resize(count)
        log.info("%s: %d worker%s for %s", self.settings.target, count, "s" * (count != 1), ", ".join(facts.queues))
        if self._standing.paused:
            self._pause(True)
        capacity.warn_of_memory(count, self.settings.max_memory)

    def _private(self) -> list[int]:
        """Descriptors that no child may have. Above all our end of the life line: its closing tells that we are gone."""
        return [*self._signals.descriptors, self._life_held]

    def _not_for_workers(self) -> list[int]:
        return [*self._private(), *self._housekeeping.descriptors, self._life]

    # ------------------------------------------------------------------------------------------- the loop

    def _finished(self) -> bool:
        return self._stopping.under_way and not any(True for _ in self._workers)

    def _obey(self) -> None:
        """Do what the signals that came say."""
        for number in self._signals.take():
            if number == signal.SIGTERM:
                self._stopping.drain(self.settings.drain_timeout)
            elif number == signal.SIGINT:
                self._stopping.interrupt(self.settings.drain_timeout)
            elif number == signal.SIGQUIT:
                self._stopping.now()
            elif number == signal.SIGUSR1:
                self._report.log_all(self._doing)
            elif number in (signal.SIGTSTP, signal.SIGUSR2) and (self._stopping.restarting or not self._stopping.under_way):
                self._pause(number == signal.SIGTSTP)
            elif self._stopping.under_way:
                log.info("%s is ignored while draining", signal.Signals(number).name)
            elif number == signal.SIGHUP:
                self._begin_reload()
            elif number in (signal.SIGTTIN, signal.SIGTTOU):
                self._resize(1 if number == signal.SIGTTIN else -1)

    def _pause(self, pause: bool) -> None:
        log.info("paused: no jobs are claimed until SIGUSR2 comes" if pause else "claiming jobs")
        self._standing.paused = pause
        if not self._stopping.under_way:
            self._workers.give(Order.PAUSE if pause else Order.WORK)

    def _resize(self, more: int) -> None:
        self._workers.resize(len(self._workers.places) + more)
        count = len(self._workers.places)
        self._standing.ask_for(count, self.settings.workers)
        log.info("%d worker%s from now on", count, "s" * (count != 1))

    def _start_due(self) -> None:
        self._housekeeping.start_due(self.settings, self._facts)
        if not self._stopping.under_way:
            self._workers.start_due()

    def _report_progress(self) -> None:
        self._slots.meters.admit()
        self._report.tell_manager(not self._reload.under_way and not self._stopping.under_way, self._doing)
        self._report.log_stacks_due()

    @property
    def _doing(self) -> str:
        if self._stopping.under_way:
            return "draining"
        if self._reload.under_way:
            return "reloading"
        return "paused" if self._workers.order == Order.PAUSE else ""

    def _sleep(self) -> None:
        """Until something is due, or somebody calls."""
        self._orphans.look()
        moments = [self._workers.next_start, self._stopping.until, self._report.stacks_due]
        if any(child.condemned for child in self._workers):
            moments.append(time.monotonic() + LAST_WORDS)
        patience = min([self._manager.patience, *(moment - time.monotonic() for moment in moments if moment is not None)])
        readable([self._signals.fileno(), *self._housekeeping.descriptors], patience)

    # ------------------------------------------------------------------------------------------------- reload

    def _begin_reload(self) -> None:
        """Replace all workers by others with the code and the settings of now. Where that cannot be, they stay."""
        self._manager.reloading()
        self._home.enter()
        command = self._home.command("--check") if self.settings.preload else None
        self._reload.begin(lambda: Probing(self.settings, self._not_for_workers(), command))

    def _follow_reload(self) -> None:
        if self._stopping.under_way:
            return
        again = self._reload.follow(self._boot_error if self._boot_failures >= BOOT_FAILURES else None)
        if again or (self._sources is not None and self._sources.have_changed()):
            self._begin_reload()

    def _use(self, facts: Facts) -> None:
        """Work by these from now on."""
        keeps_house_by = (self._facts.dsn, self._facts.queues, self.settings.lease)
        self._facts, self.settings = facts, facts.settings
        hide(facts.dsn, facts.settings.listen_dsn)
        self._boot_failures = 0
        self._workers.settings = facts.settings
        self._workers.resize(self._standing.count(facts.settings.workers) or capacity.processors())
        if self._sources is not None:
            self._sources = Sources(facts.directories)
        if keeps_house_by != (facts.dsn, facts.queues, facts.settings.lease):
            self._housekeeping.replace()

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
            elif probing is not None and pid == probing.pid and not self._stopping.under_way:
                self._reload.probe_ended(code)

    def _bury(self, child: Child, code: int) -> None:
        death, how = death_of(child, code)
        if child.booted:
            self._boot_failures = 0
        elif child not in self._workers.leaving:
            self._boot_failures += 1
        said = log_stacks(child)
        if not child.booted:
            self._boot_error = said or how
        self._workers.remove(child)
        self._report.of_the_dead += child.slot.done
        self._slots.fold(child.slot)
        self._slots.meters.supervisor.add(WORKER_EXITS, (exit_reason(child, code),))
        child.slot.phase = Phase.DEAD
        self._housekeeping.report(death)
        log.log(logging.WARNING if death.reason else logging.INFO, "worker %s ended: %s", child.worker, how)
        works = any(other.booted for other in self._workers)
        if self._boot_failures >= BOOT_FAILURES and not works and not self._stopping.under_way:
            log.error("no worker can start (%d failures in a row), giving up: %s", self._boot_failures, self._boot_error)
            self._stopping.give_up(self.settings.drain_timeout)

    def _hear_housekeeper(self) -> None:
        """Workers whose lease is gone, or whose job is to be ended, and the end of a burst."""
        for message in self._housekeeping.hear():
            if "fenced" in message:
                self._kill(message["fenced"], "it has lost its lease")
            if "cancelled" in message:
                self._kill(message["cancelled"], "its job is to be cancelled at once")
            if "finished" in message:
                self._stopping.drain(self.settings.drain_timeout)

    def _kill(self, worker: str, why: str) -> None:
        for child in self._workers:
            if child.worker == worker:
                log.warning("killing worker %s: %s", worker, why)
                self._workers.kill(child)

    # ---------------------------------------------------------------------------------------------- leaving

    def _leave(self) -> int:
        """All workers are gone: let the housekeeper give the last jobs back, then close its life line."""
        self._housekeeping.hurry()
        self._wait_until(self._all_is_given_back)
        os.close(self._life_held)
        if not self._wait_until(lambda: not self._housekeeping.pid):
            kill_group(self._housekeeping.pid)
        if lost := len(self._housekeeping.deaths):  # the database is away
            log.warning(
                "what %d worker%s held could not be given back: others do that when the lease is over", lost, "s" * (lost != 1)
            )
            if self._stopping.code == Exit.OK:
                self._stopping.code = Exit.GIVEN_BACK
        if self._stopping.restarting:
            hold_back()
            if not any(number in STOP for number in self._signals.take()):
                self._home.execute_again(self._manager.variables | self._standing.variables())
        log.info("stopped")
        return self._stopping.code

    def _all_is_given_back(self) -> bool:
        if self._housekeeping.deaths:
            self._housekeeping.start_due(self.settings, self._facts)  # it may have died, now or a moment ago
        return not self._housekeeping.deaths

    def _wait_until(self, condition: Callable[[], bool]) -> bool:
        deadline = time.monotonic() + FAREWELL
        while not condition():
            if time.monotonic() > deadline:
                return False
            self._manager.feed()
            readable([self._signals.fileno(), *self._housekeeping.descriptors], 0.05)
            if any(number in STOP for number in self._signals.take()):
                self._stopping.restarting = False
            self._hear_housekeeper()
            self._housekeeping.replace_if_stuck()
            for pid, code in self._dead(()):
                if pid == self._housekeeping.pid:
                    self._housekeeping.ended(code)
        return True
