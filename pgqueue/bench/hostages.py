"""What a long job does to its neighbours: to the short ones that wait behind it, and to the result of the one before it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from pgqueue.bench.app import app, long, short
from pgqueue.bench.harness import Bench, percentiles

AHEAD, BEHIND = 1000, 500  # short jobs around a long one: enough that workers claim many at once
LOOKS = 0.3  # seconds during which we look what else the long job's worker holds


def bench_hostage(bench: Bench, jobs: int, workers: int, seconds: float = 2.0) -> dict[str, Any]:
    """Short jobs that a worker holds while it runs a long one: how long after the start of that they begin, elsewhere. And
    from the start of the job just before the long one to its durable result. Long jobs that sleep, and ones that keep the GIL.
    """
    figures: dict[str, Any] = {"jobs": jobs, "workers": workers, "long_s": seconds}
    with bench.workers(workers):
        for kind, keeps_gil in (("sleep", False), ("gil", True)):
            rounds = [_round(bench, seconds, keeps_gil) for _ in range(jobs)]
            waits = [wait for one in rounds for wait in one.waits]
            results = [one.result for one in rounds if one.result is not None]
            figures |= {f"{kind}_hostages": len(waits), **percentiles(waits, f"{kind}_begun_")}
            figures |= {f"{kind}_results": len(results), **percentiles(results, f"{kind}_durable_")}
    return figures


@dataclass(frozen=True)
class _Round:
    waits: list[float]  # of each hostage: from the start of the long job to its own
    result: float | None  # of the job before: from its start to its durable result; None: it ran in another worker


def _round(bench: Bench, seconds: float, keeps_gil: bool) -> _Round:
    calls = [*[short.call()] * AHEAD, long.call(seconds, keeps_gil), *[short.call()] * BEHIND]
    jobs = app.enqueue_many(calls)
    ids = [job.id for job in jobs]
    before, slow = ids[AHEAD - 1], ids[AHEAD]
    durable_at, held = _watch(bench, before, slow)
    bench.wait_until(lambda: bench.one("SELECT count(*) FROM pgqueue.outcome WHERE job_id = ANY(%s::uuid[])", [ids]) == len(ids))
    began = {row[0]: (row[1], row[2]) for row in bench.rows(_BEGAN, [ids])}
    at, pid = began[slow]
    return _Round(
        [began[id][0] - at for id in held if began[id][0] > at],
        durable_at - began[before][0] if began[before][1] == pid else None,
    )


def _watch(bench: Bench, before: str, slow: str) -> tuple[float, set[str]]:
    """When the result of one job was durable, and which jobs the long one's worker held when that began."""
    durable_at: float | None = None
    held: set[str] = set()
    since = time.monotonic()
    next_look, last_look = since, float("inf")
    while durable_at is None or next_look < last_look:
        if durable_at is None and bench.one("SELECT true FROM pgqueue.outcome WHERE job_id = %s::uuid", [before]):
            durable_at = time.time()
        if next_look < min(time.monotonic(), last_look):
            held.update(row[0] for row in bench.rows(_HELD, [slow]))
            next_look = time.monotonic() + 0.02
            if held:
                last_look = min(last_look, next_look + LOOKS)
        bench.check_progress(since)
        time.sleep(0.001)
    return durable_at, held


_HELD = "SELECT job_id FROM pgqueue.running WHERE worker = (SELECT worker FROM pgqueue.running WHERE job_id = %s::uuid)"
_BEGAN = """
SELECT job_id, (result::json ->> 0)::float8, (result::json ->> 1)::integer FROM pgqueue.outcome WHERE job_id = ANY(%s::uuid[])
"""
