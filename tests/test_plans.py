"""The hot verbs stay cheap: planned on empty tables, then grown without ANALYZE, on the same connection; and linear in the batch.

Counts of buffers, never times.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from pgqueue import protocol
from pgqueue.database import connect, run
from pgqueue.ids import Process, new_token
from pgqueue.model import Settlement

WORKER = "00000000-0000-4000-8000-000000000001"
GROWN = 100_000


@pytest.fixture
def worker(conn: psycopg.Connection[Any]) -> psycopg.Connection[Any]:
    run(conn, protocol.register_worker(WORKER, Process.of(1)))
    for (table,) in conn.execute("SELECT relname FROM pg_class WHERE relnamespace = 'pgqueue'::regnamespace AND relkind = 'r'"):
        conn.execute(f"ALTER TABLE pgqueue.{table} SET (autovacuum_enabled = off)")  # type: ignore[arg-type]
    return conn


def buffers(conn: psycopg.Connection[Any], work: Callable[[], Any]) -> int:
    """Buffers that the tables of pgqueue and their indexes were asked for."""
    count = (
        "SELECT sum(heap_blks_hit + heap_blks_read + coalesce(idx_blks_hit, 0) + coalesce(idx_blks_read, 0)) "
        "FROM pg_statio_user_tables WHERE schemaname = 'pgqueue'"
    )

    def now() -> int:
        conn.execute("SELECT pg_stat_force_next_flush()")
        conn.execute("SELECT pg_stat_clear_snapshot()")
        row = conn.execute(count).fetchone()  # type: ignore[arg-type]
        assert row is not None
        return int(row[0])

    before = now()
    work()
    return now() - before


def enqueue(conn: psycopg.Connection[Any], count: int, **options: Any) -> None:
    run(conn, protocol.enqueue_workflows(json.dumps([{"name": "w", "queue": "default", **options}] * count)))


def claim(conn: psycopg.Connection[Any], amount: int, at_once: int = 1) -> list[Any]:
    call = protocol.claim(WORKER, new_token(), ["default"], ["w"], amount, [0] * 20, False, at_once)
    return [job for job, _ in run(conn, call)]


def settle(conn: psycopg.Connection[Any], jobs: list[Any]) -> None:
    assert run(conn, protocol.settle([Settlement(job, "succeeded", "null") for job in jobs])) == {}


def grow(dsn: str) -> None:
    """What a database looks like after a while: history, cancel requests, a backlog, all at once and not analysed."""
    with connect(dsn, "grow") as conn:
        conn.execute(f"""
            INSERT INTO pgqueue.job (id, name, queue, priority, input, created_at)
                SELECT gen_random_uuid(), 'w', 'other', 5, '{{}}', clock_timestamp() FROM generate_series(1, {GROWN});
            INSERT INTO pgqueue.outcome (job_id, status, finished_at) SELECT id, 'succeeded', clock_timestamp() FROM pgqueue.job
                WHERE queue = 'other';
            INSERT INTO pgqueue.checkpoint SELECT id, 1, 's', '1', NULL, 1, '3', clock_timestamp() FROM pgqueue.job
                WHERE queue = 'other';
            INSERT INTO pgqueue.cancel_request SELECT gen_random_uuid(), clock_timestamp() FROM generate_series(1, {GROWN});
            INSERT INTO pgqueue.scheduled SELECT gen_random_uuid(), clock_timestamp() + '1 day', 'other', 11
                FROM generate_series(1, {GROWN});
            INSERT INTO pgqueue.waiting SELECT gen_random_uuid(), 'name', 'n' || g % 1000, NULL, 'other', 11
                FROM generate_series(1, {GROWN}) g;
            INSERT INTO pgqueue.running SELECT gen_random_uuid(), 1, gen_random_uuid(), 'other', 11, g, clock_timestamp(), false
                FROM generate_series(1, {GROWN}) g;
            INSERT INTO pgqueue.event SELECT 'e' || g, '1', clock_timestamp() FROM generate_series(1, {GROWN}) g;
            INSERT INTO pgqueue.waiting SELECT gen_random_uuid(), 'event', 'f' || g % 1000, NULL, 'other', 11
                FROM generate_series(1, {GROWN}) g;
            INSERT INTO pgqueue.wait SELECT id, 1, 'w', 'event', 'f', NULL, clock_timestamp() FROM pgqueue.job
                WHERE queue = 'other';
            INSERT INTO pgqueue.message SELECT id, 't', 1, '1', clock_timestamp() FROM pgqueue.job WHERE queue = 'other';
            INSERT INTO pgqueue.progress SELECT id, 0.5, '', clock_timestamp() FROM pgqueue.job WHERE queue = 'other';
            INSERT INTO pgqueue.stream_end SELECT id, 's', 1 FROM pgqueue.job WHERE queue = 'other';
            INSERT INTO pgqueue.stream SELECT id, 's', 1, '1', clock_timestamp() FROM pgqueue.job WHERE queue = 'other';
            INSERT INTO pgqueue.ready SELECT 'other', 11, nextval('pgqueue.position'), gen_random_uuid()
                FROM generate_series(1, {GROWN});
        """)  # type: ignore[arg-type]


def test_a_plan_made_on_empty_tables_stays_good(dsn: str, worker: psycopg.Connection[Any]) -> None:
    conn = worker

    def cycle() -> None:
        settle(conn, claim(conn, 100))

    def single() -> None:
        [job] = claim(conn, 1)
        assert run(conn, protocol.fence(job.id, job.token, 0, 0)) is not None
        assert run(conn, protocol.store(job.id, job.token, 0, 1, "s", "1", None))
        assert run(conn, protocol.history(job.id, 0)) != []
        assert run(conn, protocol.resolve(job.id, job.token)) == "held"
        settle(conn, [job])

    keys = itertools.count()

    def wait() -> None:
        """Jobs leave to wait, each for another thing; all of it comes, and they are woken."""
        jobs, key = claim(conn, 40), str(next(keys))
        waits = [("event", key), ("message", "t"), ("sleep", ""), ("job", jobs[0].id), ("children", "1:0")]
        details = [
            json.dumps({"seq": 1, "name": kind, "kind": kind, "key": what, "seconds": None if kind != "sleep" else 0})
            for kind, what in waits * 8
        ]
        batch = [Settlement(job, "suspend", None, 0, detail) for job, detail in zip(jobs, details, strict=True)]
        assert run(conn, protocol.settle(batch)) == {}
        run(conn, protocol.send_event(key, "1"))
        for job in jobs[1::5]:
            assert run(conn, protocol.send_message(job.id, "t", "1")) == "sent"
        moved, _, _ = run(conn, protocol.wake(100, "ffffffff-ffff-ffff-ffff-ffffffffffff"))
        assert moved == 24
        run(conn, protocol.promote(100))
        [job] = claim(conn, 1)
        run(conn, protocol.proceed(job.id, job.token, 0, 2, "e", "event", key))
        run(conn, protocol.proceed(job.id, job.token, 2, 3, "e", "event", "never"))
        run(conn, protocol.report([(job.id, job.token, 0.5, None)]))
        run(conn, protocol.write_stream(job.id, job.token, "s", ["1"]))
        run(conn, protocol.read_stream(job.id, "s", 0, 10))
        run(conn, protocol.cancel([job.id], hard=True))
        run(conn, protocol.hard_cancelled([WORKER]))
        run(conn, protocol.awaited([job.id for job in jobs], 0.0))
        assert run(conn, protocol.settle([Settlement(job, "cancelled", None, 0, "{}")])) == {}
        conn.execute("DELETE FROM pgqueue.waiting WHERE kind IN ('job', 'children')")  # those that wait for ever

    verbs: dict[str, Callable[[], Any]] = {
        "wait": wait,
        "enqueue": lambda: enqueue(conn, 100),
        "claim and settle": cycle,
        "steps": single,
        "promote": lambda: run(conn, protocol.promote(100)),
        "heartbeat": lambda: run(conn, protocol.heartbeat([WORKER])),
        "has work": lambda: run(conn, protocol.has_work(["default"])),
        "look": lambda: run(conn, protocol.look(["default"], 2.5)),
    }
    for _ in range(6):  # let every plan be made and cached while there is nothing
        enqueue(conn, 120)
        for verb in verbs.values():
            verb()
    small = {}
    for name, verb in verbs.items():
        enqueue(conn, 120)
        small[name] = buffers(conn, verb)
    grow(dsn)
    for name, verb in verbs.items():
        enqueue(conn, 120)
        large = buffers(conn, verb)
        assert large < 4 * small[name] + 200, f"{name}: {small[name]} buffers when small, {large} when large"


def test_limits_are_linear_too(worker: psycopg.Connection[Any]) -> None:
    """Whatever is in front: jobs that can begin, each of a key of its own, or jobs of one busy key that have to be put aside."""
    conn = worker
    run(conn, protocol.register_app('[{"name": "default", "limits": {"per_key": 1, "concurrency": 100000}}]', "[]"))

    def put_aside(amount: int) -> None:
        busy = json.dumps([{"name": "w", "queue": "default", "key": "busy"}] * amount)
        run(conn, protocol.limit_queue("default", {"per_key": 0}))
        run(conn, protocol.enqueue_workflows(busy))
        run(conn, protocol.limit_queue("default", {"per_key": None}))
        counts["line up", amount] = buffers(conn, lambda: run(conn, protocol.enqueue_workflows(busy)))
        enqueue(conn, 1, key=f"behind {amount}")
        counts["put aside", amount] = buffers(conn, lambda: held.append(claim(conn, 1)))

    held: list[Any] = []
    counts: dict[tuple[str, int], int] = {}
    enqueue(conn, 1, key="busy")
    claim(conn, 1)
    put_aside(100)
    put_aside(1000)
    assert [len(jobs) for jobs in held] == [1, 1]
    assert conn.execute("SELECT count(*) FROM pgqueue.waiting").fetchone() == (2200,)
    for amount in (100, 1000):
        jobs = [{"name": "w", "queue": "default", "key": f"{amount} {n}"} for n in range(amount)]
        run(conn, protocol.enqueue_workflows(json.dumps(jobs)))
        counts["claim", amount] = buffers(conn, lambda amount=amount: held.append(claim(conn, amount, amount)))
        counts["settle", amount] = buffers(conn, lambda: settle(conn, held[-1]))
        assert len(held[-1]) == amount
    for verb in ("line up", "put aside", "claim", "settle"):
        assert counts[verb, 1000] < 15 * counts[verb, 100], counts


def test_claim_and_settle_are_linear(worker: psycopg.Connection[Any]) -> None:
    conn = worker
    enqueue(conn, 3000)
    held: list[Any] = []
    counts = {}
    for amount in (100, 1000):
        counts["claim", amount] = buffers(conn, lambda amount=amount: held.append(claim(conn, amount)))
        counts["settle", amount] = buffers(conn, lambda: settle(conn, held[-1]))
        assert len(held[-1]) == amount
    for verb in ("claim", "settle"):
        assert counts[verb, 1000] < 15 * counts[verb, 100], counts


def test_jobs_that_are_not_unique_never_touch_the_keys(worker: psycopg.Connection[Any]) -> None:
    """Not one page of that table or its indexes, from the enqueue to the outcome. Those that are pay a few of them."""
    conn = worker

    def pages() -> int:
        conn.execute("SELECT pg_stat_force_next_flush()")
        conn.execute("SELECT pg_stat_clear_snapshot()")
        row = conn.execute(
            "SELECT heap_blks_hit + heap_blks_read + coalesce(idx_blks_hit, 0) + coalesce(idx_blks_read, 0)"
            " FROM pg_statio_user_tables WHERE relid = 'pgqueue.unique_job'::regclass"
        ).fetchone()
        assert row is not None
        return int(row[0])

    conn.execute(
        f"""INSERT INTO pgqueue.unique_job SELECT gen_random_uuid(), gen_random_uuid() FROM generate_series(1, {GROWN})"""
    )  # type: ignore[arg-type]

    def cycle() -> None:
        enqueue(conn, 200)
        enqueue(conn, 10, delay="1 hour")
        jobs = claim(conn, 100)
        assert run(conn, protocol.settle([Settlement(job, "release") for job in jobs[:50]])) == {}
        settle(conn, jobs[50:])
        [job] = claim(conn, 1)
        with conn.transaction():
            xid = run(conn, protocol.fence(job.id, job.token, 0, 0))
            assert run(conn, protocol.finish(job.id, job.token, "1", xid))

    cycle()  # the first time plans are made, which looks at the head of an index
    before = pages()
    cycle()
    assert pages() == before
    for n in range(20):
        enqueue(conn, 1, unique={"key": str(n)})
    held = [job for job in claim(conn, 1000) if job.policy]
    settle(conn, held)
    assert len(held) == 20
    assert pages() - before < 20 * 40
