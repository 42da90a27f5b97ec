"""Named places in the code where a test can make a process die, stop, fail or wait. Off unless PGQUEUE_FAILPOINTS is set.

``PGQUEUE_FAILPOINTS="transaction.fenced=kill9@3,step.after_effect=stop"``: at the third (the first) time the process comes by.

==================  =========================================================================================
``kill9``           SIGKILL to itself
``stop``            SIGSTOP to itself
``exit``            end at once, with exit code 1
``raise``           raise FailpointError
``sleep:SECONDS``   sleep
``park``            wait until somebody lets it go on
``dropconn``        shut down every connection to PostgreSQL that the process has: its next use of any fails
``dropconn:later``  go on, and do that as soon as somebody says so: when it waits inside a COMMIT, for example
==================  =========================================================================================

With ``PGQUEUE_FAILPOINTS_ONCE=DIRECTORY`` each fires once in all processes together, and the first one writes its process id into
the file ``DIRECTORY/name``. With ``PGQUEUE_FAILPOINTS_DIR=DIRECTORY`` each process fires for itself. A process that is to go on
when it is told, or to drop its connections then, needs one of the two: it waits until somebody opens the FIFO
``DIRECTORY/name.pid`` for writing (as chaos/controller.py does).
"""

from __future__ import annotations

import os
import signal
import socket
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path

_ACTIONS = ("kill9", "stop", "exit", "raise", "sleep", "park", "dropconn")


class FailpointError(RuntimeError):
    """What the action ``raise`` raises."""


def _off(name: str) -> None:
    """Nothing: what a failpoint costs in production."""


class _On:
    def __init__(self, setting: str, once: str | None, directory: str | None) -> None:
        self._actions: dict[str, tuple[str, int]] = {}
        self._passed: dict[str, int] = {}
        self._lock = threading.Lock()
        self._once = once is not None
        self._directory = Path(once or directory or os.curdir)
        for part in filter(None, setting.split(",")):
            name, _, action = part.strip().partition("=")
            action, _, nth = action.partition("@")
            if action.partition(":")[0] not in _ACTIONS:
                raise ValueError(f"unknown failpoint action {action!r}")
            if action in ("park", "dropconn:later") and not (once or directory):
                raise ValueError(f"the failpoint action {action} needs PGQUEUE_FAILPOINTS_DIR")
            self._actions[name] = (action, int(nth or 1))

    def __call__(self, name: str) -> None:
        if name not in self._actions:
            return
        action, nth = self._actions[name]
        with self._lock:
            passed = self._passed[name] = self._passed.get(name, 0) + 1
        if passed == nth and self._first(name):
            self._act(name, action)

    def _first(self, name: str) -> bool:
        if not self._once:
            return True
        try:
            with (self._directory / name).open("x") as file:
                file.write(f"{os.getpid()}\n")
        except FileExistsError:
            return False
        return True

    def _act(self, name: str, action: str) -> None:
        if action == "kill9":
            os.kill(os.getpid(), signal.SIGKILL)
        elif action == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif action == "exit":
            os._exit(1)
        elif action == "raise":
            raise FailpointError(f"failpoint {name}")
        elif action.startswith("sleep:"):
            time.sleep(float(action.removeprefix("sleep:")))
        elif action == "park":
            self._wait(name)
        elif action == "dropconn":
            _drop_connections()
        elif action == "dropconn:later":
            threading.Thread(target=self._drop_when_told, args=(name,), daemon=True).start()

    def _drop_when_told(self, name: str) -> None:
        self._wait(name)
        _drop_connections()

    def _wait(self, name: str) -> None:
        """Until somebody opens the other end of a FIFO. The kernel waits, so any thread can, and SIGKILL ends it."""
        fifo = self._directory / f"{name}.{os.getpid()}"
        os.mkfifo(fifo)
        os.close(os.open(fifo, os.O_RDONLY))
        fifo.unlink()


def _drop_connections() -> None:
    """Shut down every connected stream socket. The pipes and socket pairs by which our processes talk have no named peer: they
    stay."""
    for name in os.listdir("/dev/fd"):
        try:
            if not stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                continue
            with socket.socket(fileno=os.dup(int(name))) as connection:
                if connection.type == socket.SOCK_STREAM and connection.getpeername():
                    connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            continue  # closed since, or not connected


def _from_environment() -> Callable[[str], None]:
    setting, once, directory = (os.environ.get("PGQUEUE_FAILPOINTS" + part) for part in ("", "_ONCE", "_DIR"))
    return _On(setting, once, directory) if setting else _off


failpoint: Callable[[str], None] = _from_environment()
