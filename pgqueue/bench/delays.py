"""How long it takes until an idle worker has begun a job, until a dead worker's job goes on, and until what an operator says is
in force; and what an idle host costs."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pgqueue.bench.app import app, long, mark, stamp
from pgqueue.bench.harness import Bench, percentiles
from pgqueue.client import Job


def bench_latency(bench: Bench, jobs: int, workers: int) -> dict[str, Any]:
    """From an enqueue with all workers idle to the first line of the job: from its call, and from its return (so long does the
    commit take, which is the server's)."""
    with bench.workers(workers):
        bench.wait_for_workers(workers)
        called, committed = zip(*(_pickup(0.02, 0.06) for _ in range(jobs)), strict=True)
    return {"jobs": jobs, "workers": workers, **percentiles(called), **percentiles(committed, "committed_")}


def _pickup(shortest: float, longest: float) -> tuple[float, float]:
    time.sleep(random.uniform(shortest, longest))  # noqa: S311 -- so that they are idle, and we meet no rhythm
    called = time.time()
    job = stamp.enqueue()
    committed = time.time()
    begun = job.result(timeout=30)
    return begun - called, begun - committed


def bench_idle(bench: Bench, jobs: int, workers: int, seconds: float = 20.0) -> dict[str, Any]:
    """What a host costs that has nothing to do; then, from an enqueue after a second of that to the first line of the job."""
    with bench.workers(workers) as supervisor:
        bench.wait_for_workers(workers)
        time.sleep(min(3.0, seconds))  # until they are idle, and what they did before is counted
        before, cpu_before, began = bench.counts(), cpu_seconds(supervisor), time.monotonic()
        time.sleep(seconds)
        spent, cpu, took = bench.counts().since(before), cpu_seconds(supervisor), time.monotonic() - began
        waits = [_pickup(0.5, 1.5)[0] for _ in range(jobs)]
    return {
        "workers": workers,
        "seconds": round(took, 1),
        "statements_per_s": None if spent.statements is None else round(spent.statements / took, 1),
        "commits_per_s": round(spent.commits / took, 1),
        "cpu_s_per_minute": None if cpu is None or cpu_before is None else round(60 * (cpu - cpu_before) / took, 2),
        "jobs": jobs,
        **percentiles(waits, "pickup_"),
    }


def cpu_seconds(pid: int) -> float | None:
    """The processor time that a process and those under it have used; None where there is no /proc that knows."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    own = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return own + sum(cpu_seconds(int(child)) or 0.0 for child in children)


def bench_recovery(bench: Bench, kills: int, workers: int) -> dict[str, Any]:
    """From the SIGKILL of a worker to the next run of the job that it was running."""
    runs = "SELECT count(*) FROM mark WHERE job = %s"
    running = "SELECT pid, extract(epoch FROM clock_timestamp())::float8 FROM mark WHERE job = %s"
    waits = []
    with bench.workers(workers):
        bench.wait_for_workers(workers)
        for _ in range(kills):
            job = mark.enqueue()
            bench.wait_until(lambda id=job.id: bench.one(runs, [id]) == 1)  # type: ignore[misc]
            pid, killed = bench.rows(running, [job.id])[0]
            os.kill(pid, signal.SIGKILL)
            bench.wait_until(lambda id=job.id: bench.one(runs, [id]) == 2)  # type: ignore[misc]
            waits.append(bench.one("SELECT extract(epoch FROM max(at))::float8 FROM mark WHERE job = %s", [job.id]) - killed)
            job.result(timeout=30)
    return {"kills": kills, "workers": workers, **percentiles(waits)}


def bench_control(bench: Bench, changes: int, workers: int) -> dict[str, Any]:
    """From ``resume``, and from a limit raised from 1 to 2 while a job runs, to the first line of the job that may begin then."""
    queue = "concurrency"
    resumed, raised = [], []
    with bench.workers(workers, queue):
        bench.wait_for_workers(workers)
        for _ in range(changes):
            app.pause(queue)
            job = stamp.options(queue=queue).enqueue()
            resumed.append(_begun_after(lambda: app.resume(queue), job))
            app.limit(queue, concurrency=1)
            before = long.options(queue=queue).enqueue(0.3, False)
            bench.wait_until(lambda id=before.id: bench.one("SELECT count(*) FROM pgqueue.running WHERE job_id = %s", [id]) == 1)  # type: ignore[misc]
            job = stamp.options(queue=queue).enqueue()
            raised.append(_begun_after(lambda: app.limit(queue, concurrency=2), job))
            before.result(timeout=30)
    return {"changes": changes, "workers": workers, **percentiles(resumed, "resume_"), **percentiles(raised, "raise_")}


def _begun_after(change: Callable[[], Any], job: Job[float]) -> float:
    time.sleep(random.uniform(0.02, 0.2))  # noqa: S311 -- so that they have looked in vain, and we meet no rhythm
    said = time.time()
    change()
    return job.result(timeout=30) - said
