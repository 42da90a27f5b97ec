"""What the service manager is told: the protocol of systemd, a datagram for each message.

The loop of the supervisor itself feeds the watchdog, never a thread: when the loop stands still, nobody does.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

READY, STOPPING = "READY=1", "STOPPING=1"


class ServiceManager:
    """Whoever started us, if it wants to hear of us: NOTIFY_SOCKET names its socket, WATCHDOG_USEC how often."""

    def __init__(self) -> None:
        self.variables = {
            name: os.environ.pop(name) for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID") if name in os.environ
        }  # not for our children
        self._address = self.variables.get("NOTIFY_SOCKET", "")
        ours = self.variables.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        microseconds = self.variables.get("WATCHDOG_USEC", "") if ours else ""
        self.watchdog = int(microseconds) / 1e6 if microseconds.isdigit() else None
        self._fed = 0.0
        self._status = ""
        self._is_ready = False

    def ready(self) -> None:
        """Sent once, and again after each ``reloading``."""
        if not self._is_ready:
            self._is_ready = True
            self._send(READY)

    def reloading(self) -> None:
        self._is_ready = False
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self, within: float) -> None:
        """``within``: seconds that it may take; the manager's own patience is extended by as much."""
        self._send(f"{STOPPING}\nEXTEND_TIMEOUT_USEC={int(within * 1e6)}")

    def status(self, text: str) -> None:
        """One line for people, sent when it has changed."""
        if text != self._status:
            self._status = text
            self._send(f"STATUS={text}")

    def feed(self) -> None:
        """The loop is well. Called in each of its rounds; sends no more often than it has to."""
        if self.watchdog and time.monotonic() - self._fed > self.watchdog / 4:
            self._fed = time.monotonic()
            self._send("WATCHDOG=1")

    @contextmanager
    def standing_still(self, most: float) -> Iterator[None]:
        """The loop will not go round for so many seconds, and is well."""
        if self.watchdog:
            self._send(f"WATCHDOG_USEC={int((self.watchdog + most) * 1e6)}")
        yield
        if self.watchdog:
            self._send(f"WATCHDOG_USEC={int(self.watchdog * 1e6)}")

    @property
    def patience(self) -> float:
        """How long the loop may sleep."""
        return self.watchdog / 4 if self.watchdog else 1.0

    def _send(self, message: str) -> None:
        if not self._address:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sender:
                sender.sendto(message.encode(), address)
        except OSError:
            pass  # it is gone, or does not listen: no reason to stop working
