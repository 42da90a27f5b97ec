"""The signals that the supervisor obeys. Handlers do nothing: the wake-up descriptor says which came, and the loop reads it. A
handler that raised would do so in the middle of anything."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable

from pgqueue.supervisor.child import pipe

STOP = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
OBEYED = (
    *STOP, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGCHLD,
)  # fmt: skip


def hold_back() -> None:
    """Keep signals for later: until the supervisor hears them, while modules are imported, or across a re-execution. Otherwise
    they would end the process, or be lost to one that is pid 1."""
    signal.pthread_sigmask(signal.SIG_BLOCK, OBEYED)


class Signals:
    """From ``listen()`` on, each that comes is read once, in order."""

    def __init__(self) -> None:
        self._read, self._write = pipe()
        self._terminal = next((number for number in (0, 1, 2) if _is_terminal(number)), None)
        self._unread: list[int] = []

    @property
    def descriptors(self) -> list[int]:
        """None of them is for children."""
        return [self._read, self._write]

    def fileno(self) -> int:
        """Readable when a signal has come."""
        return self._read

    def listen(self) -> None:
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        for number in OBEYED:
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # nohup is to be respected
                signal.signal(number, lambda *_: None)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, OBEYED)

    def take(self) -> list[int]:
        """What has come since the last time, without SIGCHLD. A SIGHUP from a terminal that was closed is a SIGTERM."""
        try:
            self._unread.extend(os.read(self._read, 4096))
        except BlockingIOError:
            pass
        taken, self._unread = self._unread, []
        gone = self._terminal is not None and not _is_terminal(self._terminal)
        return [signal.SIGTERM if gone and number == signal.SIGHUP else number for number in taken if number != signal.SIGCHLD]

    def put_back(self, numbers: Iterable[int]) -> None:
        """They are for whoever takes next."""
        self._unread[:0] = numbers


def _is_terminal(descriptor: int) -> bool:
    try:
        return os.isatty(descriptor)
    except OSError:
        return False
