"""The benchmarks. Each takes a Bench and returns its figures."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any

import psycopg

from pgqueue.bench.app import app, mark, noop, stamp, steps, update
from pgqueue.bench.harness import Bench, percentiles
from pgqueue.functions import Call


def drain(bench: Bench, calls: Sequence[Call[Any]], workers: int) -> dict[str, Any]:
    """Enqueue all, then run them with so many workers: from the first job's start until the last result is durable."""
    began = time.perf_counter()
    for at in range(0, len(calls), 5000):
        app.enqueue_many(calls[at : at + 5000])
    enqueued = time.perf_counter() - began
    total = len(calls)
    before = bench.counters()
    with bench.workers(workers):
        bench.wait_until(lambda: bool(bench.one("SELECT true FROM pgqueue.running LIMIT 1")))
        began = time.perf_counter()
        bench.wait_until(lambda: bench.one("SELECT count(*) FROM pgqueue.outcome") >= total, pause=0.02)
        took = time.perf_counter() - began
    after = bench.counters()
    return {
        "jobs": total,
        "workers": workers,
        "enqueued_per_s": round(total / enqueued),
        "jobs_per_s": round(total / took),
        "commits_per_job": round((after["commits"] - before["commits"]) / total, 3),
        "wal_bytes_per_job": round((after["wal_bytes"] - before["wal_bytes"]) / total),
    }


def bench_noop(bench: Bench, jobs: int, workers: int) -> dict[str, Any]:
    """Jobs that do nothing."""
    return drain(bench, [noop.call()] * jobs, workers)


def bench_steps(bench: Bench, jobs: int, workers: int) -> dict[str, Any]:
    """Workflows of ten steps."""
    return drain(bench, [steps.call()] * jobs, workers)


def bench_transaction(bench: Bench, jobs: int, workers: int) -> dict[str, Any]:
    """Jobs that are one transaction with one UPDATE, beside bare transactions with the same UPDATE."""
    bare = bare_updates(bench, jobs, workers)
    figures = drain(bench, [update.call(i % 1000 + 1) for i in range(jobs)], workers)
    return {**figures, "bare_per_s": round(bare), "ratio_to_bare": round(figures["jobs_per_s"] / bare, 2)}


def bare_updates(bench: Bench, count: int, processes: int) -> float:
    """Transactions per second of plain psycopg processes that do what bench.update does."""

    def work() -> None:
        with psycopg.connect(bench.dsn) as conn:
            for i in range(count // processes):
                with conn.transaction():
                    conn.execute("UPDATE counter SET n = n + 1 WHERE id = %s", (i % 1000 + 1,))

    began = time.perf_counter()
    in_processes(work, processes)
    return count / (time.perf_counter() - began)


def in_processes(work: Callable[[], None], count: int) -> None:
    """Run it in so many forked processes and wait."""
    pids = []
    for _ in range(count):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                work()
                code = 0
            finally:
                os._exit(code)
        pids.append(pid)
    for pid in pids:
        os.waitpid(pid, 0)


def bench_latency(bench: Bench, jobs: int, workers: int) -> dict[str, Any]:
    """From an enqueue with all workers idle to the first line of the job."""
    waits = []
    with bench.workers(workers):
        bench.wait_for_workers(workers)
        for _ in range(jobs):
            time.sleep(random.uniform(0.02, 0.06))  # noqa: S311 -- so that they are idle, and we meet no rhythm
            began = time.time()
            job = stamp.enqueue()
            waits.append(job.result(timeout=30) - began)
    return {"jobs": jobs, "workers": workers, **percentiles(waits)}


def bench_recovery(bench: Bench, kills: int, workers: int) -> dict[str, Any]:
    """From the SIGKILL of a worker to the next run of the job that it was running."""
    waits = []
    last = "SELECT extract(epoch FROM max(at))::float8 FROM mark WHERE job = %s"
    with bench.workers(workers):
        bench.wait_for_workers(workers)
        for _ in range(kills):
            job = mark.enqueue()
            bench.wait_until(lambda job=job: bench.one("SELECT count(*) FROM mark WHERE job = %s", [job.id]) == 1, 30)  # type: ignore[misc]
            pid = bench.one("SELECT pid FROM mark WHERE job = %s", [job.id])
            killed = bench.one("SELECT extract(epoch FROM clock_timestamp())::float8")
            os.kill(pid, signal.SIGKILL)
            bench.wait_until(lambda job=job: bench.one("SELECT count(*) FROM mark WHERE job = %s", [job.id]) == 2, 60)  # type: ignore[misc]
            waits.append(bench.one(last, [job.id]) - killed)
            job.result(timeout=30)
    return {"kills": kills, "workers": workers, **percentiles(waits)}


MEASURES: dict[str, tuple[Callable[[Bench, int, int], dict[str, Any]], int, int]] = {
    "noop": (bench_noop, 50_000, 2),
    "steps": (bench_steps, 2_000, 4),
    "transaction": (bench_transaction, 10_000, 4),
    "latency": (bench_latency, 200, 2),
    "recovery": (bench_recovery, 100, 4),
}
"""What can be measured: the function, and how many jobs and workers unless said otherwise."""
