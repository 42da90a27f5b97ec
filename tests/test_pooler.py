"""Behind PgBouncer in transaction mode: everything works, and nothing stays behind in a session. The whole suite goes through it
with ``make test-pgbouncer``; this is the small form."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from chaos.pooler import TRANSACTIONS, Pooler
from pgqueue import App, Retry, migrate, protocol
from pgqueue.bench.harness import bench
from pgqueue.bench.measures import MEASURES
from pgqueue.database import connect, is_pooled, run
from pgqueue.errors import Configuration
from pgqueue.listening import Listener
from tests.apps import bank
from tests.support import Hand, Server, Workers, kill, states, wait_for, worker_pids
from tests.test_kill import check_ledger

app = App()


@pytest.fixture
def pooled(pooler: Pooler, direct_dsn: str) -> str:
    return pooler.dsn(direct_dsn)


@pytest.fixture
def direct(direct_dsn: str) -> Iterator[psycopg.Connection[Any]]:
    with connect(direct_dsn, "tests") as conn:
        yield conn


def test_a_workload_with_kills(
    pooled: str, direct: psycopg.Connection[Any], tmp_path: Path, bank_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Enqueued, worked, killed and waited for through the pooler; then nobody finds a trace of pgqueue in its sessions."""
    jobs = 200
    monkeypatch.setenv("PGQUEUE_DSN", pooled)
    direct.execute(bank.TABLES)  # type: ignore[arg-type]
    workers = Workers(pooled, tmp_path)
    try:
        work = workers.start("tests.apps.bank:app", "-w", "2", "--lease", "2s")
        wait_for(lambda: worker_pids(direct, work), what="workers")
        made = bank.app.enqueue_many([bank.deposit.call(1 + n % 20, 5) for n in range(jobs)])
        wait_for(lambda: states(direct).get("succeeded", 0) > 20, what="a part of the jobs")
        kill(worker_pids(direct, work)[0])
        assert made[-1].result(timeout=60) == "told 20"
        wait_for(lambda: states(direct) == {"succeeded": jobs}, what="all jobs")
        check_ledger(direct, jobs)
        with psycopg.connect(pooled, autocommit=True, prepare_threshold=None) as conn:  # somebody else's program
            for _ in range(20):
                row = conn.execute(
                    "SELECT (SELECT count(*) FROM pg_prepared_statements), (SELECT count(*) FROM pg_listening_channels()),"
                    " (SELECT count(*) FROM pg_settings WHERE source = 'session' AND name <> 'application_name'"
                    " AND name NOT IN ('client_encoding', 'DateStyle', 'TimeZone', 'standard_conforming_strings')),"
                    " current_setting('application_name') LIKE 'pgqueue:%'"
                ).fetchone()
                assert row == (0, 0, 0, False)
        assert "nothing is heard" in work.log()
    finally:
        workers.stop_all()
        bank.app.close()


