"""Identities: job ids, claim tokens, and what names a process for good."""

from __future__ import annotations

import os
import socket
import time
import uuid
from dataclasses import dataclass
from pathlib import Path


def new_job_id() -> str:
    """A UUID of version 7: time first, so that neighbours in time are neighbours in the index."""
    value = (time.time_ns() // 1_000_000) << 80 | int.from_bytes(os.urandom(10))
    value = value & ~(0xF << 76) | 7 << 76
    value = value & ~(0x3 << 62) | 2 << 62
    return str(uuid.UUID(int=value))


def new_token() -> int:
    """62 random bits for one claim call. Random, because numbers repeat after a crash or failover that lost commits."""
    return int.from_bytes(os.urandom(8)) >> 2 or 1


def digest(job_id: str, token: int) -> int:
    """One 8-byte number for a held claim, so that shared memory can hold it without torn reads."""
    return (int(job_id[-17:].replace("-", ""), 16) ^ token) & 0x7FFF_FFFF_FFFF_FFFF or 1


@dataclass(frozen=True)
class Process:
    """Where a process lives: enough to tell later whether it is still there, however often its pid was used again."""

    host: str
    boot_id: str
    pid_ns: str
    pid: int
    start_ticks: int

    @classmethod
    def of(cls, pid: int) -> Process:
        """The description of a process of this machine."""
        return cls(socket.gethostname(), boot_id(), pid_namespace(), pid, start_ticks(pid) or 0)


def boot_id() -> str:
    """This boot of this machine."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return f"unknown-{socket.gethostname()}"


def pid_namespace() -> str:
    """The namespace in which pids mean something (a container has its own)."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return "none"


def start_ticks(pid: int) -> int | None:
    """When the process began, in clock ticks since boot; None where there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat[stat.rindex(")") + 2 :].split()
    return None if fields[0] in "ZX" else int(fields[19])
