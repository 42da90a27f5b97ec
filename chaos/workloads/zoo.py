"""Jobs that are bad for their process, on the App of the town. ``EXPECTED`` says how each has to end."""

from __future__ import annotations

import ctypes
import os
import re
import resource
import signal
import sys
import time
from pathlib import Path

from chaos.workloads.bank import app, write_outside
from pgqueue import Retry

ONCE = Retry(1)

#: Status, and what its error has to say: all of it. Of those that kill their worker, how that dies.
EXPECTED: dict[str, tuple[str, tuple[str, ...], str]] = {
    "segfault": ("failed", (), "killed by SIGSEGV"),
    "leave": ("failed", (), "exit code 3"),
    "shoot_itself": ("failed", (), "killed by SIGKILL"),
    "eat_memory": ("failed", ("MemoryError: ",), ""),
    "recurse": ("failed", ("RecursionError: ", "recursion depth"), ""),
    "loop_in_c": ("failed", ("StepTimeout: ", "loop_in_c took longer than 1 s"), ""),
    "multiply": ("failed", ("StepTimeout: ", "multiply took longer than 1 s"), ""),
    "breed": ("succeeded", (), ""),
    "flood": ("succeeded", (), ""),
    "ignore_term": ("succeeded", (), ""),
}


@app.step(queue="zoo", retry=ONCE)
def segfault() -> None:
    """The process is gone, with signal 11."""
    ctypes.string_at(0)


@app.step(queue="zoo", retry=ONCE)
def leave() -> None:
    os._exit(3)


@app.step(queue="zoo", retry=ONCE)
def shoot_itself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@app.step(queue="zoo", retry=ONCE, max_crashes=1000)
def eat_memory() -> int:
    """Memory is refused. (A real out-of-memory kill is a SIGKILL, which others of the zoo do to themselves.)"""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (16 << 20), before[1]))
    try:
        return len(bytearray(64 << 20))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@app.step(queue="zoo", retry=ONCE, max_crashes=1000)
def recurse() -> int:
    return _deeper(0)


def _deeper(n: int) -> int:
    return _deeper(n + 1) + 1


@app.step(queue="zoo", retry=ONCE, timeout="1s", max_crashes=1000)
def loop_in_c() -> bool:
    """Never lets another thread run, nor a signal handler."""
    return loop()


def loop() -> bool:
    return re.fullmatch(r"(a+)+", "a" * 64 + "b") is None


@app.step(queue="zoo", retry=ONCE, timeout="1s", max_crashes=1000)
def multiply() -> bool:
    """A fork bomb, of 32 processes: all of them spin, and none lets a signal handler run."""
    for _ in range(5):
        os.fork()
    return loop()


@app.step(queue="zoo", retry=ONCE, max_crashes=1000)
def breed() -> int:
    """Children that would stay for minutes, and are nobody's business."""
    write_outside("effect")
    for _ in range(10):
        if os.fork() == 0:
            os.execvp("sleep", ["sleep", "60"])
    return 10


@app.step(queue="zoo", retry=ONCE, max_crashes=1000)
def flood() -> int:
    """A few megabytes of output."""
    write_outside("effect")
    for _ in range(2000):
        sys.stdout.write("x" * 1000 + "\n")
    sys.stdout.flush()
    return 2000


@app.step(queue="zoo", retry=ONCE, max_crashes=1000)
def ignore_term() -> str:
    """It is told to end, and does not: also a drain that begins now is not heard."""
    write_outside("effect")
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.05)
    finally:
        signal.signal(signal.SIGTERM, before)
    return "ignored"