def test_an_idle_host_that_hears_nothing_finds_jobs_nevertheless(
    pooled: str, direct: psycopg.Connection[Any], tmp_path: Path, bank_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each within a second: somebody looks for all idle workers."""
    monkeypatch.setenv("PGQUEUE_DSN", pooled)
    direct.execute(bank.TABLES)  # type: ignore[arg-type]
    workers = Workers(pooled, tmp_path)
    try:
        work = workers.start("tests.apps.bank:app", "-w", "1")
        wait_for(lambda: worker_pids(direct, work), what="a worker")
        began = time.monotonic()
        for n in range(5):
            time.sleep(0.2)  # so that it is idle
            assert bank.deposit.enqueue(1, n).result(timeout=60), work.log()
        assert time.monotonic() - began < 25
    finally:
        workers.stop_all()
        bank.app.close()


def test_the_schema_comes_through_it(pooler: Pooler, empty_dsn: str) -> None:
    with connect(pooler.dsn(empty_dsn), "tests") as conn:
        assert migrate.migrate(conn, roles=True)
        assert migrate.pending(conn) == []


def test_how_soon_jobs_begin_is_measured_through_it(pooler: Pooler, server: Server) -> None:
    with bench(pooler.dsn(server.dsn)) as made:
        figures = MEASURES["latency"][0](made, 5, 1)
    assert 0 < figures["p50_ms"] < 10_000  # ten times what is promised where nothing is heard


@pytest.mark.usefixtures("pgbouncer")
def test_too_small_a_pool_ends_in_errors_that_are_tried_again(
    direct_dsn: str, direct: psycopg.Connection[Any], tmp_path: Path, bank_file: Path
) -> None:
    """Each of three steps has one of three sessions, and waits for another one; heartbeats and claims do, too."""
    jobs = 6
    small = TRANSACTIONS.replace("pool_size = 30", "pool_size = 3").replace("query_wait_timeout = 60", "query_wait_timeout = 2")
    assert small.count("= 3\n") == small.count("= 2\n") == 1
    direct.execute(bank.TABLES)  # type: ignore[arg-type]
    run(direct, bank.app.registration())
    with Pooler(direct_dsn, small) as pooler:
        workers = Workers(pooler.dsn(direct_dsn), tmp_path)
        try:
            for _ in range(jobs):
                run(direct, enqueue("asks_elsewhere"))
            work = workers.start("tests.test_pooler:app", "-w", "3", env={"POOLED_DSN": pooler.dsn(direct_dsn)})
            wait_for(lambda: states(direct) == {"succeeded": jobs}, 120, f"all jobs\n{states(direct)}\n{work.log()}")
            kinds = {row[0] for row in direct.execute("SELECT kind FROM pgqueue.attempts").fetchall()}
            assert kinds == {"error"}, "they met each other, and nobody was taken for dead"
        finally:
            workers.stop_all()


def enqueue(name: str) -> protocol.Call[Any]:
    return protocol.Call("SELECT pgqueue.enqueue_workflow(%s, queue => 'default')::text", (name,), lambda rows: rows[0][0])


@app.transaction(name="asks_elsewhere", retry=Retry(20, backoff="1s", cap="4s"))
def asks_elsewhere(tx: psycopg.Connection[Any]) -> None:
    time.sleep(0.5)  # so that all three have begun
    with psycopg.connect(os.environ["POOLED_DSN"], prepare_threshold=None) as other:
        other.execute("SELECT 1")


def test_listening_on_the_server_itself(pooled: str, direct_dsn: str, direct: psycopg.Connection[Any]) -> None:
    """One more connection hears; without it, and when it is lost, nothing is heard for a while and nothing fails."""
    with connect(pooled, "tests") as conn:
        assert is_pooled(conn)
        deaf, hearing, wrong = (Listener(conn, dsn, "tests:ear", "one", "two") for dsn in (None, direct_dsn, pooled))
        assert (deaf.deaf, hearing.deaf, wrong.deaf) == (True, False, True)
        assert (deaf.filenos(), len(hearing.filenos())) == ([conn.fileno()], 2)
        direct.execute("NOTIFY two, 'x'")
        wait_for(lambda: [notice.channel for notice in hearing.heard()] == ["two"])
        assert deaf.heard() == []
        direct.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'tests:ear'")
        wait_for(lambda: hearing.heard() == [] and hearing.deaf, what="the loss to be noticed")
        hearing._again_at = time.monotonic()
        hearing.heard()
        assert not hearing.deaf
        hearing.close()


def test_where_sessions_do_not_begin_at_read_committed_the_error_says_what_to_do(
    pooled: str, direct_dsn: str, direct: psycopg.Connection[Any]
) -> None:
    name = direct.info.dbname
    direct.execute(f"ALTER DATABASE {name} SET default_transaction_isolation = 'serializable'")  # type: ignore[arg-type]
    with pytest.raises(Configuration, match="ALTER ROLE"):
        connect(pooled, "tests")
    with connect(direct_dsn, "tests") as conn:  # a session of our own is set as we need it
        assert conn.execute("SHOW default_transaction_isolation").fetchone() == ("read committed",)


@app.transaction
def leaves_something(tx: psycopg.Connection[Any], statement: str) -> None:
    tx.execute(statement)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("statement", "outcome"),
    [
        ("SET work_mem = '8MB'", "failed"),
        ("SELECT pg_advisory_lock(1)", "failed"),
        ("CREATE TEMP TABLE mine ()", "failed"),
        ("SET LOCAL work_mem = '8MB'", "succeeded"),
        ("CREATE TEMP TABLE mine () ON COMMIT DROP", "succeeded"),
    ],
)
def test_steps_leave_nothing_in_sessions_that_are_not_theirs(
    pooled: str, direct: psycopg.Connection[Any], statement: str, outcome: str
) -> None:
    hand = Hand(app, pooled)
    try:
        with connect(pooled, "tests") as conn:
            leaves_something.using(conn).enqueue(statement)
        hand.drain()
        found = direct.execute("SELECT status, error FROM pgqueue.outcome").fetchone()
        assert found is not None
        assert found[0] == outcome
        assert outcome == "succeeded" or "pooler" in found[1]
    finally:
        hand.close()
