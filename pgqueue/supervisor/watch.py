"""Which workers have to be killed, and which are worn out: seen in what they write into shared memory, and by the kernel."""

from __future__ import annotations

import logging
import signal
import time
from pathlib import Path

from pgqueue.config import WorkSettings
from pgqueue.supervisor.child import Child, is_stopped, tell
from pgqueue.supervisor.stacks import log_written
from pgqueue.supervisor.workers import Workers

log = logging.getLogger(__name__)

LAST_WORDS = 0.5  # seconds for the stacks of one that is about to be killed


def look_after(workers: Workers, settings: WorkSettings) -> None:
    """Kill those with a job that takes longer than it may, and those that do not get on; see who is worn out."""
    for child in workers:
        if child.killed:
            continue
        child.overdue = child.slot.overdue()
        if child.overdue is not None:
            log.warning("worker %s: a job has taken longer than it may: killing the worker", child.worker)
            workers.kill(child)
        elif why := _standstill(child, settings):
            if _has_said_last_words(child):
                log.warning("killing worker %s: %s", child.worker, why)
                log_stacks(child)
                workers.kill(child)
        else:
            child.condemned = None
            _see_whether_worn_out(child, settings.max_memory)


def _standstill(child: Child, settings: WorkSettings) -> str | None:
    """Why it does not get on; None where all is well. Waiting for the database is well, and so is a job that takes its time."""
    silent = min(child.slot.ticks.age, time.monotonic() - child.born)
    if silent > settings.hang_timeout and is_stopped(child.pid):
        return f"it was stopped more than {settings.hang_timeout:g} s ago"
    if child.slot.ticks.asking or child.has_jobs:
        return None
    if not child.booted:
        return f"it has not booted within {settings.boot_timeout:g} s" if silent > settings.boot_timeout else None
    return f"it has no job and has not moved for {settings.hang_timeout:g} s" if silent > settings.hang_timeout else None


def _has_said_last_words(child: Child) -> bool:
    """Have it write its stacks. True when it has had the time for that."""
    if child.condemned is None:
        child.condemned = time.monotonic()
        tell(child.pid, signal.SIGUSR1)
    return time.monotonic() > child.condemned + LAST_WORDS


def log_stacks(child: Child) -> str:
    """What it has written of its stacks. What it has said beside them."""
    return log_written(f"worker {child.worker}", child.stacks.take())


def _see_whether_worn_out(child: Child, most: int) -> None:
    """Note a worker that needs more memory than it should."""
    if most and child.worn_out is None:
        child.memory = private_memory(child.pid)
        if child.memory > most:
            child.worn_out = f"it needs {child.memory >> 20} MB of its own"
            if not child.slot.done:
                log.warning(
                    "worker %s needs %d MB of its own before it has run a job: raise --max-memory, which is %d MB",
                    child.worker, child.memory >> 20, most >> 20,
                )  # fmt: skip


def private_memory(pid: int) -> int:
    """Bytes that belong to this process alone. Not the resident set: what is shared with the process that it was forked from
    costs nothing, and is not freed when it ends. 0 where the kernel does not say."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))
