"""Named places in the code where a test can make a process die, stop, fail or wait. Off unless PGQUEUE_FAILPOINTS is set.

``PGQUEUE_FAILPOINTS="transaction.fenced=kill9@3,step.after_effect=stop"``: at the third (the first) time the process comes
by. Actions: ``kill9``, ``stop`` (SIGSTOP itself), ``raise``, ``sleep:SECONDS``, ``exit``. With
``PGQUEUE_FAILPOINTS_ONCE=DIRECTORY`` each fires once in all processes together: the first one leaves a file there.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path


class FailpointError(RuntimeError):
    """What the action ``raise`` raises."""


def _off(name: str) -> None:
    """Nothing: what a failpoint costs in production."""


class _On:
    def __init__(self, setting: str, once: str | None) -> None:
        self._actions: dict[str, tuple[str, int]] = {}
        self._passed: dict[str, int] = {}
        self._once = Path(once) if once else None
        for part in filter(None, setting.split(",")):
            name, _, action = part.partition("=")
            action, _, nth = action.partition("@")
            self._actions[name.strip()] = (action.strip(), int(nth or 1))

    def __call__(self, name: str) -> None:
        if name not in self._actions:
            return
        action, nth = self._actions[name]
        self._passed[name] = self._passed.get(name, 0) + 1
        if self._passed[name] == nth and self._first(name):
            _act(action)

    def _first(self, name: str) -> bool:
        if self._once is None:
            return True
        try:
            (self._once / name).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


def _act(action: str) -> None:
    if action == "kill9":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif action == "exit":
        os._exit(1)
    elif action == "raise":
        raise FailpointError("failpoint")
    elif action.startswith("sleep:"):
        time.sleep(float(action.removeprefix("sleep:")))
    else:
        raise ValueError(f"unknown failpoint action {action!r}")


def _from_environment() -> Callable[[str], None]:
    setting = os.environ.get("PGQUEUE_FAILPOINTS")
    return _On(setting, os.environ.get("PGQUEUE_FAILPOINTS_ONCE")) if setting else _off


failpoint: Callable[[str], None] = _from_environment()
