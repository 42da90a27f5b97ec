"""The housekeeper as its supervisor sees it: there is always one, and it is told of each death until it has dealt with it."""

from __future__ import annotations

import logging
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence

import msgspec

from pgqueue.config import WorkSettings
from pgqueue.housekeeper.housekeeper import Housekeeper
from pgqueue.slots import Phase, Slots
from pgqueue.supervisor.child import STABLE_AFTER, Death, Pause, Scratch, describe, is_stopped, kill_group
from pgqueue.supervisor.fork import fork
from pgqueue.supervisor.probe import Facts
from pgqueue.supervisor.stacks import log_written

log = logging.getLogger(__name__)

STUCK_AFTER = 3.0  # seconds without a tick
LONGEST_PAUSE = 5.0  # seconds; a third of the usual lease


class Housekeeping:
    """``ended`` and ``start_due`` keep one running; ``report`` and ``hear`` talk to it."""

    def __init__(self, slots: Slots, wakes: Sequence[tuple[int, int]], life: int, private: Callable[[], list[int]]) -> None:
        self.deaths: dict[str, Death] = {}  # not confirmed
        self.pid = 0
        self.stacks = Scratch()
        self._slots = slots
        self._wakes = wakes
        self._life = life
        self._private = private
        self._socket: socket.socket | None = None
        self._born = 0.0
        self._pause = Pause(longest=LONGEST_PAUSE)

    @property
    def descriptors(self) -> list[int]:
        """What is open towards it."""
        return [self._socket.fileno()] if self._socket is not None else []

    def start_due(self, settings: WorkSettings, facts: Facts) -> None:
        """Start it unless it is there."""
        if self.pid or time.monotonic() < self._pause.until:
            return
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)

        def run() -> int:
            wakes = [write for _, write in self._wakes]
            return Housekeeper(settings, facts.dsn, facts.queues, self._slots, wakes, theirs, self._life).run()

        self._socket, self._born = ours, time.monotonic()
        close = [*self._private(), ours.fileno(), *(read for read, _ in self._wakes)]
        self.pid = fork(run, close, False, self.stacks.descriptor)
        theirs.close()
        for death in self.deaths.values():
            self._tell(death)

    def hurry(self) -> None:
        """Where it has died young, wait no longer for the next one."""
        self._pause = Pause(longest=LONGEST_PAUSE)

    def replace(self) -> None:
        """It is made to be killed at any moment: another one goes on where it was."""
        if self.pid:
            kill_group(self.pid)
            self._born = float("-inf")  # the next one starts at once

    def replace_if_stuck(self) -> None:
        """Replace it where it stands still. One that waits for the database does not, unless it was stopped."""
        ticks = self._slots.housekeeper
        silent = min(ticks.age, time.monotonic() - self._born)
        if self.pid and silent > STUCK_AFTER and (is_stopped(self.pid) or not ticks.asking):
            log.warning("the housekeeper has stood still for %.1f s: it is replaced", silent)
            self.replace()

    def ended(self, code: int) -> None:
        """Its process has ended."""
        if code:  # otherwise it has left because we do
            log.warning("the housekeeper ended (%s)", describe(code))
        self.log_stacks()
        self._pause.died(time.monotonic(), time.monotonic() - self._born > STABLE_AFTER or code == -signal.SIGKILL)
        self.forget()

    def log_stacks(self) -> None:
        """What it has written of its stacks."""
        log_written("the housekeeper", self.stacks.take())

    def forget(self) -> None:
        """It is gone."""
        self.pid = 0
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    # ------------------------------------------------------------------------------------------------ talking

    def report(self, death: Death) -> None:
        """A worker has died. Its slot is kept until the housekeeper has read from it what was finished."""
        self.deaths[death.worker] = death
        self._tell(death)

    def hear(self) -> Iterator[dict[str, str]]:
        """What it says, but for the confirmation of deaths."""
        while self._socket is not None:
            try:
                data = self._socket.recv(65536)
            except (BlockingIOError, ConnectionError):
                return
            if not data:
                return
            message = msgspec.json.decode(data, type=dict[str, str])
            if "reaped" in message:
                self._confirm(message["reaped"])
            else:
                yield message

    def _confirm(self, worker: str) -> None:
        self.deaths.pop(worker, None)
        slot = self._slots.of(worker)
        if slot is not None and slot.phase == Phase.DEAD:
            slot.free()

    def _tell(self, death: Death) -> None:
        if self._socket is not None:
            try:
                self._socket.send(msgspec.json.encode(death))
            except OSError:
                pass  # it is dead or overwhelmed: told again when it is replaced
