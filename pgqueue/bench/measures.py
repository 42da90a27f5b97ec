"""What can be measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pgqueue.bench.delays import bench_control, bench_idle, bench_latency, bench_recovery
from pgqueue.bench.harness import Bench
from pgqueue.bench.hostages import bench_hostage
from pgqueue.bench.limits import bench_limits
from pgqueue.bench.throughput import bench_noop, bench_snapshot, bench_steps, bench_transaction

MEASURES: dict[str, tuple[Callable[[Bench, int, int], dict[str, Any]], int, int]] = {
    "noop": (bench_noop, 50_000, 2),
    "steps": (bench_steps, 2_000, 4),
    "transaction": (bench_transaction, 20_000, 4),
    "latency": (bench_latency, 200, 2),
    "recovery": (bench_recovery, 100, 4),
    "hostage": (bench_hostage, 10, 2),
    "idle": (bench_idle, 20, 4),
    "control": (bench_control, 50, 2),
    "limits": (bench_limits, 50_000, 2),
    "snapshot": (bench_snapshot, 200_000, 2),
}
"""The function, and how many jobs and workers unless said otherwise."""
