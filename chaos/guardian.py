"""Ends what a run of the suite has started, where that was killed and could not do it itself. chaos/suite.py starts it.

It is a process of its own, in a session of its own, and waits for the end of its standard input: the kernel closes the other end
when the suite dies, of whatever. All processes of a run carry its name in their environment, by which they are found.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from chaos.leftovers import clean
from chaos.processes import ROOT, send_signal, state

MARK = "CHAOS_RUN"  # not PGQUEUE_...: what begins so is a setting, and this is none
DONE = "done"
PATIENCE = 10.0  # seconds until processes have ended that were told to


class Guardian:
    """In the process of the suite. ``place``: where the servers of this run are; ``dsn``: or the server of somebody else."""

    def __init__(self, run: str, dsn: str | None, place: Path | None) -> None:
        self._what = json.dumps({"run": run, "dsn": dsn, "place": str(place) if place else None})
        self._run = run

    def __enter__(self) -> Guardian:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "chaos.guardian"], cwd=ROOT, start_new_session=True, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self._tell(self._what)  # on no command line: the DSN may have a password
        os.environ[MARK] = self._run
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        os.environ.pop(MARK, None)
        self._tell(DONE)
        self._process.communicate(timeout=PATIENCE)

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()


def main() -> None:
    """Until the suite has ended."""
    what = json.loads(sys.stdin.readline())
    if DONE in sys.stdin.read():
        return
    _end(lambda pid: f"{MARK}={what['run']}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"), signal.SIGKILL)
    if what["place"]:
        for number in (signal.SIGQUIT, signal.SIGKILL):  # of PostgreSQL: an immediate stop
            _end(lambda pid: Path(f"/proc/{pid}/cwd").readlink().is_relative_to(what["place"]), number)
        subprocess.run(["umount", "-l", f"{what['place']}/small"], stderr=subprocess.DEVNULL, check=False)  # F11
        shutil.rmtree(what["place"], ignore_errors=True)
    if what["dsn"]:
        clean(what["dsn"])


def _end(meant: Callable[[int], bool], number: signal.Signals) -> None:
    """Send it to all processes that are meant, also to those that they start meanwhile, until there is none."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until and (found := [pid for pid in _others() if _is(meant, pid)]):
        for pid in found:
            send_signal(pid, number)
        time.sleep(0.1)


def _others() -> list[int]:
    return [
        int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid() and state(int(name)) not in "ZX"
    ]


def _is(meant: Callable[[int], bool], pid: int) -> bool:
    try:
        return meant(pid)
    except OSError:  # it has ended, or is another user's
        return False


if __name__ == "__main__":
    main()
