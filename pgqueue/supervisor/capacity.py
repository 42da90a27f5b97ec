"""How much of the machine is ours: what affinity and control groups leave of it. Read below a root: tests give it trees."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator
from pathlib import Path

log = logging.getLogger(__name__)
ROOT = Path("/")


def processors(root: Path = ROOT) -> int:
    """How many processors this process may keep busy; at least 1."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [*_quotas_v2(root), *_quotas_v1(root)]
    return max(1, min([affinity, *(math.ceil(quota) for quota in quotas)]))


def memory_limit(root: Path = ROOT) -> int | None:
    """Bytes that all our processes together may use; None: as many as there are."""
    texts = [*_read(root, "", "memory.max"), *_read(root, "memory", "memory.limit_in_bytes")]
    limits = [int(text) for text in texts if text.isdigit()]
    return min((limit for limit in limits if limit < 1 << 60), default=None)  # version 1 writes a huge number for "none"


def warn_of_memory(workers: int, each: int) -> None:
    """Say so where workers may grow until the kernel kills one of us, or all."""
    limit = memory_limit()
    if limit is not None and workers * each > limit:
        log.warning(
            "%d workers of %d MB do not fit into the %d MB of the control group: the kernel may kill any of them",
            workers, each >> 20, limit >> 20,
        )  # fmt: skip


def _quotas_v2(root: Path) -> Iterator[float]:
    for text in _read(root, "", "cpu.max"):
        quota, _, period = text.partition(" ")
        if quota.isdigit() and period.isdigit():
            yield int(quota) / int(period)


def _quotas_v1(root: Path) -> Iterator[float]:
    quotas, periods = _read(root, "cpu", "cpu.cfs_quota_us"), _read(root, "cpu", "cpu.cfs_period_us")
    for quota, period in zip(quotas, periods, strict=False):
        if quota.isdigit() and period.isdigit() and int(period):
            yield int(quota) / int(period)


def _read(root: Path, controller: str, name: str) -> list[str]:
    """This file of our control group and of all around it: each limits us. ``controller``: of version 1; empty: version 2.

    Inside of a container the path may be one of the host, that is not there: then the root of what is mounted is ours."""
    found = []
    for mount, path in _groups(root, controller):
        group = mount / path
        for place in (group, *group.parents):
            if not place.is_relative_to(mount):
                break
            try:
                found.append((place / name).read_text().strip())
            except OSError:
                continue
        if found:
            break
    return found


def _groups(root: Path, controller: str) -> Iterator[tuple[Path, str]]:
    """Where the files of our group may be: the mount, and the path below it."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    mounts = root / "sys/fs/cgroup"
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            for mount in (controllers, controller) if controller else ("", "unified"):
                yield mounts / mount, path.lstrip("/")
