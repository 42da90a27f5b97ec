"""Who is to blame for the death of a worker."""

from __future__ import annotations

import signal

from pgqueue.supervisor.child import Child, Death, describe


def exit_reason(child: Child, code: int) -> str:
    """Why a worker ended, in one word for the metric."""
    if child.overdue is not None:
        return "timeout"
    if child.killed:
        return "killed"  # by its supervisor: a drain that took too long, a lost lease, a standstill, a cancel at once
    if code < 0:
        return "signal"
    if code == 0 and child.slot.left:
        return "recycled" if child.worn_out or (child.most_jobs and child.slot.done >= child.most_jobs) else "stopped"
    return "exit"


def death_of(child: Child, code: int) -> tuple[Death, str]:
    """What the housekeeper is told, and how the worker ended in words.

    A worker that dies by itself has its running jobs charged with a crash. One that we killed, only the job because of which: no
    job where it stood still, had lost its lease, or had to stop. One that has left in order holds nothing.
    """
    reason = describe(code)
    if child.overdue is not None and code == -signal.SIGKILL:
        job, step = child.overdue
        return Death(child.worker, [job], "it took longer than its time limit, and its worker was killed", step), reason
    if (child.killed and code == -signal.SIGKILL) or (code == 0 and child.slot.left):
        return Death(child.worker, [], None), reason
    if code == -signal.SIGKILL:
        reason += " (perhaps out of memory)"
    return Death(child.worker, child.slot.started, reason), reason
