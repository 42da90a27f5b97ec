"""Waiting for descriptors, and having enough of them. Used by whoever waits: supervisor, housekeeper, workers, and results.py.

Not select(): it refuses the number 1024 and what is above, which a supervisor of 250 workers has, and so has a busy web server.
"""

from __future__ import annotations

import math
import resource
import select
from collections.abc import Iterable

from pgqueue.errors import Configuration


def readable(descriptors: Iterable[int], seconds: float) -> list[int]:
    """Those of them that have something to read, or whose other end is gone; after so many seconds none."""
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    return [descriptor for descriptor, _ in poll.poll(math.ceil(1000 * max(0.0, seconds)))]


def allow_descriptors(count: int, what: str) -> None:
    """Let this process open so many, if it may not yet. Configuration where it must not."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if resource.RLIM_INFINITY != soft < count:
        if resource.RLIM_INFINITY != hard < count:
            raise Configuration(
                f"{what} need {count} file descriptors, and the limit is {hard}: "
                f"use fewer, or raise it (ulimit -Hn {count}, LimitNOFILE={count} of systemd)"
            )
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
