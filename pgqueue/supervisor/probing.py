"""A probe that runs, as its supervisor sees it. (What it does is in probe.py.)"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable

from pgqueue.config import Exit, WorkSettings
from pgqueue.supervisor.child import Scratch, describe, kill_group
from pgqueue.supervisor.fork import fork
from pgqueue.supervisor.probe import Facts, probe, read_facts
from pgqueue.supervisor.stacks import log_written

log = logging.getLogger(__name__)


class Probing:
    """Begins with the fork. Ends with ``answer()``, when the process has ended."""

    def __init__(self, settings: WorkSettings, close: Iterable[int], command: list[str] | None = None) -> None:
        """``command``: run this instead, in a fresh interpreter that has imported nothing of the application."""
        self._target = settings.target
        self._facts, self._stacks = Scratch(), Scratch()
        self._until = time.monotonic() + settings.boot_timeout
        self._limit = settings.boot_timeout

        def run() -> int:
            if command:
                os.execv(command[0], command)  # noqa: S606 -- ourselves
            return probe(settings, self._facts.descriptor)

        self.pid = fork(run, close, True, self._stacks.descriptor)

    def enforce_limit(self) -> None:
        """Kill it where it takes too long."""
        if time.monotonic() > self._until:
            log.error("importing %s and asking the database has taken more than %g s", self._target, self._limit)
            self.kill()
            self._until = float("inf")

    def kill(self) -> None:
        kill_group(self.pid)

    def answer(self, code: int) -> Facts | int:
        """What it has found out, or the exit code that says why not (0: all is well, of a command)."""
        facts, stacks = self._facts.take(), self._stacks.take()
        self._facts.close()
        self._stacks.close()
        if code == 0:
            return read_facts(facts) if facts else 0
        if code < 0:
            log.error("the process that looks whether %s can be worked for was %s", self._target, describe(code))
            log_written("that process", stacks, logging.ERROR)
        return code if code > 0 else Exit.CRASH_LOOP
