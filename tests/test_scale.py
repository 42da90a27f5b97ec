"""Many waiting jobs, many children, many kills: what must stay exact. The large numbers are run by ``make scale``."""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from chaos.workloads import durable
from pgqueue.database import connect
from tests.support import Work, Workers, kill, states, violations, wait_for, worker_pids

APP = "chaos.workloads.durable:app"
AT_ONCE = 5000


@pytest.fixture
def db(
    dsn: str, conn: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[psycopg.Connection[Any]]:
    monkeypatch.setenv("PGQUEUE_DSN", dsn)
    monkeypatch.setenv("DURABLE_FILE", str(tmp_path / "outside"))
    durable.prepare(conn)
    yield conn
    durable.app.close()


def effects(conn: psycopg.Connection[Any]) -> Counter[str]:
    return Counter(dict(conn.execute("SELECT what, count(*) FROM effect GROUP BY what").fetchall()))


def doubles(conn: psycopg.Connection[Any]) -> list[Any]:
    return conn.execute("SELECT job_id, what FROM effect GROUP BY job_id, what HAVING count(*) > 1").fetchall()


@contextmanager
def killer(conn: psycopg.Connection[Any], dsn: str, work: Work, every: float) -> Iterator[list[int]]:
    """Kills a worker every so often while the block lasts; but not for ever, where none lives long enough to do anything."""
    over, killed = threading.Event(), []

    def go_on() -> None:
        with connect(dsn, "test") as own:
            while len(killed) < 60 and not over.wait(every):
                pids = worker_pids(own, work)
                if pids and kill(victim := random.choice(pids)):
                    killed.append(victim)

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()


def test_twenty_steps_with_a_kill_after_each_commit(db: psycopg.Connection[Any], workers: Workers, tmp_path: Path) -> None:
    """Every process kills itself at the first commit that it makes."""
    job = durable.chain.enqueue()
    work = workers.start(APP, "-w", "6", env={"PGQUEUE_FAILPOINTS": "transaction.committed=kill9,step.checkpointed=kill9"})
    wait_for(lambda: job.status() == "succeeded", 300, f"the end\n{work.log()}")
    assert job.result() == [str(i) for i in range(durable.STEPS)]
    assert effects(db) == {str(i): 1 for i in range(1, durable.STEPS, 2)}
    outside = Counter(line.split()[0] for line in (tmp_path / "outside").read_text().splitlines())
    assert outside == {str(i): 1 for i in range(0, durable.STEPS, 2)}, "it was killed behind the checkpoint"
    assert len([a for a in job.attempts() if a.kind == "crash"]) == durable.STEPS
    assert violations(db) == []


def test_twenty_steps_with_a_kill_before_each_checkpoint(db: psycopg.Connection[Any], workers: Workers, tmp_path: Path) -> None:
    """Now between the effect and the checkpoint: a plain step is run again, once; a transaction never."""
    job = durable.chain.enqueue()
    work = workers.start(APP, "-w", "6", env={"PGQUEUE_FAILPOINTS": "transaction.committing=kill9@2,step.after_effect=kill9@2"})
    wait_for(lambda: job.status() == "succeeded", 300, f"the end\n{work.log()}")
    assert effects(db) == {str(i): 1 for i in range(1, durable.STEPS, 2)}
    outside = Counter(line.split()[0] for line in (tmp_path / "outside").read_text().splitlines())
    assert set(outside) == {str(i) for i in range(0, durable.STEPS, 2)}
    assert set(outside.values()) <= {1, 2}
    assert 2 in outside.values()
    assert violations(db) == []


@pytest.mark.parametrize("children", [1500, pytest.param(10_000, marks=pytest.mark.scale)])
def test_fan_out_and_in_with_kills(db: psycopg.Connection[Any], dsn: str, workers: Workers, children: int) -> None:
    before = statements(db)
    job = durable.fan_out.enqueue(children)
    began = time.monotonic()
    work = workers.start(APP, "-w", "4")
    with killer(db, dsn, work, 0.7 if children > 5000 else 0.2) as killed:
        wait_for(lambda: job.status() == "succeeded", 600, f"the end\n{work.log()}")
    took = time.monotonic() - began
    assert job.result() == sum(range(children))
    assert effects(db) == {"child": children, f"callback {children}": 1}
    assert doubles(db) == []
    assert states(db) == {"succeeded": children + 1}
    assert violations(db) == []
    spent = {key: value - before[key] for key, value in statements(db).items()}
    print(f"\n{children} children, {len(killed)} kills: {took:.1f} s, {1000 * took / children:.2f} ms and {per(spent, children)}")
    assert killed


@pytest.mark.scale
def test_fan_out_and_in_without_kills(db: psycopg.Connection[Any], workers: Workers) -> None:
    """For the figures."""
    children, before = 10_000, statements(db)
    job = durable.fan_out.enqueue(children)
    began = time.monotonic()
    workers.start(APP, "-w", "2")
    wait_for(lambda: job.status() == "succeeded", 600, "the end")
    took = time.monotonic() - began
    spent = {key: value - before[key] for key, value in statements(db).items()}
    print(f"\n{children} children: {took:.1f} s, {1000 * took / children:.2f} ms and {per(spent, children)}")
    assert effects(db) == {"child": children, f"callback {children}": 1}


@pytest.mark.parametrize("many", [500, pytest.param(100_000, marks=pytest.mark.scale)])
def test_waiting_jobs_cost_nothing_and_are_woken(db: psycopg.Connection[Any], workers: Workers, many: int) -> None:
    """As many sleeping and as many waiting: workers claim as before, and need no more memory; all go on, across a restart."""
    noops = 20 * many if many < 5000 else 40_000
    work = workers.start(APP, "-w", "2")
    durable.app.enqueue_many(durable.child.map(range(200)))  # each worker has its connections then
    drained(db, noops)
    without = {**figures(db, work), "noops": drained(db, noops)}

    due = datetime.now(UTC) + timedelta(seconds=20 + many / 500)
    for at in range(0, many, AT_ONCE):
        durable.app.enqueue_many([durable.sleeper.call(due)] * min(AT_ONCE, many - at))
        durable.app.enqueue_many([durable.waiter.call(f"key-{n % 100}") for n in range(at, min(at + AT_ONCE, many))])
    slowly(lambda: states(db).get("scheduled") == many == states(db).get("waiting") or datetime.now(UTC) > due, "all to wait")
    assert datetime.now(UTC) < due, states(db)
    db.execute("VACUUM ANALYZE")
    beside = {**figures(db, work), "noops": drained(db, noops)}
    print("\n" + json.dumps({"without": without, f"with 2 x {many} that wait": beside}, indent=2))
    assert beside["connections"] <= without["connections"] + 1
    assert beside["pss_mib"] < without["pss_mib"] + 40

    work.kill()
    workers.start(APP, "-w", "2")
    for n in range(100):
        durable.app.send_event(f"key-{n}", f"value-{n}")
    sent = time.monotonic()
    slowly(lambda: sum(v for k, v in effects(db).items() if k.startswith("value")) == many, "those that wait")
    print(f"{many} woken by 100 events and run within {time.monotonic() - sent:.1f} s")
    slowly(lambda: effects(db)["slept"] == many, "those that sleep")
    wait_for(lambda: set(states(db)) == {"succeeded"}, 60)
    assert doubles(db) == []
    early = db.execute(
        "SELECT count(*) FROM pgqueue.job_values v JOIN pgqueue.outcome o ON o.job_id = v.id"
        " WHERE v.name LIKE '%%sleeper' AND o.finished_at < %s",
        (due,),
    ).fetchone()
    assert early == (0,)
    assert violations(db) == []


def slowly(condition: Callable[[], bool], what: str) -> None:
    """Looking at large tables again and again would be what is measured."""

    def look() -> bool:
        time.sleep(0.5)
        return condition()

    wait_for(look, 900, what)


def figures(conn: psycopg.Connection[Any], work: Work) -> dict[str, Any]:
    """What the host needs now: memory of all its processes, without what they share, and connections."""
    memory = 0
    for pid in work.children():
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                memory += int(line.split()[1])
    row = conn.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'pgqueue:%%' AND application_name NOT LIKE '%%client'"
        " AND datname = current_database()"
    ).fetchone()
    assert row is not None
    return {"pss_mib": round(memory / 1024, 1), "connections": row[0]}


def drained(conn: psycopg.Connection[Any], jobs: int) -> int:
    """No-op jobs per second, beside whatever there is."""
    began = time.monotonic()
    for at in range(0, jobs, AT_ONCE):
        durable.app.enqueue_many([durable.noop.call()] * min(AT_ONCE, jobs - at))
    wait_for(lambda: conn.execute("SELECT count(*) FROM pgqueue.ready WHERE queue = 'noops'").fetchone() == (0,), 300)
    wait_for(lambda: conn.execute("SELECT count(*) FROM pgqueue.running").fetchone() == (0,), 300)
    return round(jobs / (time.monotonic() - began))


def statements(conn: psycopg.Connection[Any]) -> dict[str, int]:
    row = conn.execute(
        "SELECT xact_commit, (pg_current_wal_lsn() - '0/0')::bigint FROM pg_stat_database WHERE datname = current_database()"
    ).fetchone()
    assert row is not None
    return {"commits": row[0], "wal_bytes": row[1]}


def per(spent: dict[str, int], jobs: int) -> str:
    return ", ".join(f"{value / jobs:.2f} {key} per child" for key, value in spent.items())
