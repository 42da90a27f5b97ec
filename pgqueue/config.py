"""Settings of a supervisor and its processes."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Exit(IntEnum):
    """Exit codes of the command line: a contract with service managers (see docs/reference/cli.md)."""

    OK = 0
    FAILED = 1
    USAGE = 64
    UNREACHABLE = 69
    CRASH_LOOP = 70
    GIVEN_BACK = 75
    CONFIG = 78


@dataclass(frozen=True)
class WorkSettings:
    """What ``pgqueue work`` was told."""

    target: str  # module:app
    dsn: str | None = None  # beats what the App says
    workers: int = 2
    threads: int = 1  # of each worker, for def functions
    concurrency: int = 100  # async def jobs of each worker at once
    queues: tuple[str, ...] = ()  # none: all queues of the App
    drain_timeout: float = 25.0
    burst: bool = False
    beat: float = 5.0
    lease: float = 15.0
