"""What a worker's jobs have started, and what has left the worker's process group: it comes to us when the worker dies."""

from __future__ import annotations

import os
from pathlib import Path

from pgqueue.supervisor.child import kill_group


class Orphans:
    """Children of ours that we did not fork. What comes to us at the moment of a worker's death was started by its jobs, and
    goes with them. What came at another time detached itself on purpose, or (to pid 1) came from elsewhere: it is left alone."""

    def __init__(self) -> None:
        self._known = _children()

    def look(self) -> None:
        """Remember who is there. Called before each sleep of the loop, after all forks."""
        self._known = _children()

    def kill_new(self) -> None:
        """A worker has died since then."""
        for pid in _children() - self._known:
            kill_group(pid)


def _children() -> set[int]:
    """Our child processes; none where the kernel does not list them."""
    try:
        return set(map(int, Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()))
    except OSError:
        return set()
