"""Worker processes that ``crash_matrix`` kills. Each is a fork of the test's process, so that what the test has replaced (a
mail server, a clock) is replaced there too; and each is gone afterwards, with whatever it had in its memory."""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import NoReturn

import msgspec

from pgqueue.testing.boundaries import Boundary, Watch

Passed = list[tuple[Boundary, str]]
STANDS = b"!"  # what a process says that stands before the COMMIT in which it is to die
Strike = Callable[[int, Callable[[], None]], None]


class Said(msgspec.Struct):
    """What a process says when it ends by itself."""

    passed: Passed
    raised: str | None = None


def live(work: Callable[[], object], target: Boundary | None, before: Passed, strike: Strike) -> Passed | None:
    """Run this in a process, and kill that at ``target``. What it came by, and with which job; None: it was killed. ``before``:
    what others came by before it, because boundaries are counted from the beginning.

    Where the target is inside a COMMIT, ``strike(pid, let_go)`` is called when the process stands in front of it, and kills it
    there. RuntimeError with the traceback where ``work`` raises.
    """
    answer, to_answer = os.pipe()
    go, to_go = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads of the test's: the fork uses nothing of theirs
        pid = os.fork()
    if pid == 0:
        os.close(answer)
        os.close(to_go)
        _be(work, Watch(target, before), to_answer, go)
    os.close(to_answer)
    os.close(go)
    try:
        with os.fdopen(answer, "rb") as answers:
            said = answers.read(1)
            stood = said == STANDS
            if stood:
                strike(pid, lambda: os.close(to_go))
                to_go = -1
            said = answers.read() if stood else said + answers.read()
    finally:
        if to_go >= 0:
            os.close(to_go)
        _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        if target is None:
            raise RuntimeError(f"the code under test has ended its process with signal {os.WTERMSIG(status)}")
        return None
    end = msgspec.json.decode(said, type=Said)
    if end.raised is not None:
        raise RuntimeError(f"in the worker process:\n{end.raised}")
    if stood:
        raise RuntimeError(
            f"this run sent no COMMIT after {target}: does the workflow decide by something that is no checkpoint?"
        )
    return end.passed


def _be(work: Callable[[], object], watch: Watch, answer: int, go: int) -> NoReturn:
    """The process."""

    def stand_before_commit() -> None:
        os.write(answer, STANDS)
        os.read(go, 1)

    said = Said(watch.passed)
    try:
        watch.install(stand_before_commit)
        work()
    except BaseException:  # noqa: BLE001 -- told to the parent
        said.raised = traceback.format_exc()
    finally:
        with os.fdopen(answer, "wb") as file:
            file.write(msgspec.json.encode(said))
        os._exit(0)
