"""Very many scheduled jobs: nobody pays for them until they are due, and then they come. The large number: ``make limits``."""

from __future__ import annotations

import json
import time
from typing import Any

import psycopg
import pytest

from chaos.workloads import limited
from pgqueue import protocol
from pgqueue.database import run
from tests.support import Workers, states, violations, wait_for
from tests.test_plans import buffers
from tests.test_scale import figures

Connection = psycopg.Connection[Any]
APP = "chaos.workloads.limited:app"
AT_ONCE = 10_000
#: Jobs as they would be enqueued one by one: %(each)s apart, the first one after %(first)s.
MANY = """
SELECT count(*) FROM pgqueue.enqueue_workflows((
    SELECT json_agg(json_build_object('name', 'chaos.workloads.limited.work', 'queue', 'free', 'input', json_build_object('n', n),
                                      'run_at', %(first)s::timestamptz + n * %(each)s * interval '1 s'))
      FROM generate_series(%(begin)s::bigint, %(end)s::bigint - 1) n))
"""


@pytest.fixture
def db(dsn: str, conn: Connection, monkeypatch: pytest.MonkeyPatch) -> Connection:
    monkeypatch.setenv("PGQUEUE_DSN", dsn)
    run(conn, limited.app.registration())
    return conn


def enqueue(db: Connection, jobs: int, first: str, each: float = 0.0) -> None:
    for begin in range(0, jobs, AT_ONCE):
        db.execute(MANY, {"first": first, "each": each, "begin": begin, "end": min(begin + AT_ONCE, jobs)})


def one(db: Connection, query: str) -> Any:
    row = db.execute(query.encode()).fetchone()
    assert row is not None
    return row[0]


def drained(db: Connection, jobs: int, rounds: int) -> int:
    """Jobs that do nothing, per second, in the best of some rounds."""
    best = 0.0
    for _ in range(rounds):
        before = one(db, "SELECT count(*) FROM pgqueue.outcome")
        with_all = before + jobs
        db.execute("UPDATE pgqueue.queue SET paused = true")
        enqueue(db, jobs, "2000-01-01")
        db.execute("UPDATE pgqueue.queue SET paused = false")
        db.execute("SELECT pgqueue.wake_idle()")
        began = time.monotonic()
        wait_for(lambda: one(db, "SELECT count(*) FROM pgqueue.outcome") == with_all, 300)  # noqa: B023
        best = max(best, jobs / (time.monotonic() - began))
    return round(best)


@pytest.mark.parametrize("many", [3000, pytest.param(1_000_000, marks=[pytest.mark.limits, pytest.mark.timeout(1800)])])
def test_scheduled_jobs_cost_nothing_and_come_when_they_are_due(db: Connection, workers: Workers, many: int) -> None:
    full = many > 100_000
    noops, rounds, due = (20_000, 3, 60_000) if full else (1000, 1, 1000)
    work = workers.start(APP, "-w", "2", "-q", "free")
    drained(db, noops, 1)  # each worker has its connections then
    without = {**figures(db, work), "noops_per_s": drained(db, noops, rounds)}
    enqueue(db, many, "2100-01-01", 0.01)
    db.execute("VACUUM ANALYZE")
    beside = {**figures(db, work), "noops_per_s": drained(db, noops, rounds), "promote_buffers": look(db)}
    print("\n" + json.dumps({"without": without, f"with {many} scheduled": beside}, indent=2))
    assert beside["promote_buffers"] < 100, "a look at what is due reads what is due"
    assert beside["pss_mib"] < without["pss_mib"] + 40
    if full:
        assert beside["noops_per_s"] >= 0.8 * without["noops_per_s"]

    first, latest = one(db, "SELECT now() + interval '3 s'"), 0.0
    before = one(db, "SELECT count(*) FROM pgqueue.outcome")
    enqueue(db, due, first, 1 / 3000)
    while (left := overdue(db))[0]:
        latest = max(latest, left[1])
        time.sleep(0.2)
    print(f"{due} were due, 3,000 a second: the latest was promoted {latest:.1f} s late; then {figures(db, work)['pss_mib']} MiB")
    if full:
        assert latest < 10
    wait_for(lambda: one(db, "SELECT count(*) FROM pgqueue.outcome") == before + due, 300)
    assert figures(db, work)["pss_mib"] < without["pss_mib"] + 40
    assert states(db) == {"scheduled": many, "succeeded": before + due}
    assert violations(db) == []


def look(db: Connection) -> int:
    """What it costs to see that nothing is due."""
    run(db, protocol.promote(5000))
    return buffers(db, lambda: run(db, protocol.promote(5000)))


def overdue(db: Connection) -> tuple[bool, float]:
    """Are any still scheduled of those that come soon, and for how long is the first one overdue?"""
    first = one(db, "SELECT extract(epoch FROM clock_timestamp() - min(run_at))::float8 FROM pgqueue.scheduled")
    return first > -86400, max(0.0, first)
