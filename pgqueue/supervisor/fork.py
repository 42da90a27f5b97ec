"""Forking a child that obeys its supervisor and never outlives it."""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterable

from pgqueue.supervisor.stacks import say

log = logging.getLogger(__name__)
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None

#: Signals that a terminal, a service manager or an operator sends to the whole group. Children obey their supervisor alone. A
#: handler that does nothing, not SIG_IGN: programs that a job starts must not inherit deafness.
_ABSORBED = (
    signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR2, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU,
)  # fmt: skip


def fork(run: Callable[[], int], close: Iterable[int], dies_with_us: bool, stacks: int) -> int:
    """Fork a child that does ``run()`` and exits with its value. The pid.

    ``close``: descriptors that are not for the child. ``dies_with_us``: the kernel kills it when this process dies. ``stacks``:
    where the child writes the stacks of its threads on SIGUSR1, and when it dies of a fault (see stacks.py).
    """
    parent = os.getpid()
    sys.stdout.flush()
    sys.stderr.flush()
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # no signal between fork and the child's own handlers
    try:
        pid = os.fork()
        if pid == 0:
            _child(run, close, parent if dies_with_us else 0, stacks)  # does not return
    finally:
        if os.getpid() == parent:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())
    return pid


def die_with_parent(number: int) -> None:
    """The kernel sends this signal to us when our parent dies (where it can)."""
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, number)


def adopt_orphans() -> None:
    """What the children of our children leave behind becomes ours, and not that of pid 1 (where the kernel can do that)."""
    if _libc is not None:
        _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _child(run: Callable[[], int], close: Iterable[int], parent: int, stacks: int) -> None:
    code = 70
    try:
        os.setpgid(0, 0)  # so that a job's own children can be killed with it
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        faulthandler.enable(stacks)
        faulthandler.register(signal.SIGUSR1, stacks)
        for number in _ABSORBED:
            signal.signal(number, lambda *_: None)
        if parent and _libc is not None:
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(0)
        for descriptor in close:
            os.close(descriptor)
        _read_nothing()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())
        gc.enable()
        code = run()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException as error:
        log.critical("the process ends with an internal error", exc_info=True)
        say(stacks, f"{type(error).__qualname__}: {error}".partition("\n")[0])  # of the server's errors not the DETAIL
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)  # no exit handlers that were made for another process


def _read_nothing() -> None:
    """No standard input: a background process that reads from its terminal would be stopped."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
