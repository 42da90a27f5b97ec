"""Ctrl-C, SIGTERM and a closed terminal: they end the demo (or ``pgqueue dev``), but never in the middle of something that would
then be left behind. So handlers only take note, and loops ask."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(BaseException):
    """Somebody wants us to stop. A BaseException like KeyboardInterrupt, which it stands for."""

    def __init__(self, number: int) -> None:
        self.code = 128 + number
        """The exit code that a shell would give."""
        super().__init__(signal.Signals(number).name)


class Signals:
    """While entered, signals that want us to stop are remembered until somebody asks for them with ``check()``."""

    def __init__(self) -> None:
        self.count = 0
        """How many came."""
        self._last: int | None = None

    def __enter__(self) -> Signals:
        heard = [number for number in STOPPING if signal.getsignal(number) is not signal.SIG_IGN]  # nohup is to be respected
        self._before = {number: signal.signal(number, self._arrived) for number in heard}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if isinstance(error, Exception):
            self.check()  # Ctrl-C reaches our children too: what fails because of it is not an error

    def _arrived(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        self._last = number

    def check(self) -> None:
        """Raise Stopped if a signal came."""
        if self._last is not None:
            raise Stopped(self._last)
