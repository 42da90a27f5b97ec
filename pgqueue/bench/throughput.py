"""How many jobs a second, and at what cost: jobs that all wait already are run until the last result is durable."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from multiprocessing.synchronize import Barrier
from typing import Any

import psycopg

from pgqueue.bench.app import COUNTERS, UPDATE, app, noop, steps, update
from pgqueue.bench.harness import NAME, Bench, percentiles
from pgqueue.database import connect
from pgqueue.functions import Call

AT_ONCE = 5000  # jobs enqueued in one transaction
SLICES = 10


def drain(bench: Bench, calls: Sequence[Call[Any]], workers: int) -> dict[str, Any]:
    """Enqueue all, then run them with so many workers: from the moment at which all of them may begin, until the last result is
    durable.

    The counts hold everything that the workers did from their start to their end.
    """
    total = len(calls)
    began = time.perf_counter()
    for at in range(0, total, AT_ONCE):
        app.enqueue_many(calls[at : at + AT_ONCE])
    enqueued = time.perf_counter() - began
    bench.wait_until_alone()
    ended, before = bench.ended(), bench.counts()
    with ExitStack() as stack:
        with bench.held_back():
            stack.enter_context(bench.workers(workers))
            bench.wait_for_workers(workers)
        began = time.perf_counter()
        bench.wait_for_ended(total, ended)
        took = time.perf_counter() - began
    bench.wait_until_alone()
    return {
        "jobs": total,
        "workers": workers,
        "enqueued_per_s": round(total / enqueued),
        "jobs_per_s": round(total / took),
        **bench.counts().since(before).per_job(total),
    }


def bench_noop(bench: Bench, jobs: int, workers: int) -> dict[str, Any]:
    """Jobs that do nothing."""
    return drain(bench, [noop.call()] * jobs, workers)


def bench_steps(bench: Bench, jobs: int, workers: int) -> dict[str, Any]:
    """Workflows of ten steps. p50 and p99: from one checkpoint of a workflow to its next."""
    figures = drain(bench, [steps.call()] * jobs, workers)
    return {**figures, "steps_per_s": 10 * figures["jobs_per_s"], **percentiles(_gaps(bench, _CHECKPOINTS), "step_")}


def bench_transaction(bench: Bench, jobs: int, workers: int, rounds: int = 5) -> dict[str, Any]:
    """Jobs that are one transaction with one UPDATE, in turns with bare transactions with the same UPDATE: the best round of
    each. p50 and p99: from the commit of one job to that of the next one in the same worker."""
    each = max(workers, jobs // rounds)
    calls = [update.call(id) for id in _ids(each)]
    bare, ours = [], []
    for _ in range(rounds):
        bare.append(bare_updates(bench, each, workers))
        ours.append(drain(bench, calls, workers))
    best = max(ours, key=lambda figures: figures["jobs_per_s"])
    return {
        **best,
        "jobs": rounds * each,
        "rounds": rounds,
        "bare_per_s": round(max(bare)),
        "ratio_to_bare": round(best["jobs_per_s"] / max(bare), 2),
        **percentiles(_gaps(bench, _OUTCOMES), "transaction_"),
    }


def bench_snapshot(bench: Bench, jobs: int, workers: int) -> dict[str, Any]:
    """Jobs that do nothing, while another session holds a snapshot: what claimed jobs leave behind cannot be cleared away. The
    rate in each tenth of the jobs, by the moments at which they were settled."""
    with _held_snapshot(bench):
        figures = drain(bench, [noop.call()] * jobs, workers)
    moments = [row[0] for row in bench.rows(_SLICES, [SLICES])]
    rates = [round(jobs / SLICES / (end - begin)) if end > begin else None for begin, end in pairwise(moments)]
    first, last = rates[0], rates[-1]
    return {**figures, "slices_per_s": rates, "last_to_first": round(last / first, 2) if first and last else None}


# ----------------------------------------------------------------------------------------------------- comparing


def bare_updates(bench: Bench, count: int, processes: int) -> float:
    """Transactions per second of plain psycopg processes that do what bench.update does."""
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(processes + 1)
    # Each takes every n-th row, so that they seldom wait for each other's locks: jobs do not either.
    shares = [_ids(count)[first::processes] for first in range(processes)]
    children = [context.Process(target=_update_bare, args=(bench.dsn, share, barrier)) for share in shares]
    for child in children:
        child.start()
    barrier.wait(60)
    began = time.perf_counter()
    for child in children:
        child.join()
    return count / (time.perf_counter() - began)


def _update_bare(dsn: str, ids: Sequence[int], barrier: Barrier) -> None:
    with psycopg.connect(dsn, application_name="pgqueue:bare") as conn:
        barrier.wait(60)
        for id in ids:
            conn.execute(UPDATE, (id,))
            conn.commit()


def _ids(count: int) -> list[int]:
    return [i % COUNTERS + 1 for i in range(count)]


# ----------------------------------------------------------------------------------------------- what the tables say

_CHECKPOINTS = "SELECT created_at - lag(created_at) OVER (PARTITION BY job_id ORDER BY seq) FROM pgqueue.checkpoint"
_OUTCOMES = "SELECT finished_at - lag(finished_at) OVER (PARTITION BY claim ORDER BY finished_at) FROM pgqueue.outcome"
_SLICES = """
SELECT extract(epoch FROM min(finished_at))::float8 AS moment FROM pgqueue.outcome
UNION ALL
SELECT extract(epoch FROM max(finished_at))::float8
  FROM (SELECT finished_at, ntile(%s) OVER (ORDER BY finished_at) AS slice FROM pgqueue.outcome) o GROUP BY slice
ORDER BY moment
"""


def _gaps(bench: Bench, query: str) -> list[float]:
    return [gap.total_seconds() for (gap,) in bench.rows(query) if gap is not None]


@contextmanager
def _held_snapshot(bench: Bench) -> Iterator[None]:
    with connect(bench.dsn, NAME) as conn:
        conn.execute("SET idle_in_transaction_session_timeout = 0")
        conn.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        conn.execute("SELECT count(*) FROM pgqueue.job")
        yield
