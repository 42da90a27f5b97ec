"""What limits cost: the same jobs, which do nothing, without a limit and with several; and behind very many jobs of one key."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from pgqueue.bench.app import app, noop
from pgqueue.bench.harness import Bench
from pgqueue.bench.throughput import AT_ONCE
from pgqueue.functions import Call

KEYS = 10_000


def bench_limits(bench: Bench, jobs: int, workers: int, rounds: int = 3) -> dict[str, Any]:
    """In turns, the best round of each: no limit; a concurrency that is never reached; one at a time of each of 10,000 keys; the
    same behind twice as many jobs of one more key, of which no more than one can run.

    The ratios compare with no limit, and the last one with keys that have no such neighbour.
    """
    free = [noop.options(queue="free").call()] * jobs
    concurrency = [noop.options(queue="concurrency").call()] * jobs
    keys = [noop.options(queue="keys", key=str(n % KEYS)).call() for n in range(jobs)]
    hot = [noop.options(queue="keys", key="hot").call()] * (2 * jobs)
    plan: dict[str, tuple[str, list[Call[Any]], list[Call[Any]]]] = {
        "free": ("free", [], free),
        "concurrency": ("concurrency", [], concurrency),
        "keys": ("keys", [], keys),
        "behind_hot_key": ("keys", hot, keys),
    }
    best = dict.fromkeys(plan, 0.0)
    for _ in range(rounds):
        for name, case in plan.items():
            best[name] = max(best[name], per_second(bench, workers, *case))
    return {
        "jobs": jobs,
        "workers": workers,
        "rounds": rounds,
        **{f"{name}_per_s": round(rate) for name, rate in best.items()},
        "concurrency_ratio": round(best["concurrency"] / best["free"], 2),
        "keys_ratio": round(best["keys"] / best["free"], 2),
        "behind_hot_key_ratio": round(best["behind_hot_key"] / best["keys"], 2),
    }


def per_second(bench: Bench, workers: int, queue: str, before: Sequence[Call[Any]], calls: Sequence[Call[Any]]) -> float:
    """How many of these run per second, all enqueued behind those ``before``, from the moment at which all may begin."""
    bench.clear()
    enqueue(before)
    ids = enqueue(calls)
    ended = "SELECT count(*) FROM unnest(%s::uuid[]) g(id) JOIN pgqueue.outcome o ON o.job_id = g.id"
    with ExitStack() as stack:
        with bench.held_back():
            stack.enter_context(bench.workers(workers, queue))
            bench.wait_for_workers(workers)
        began = time.perf_counter()
        for some in [*(ids[at : at + 100] for at in range(0, len(ids), AT_ONCE)), ids[-100:], ids]:  # so that it looks at few
            bench.wait_until(lambda some=some: bench.one(ended, [some]) == len(some), 0.05)  # type: ignore[misc]
        return len(ids) / (time.perf_counter() - began)


def enqueue(calls: Sequence[Call[Any]]) -> list[str]:
    """Their ids."""
    return [job.id for at in range(0, len(calls), AT_ONCE) for job in app.enqueue_many(calls[at : at + AT_ONCE])]
