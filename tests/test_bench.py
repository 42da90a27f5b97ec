"""Every benchmark runs, small, and gives the figures that it promises. No test says anything about speed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import psycopg
import pytest

from pgqueue.bench.counts import preload
from pgqueue.bench.delays import bench_idle
from pgqueue.bench.harness import Bench, bench, percentiles
from pgqueue.bench.hostages import bench_hostage
from pgqueue.bench.limits import bench_limits
from pgqueue.bench.measures import MEASURES
from pgqueue.bench.throughput import bare_updates, bench_transaction
from pgqueue.cli.bench import WHAT, in_words
from pgqueue.errors import PgQueueError
from tests.support import ROOT, Server, wait_for

COSTS = {"statements_per_job", "commits_per_job", "wal_bytes_per_job"}
DRAIN = {"jobs", "workers", "enqueued_per_s", "jobs_per_s"} | COSTS


def spread(prefix: str = "") -> set[str]:
    return {f"{prefix}{name}_ms" for name in ("p50", "p99", "max")}


@pytest.fixture
def made(server: Server) -> Iterator[Bench]:
    with bench(server.dsn) as made:
        yield made


def test_the_command_knows_every_measure() -> None:
    assert set(WHAT) == set(MEASURES)


def test_noop(made: Bench) -> None:
    figures = MEASURES["noop"][0](made, 50, 1)
    assert set(figures) == DRAIN
    assert made.ended() == figures["jobs"] == 50
    assert figures["commits_per_job"] > 0
    assert figures["wal_bytes_per_job"] > 0
    assert figures["statements_per_job"] is None, "this server does not count them"


def test_a_single_job(made: Bench) -> None:
    """It may have ended before anybody looks."""
    assert MEASURES["noop"][0](made, 1, 1)["jobs"] == 1


def test_steps(made: Bench) -> None:
    figures = MEASURES["steps"][0](made, 5, 1)
    assert set(figures) == DRAIN | {"steps_per_s"} | spread("step_")
    assert figures["step_p50_ms"] is not None
    assert figures["commits_per_job"] > 10, "ten checkpoints are ten commits"


def test_transaction(made: Bench) -> None:
    figures = bench_transaction(made, 100, 2, rounds=1)
    assert set(figures) == DRAIN | {"rounds", "bare_per_s", "ratio_to_bare"} | spread("transaction_")
    assert made.one("SELECT sum(n) FROM counter") == 200, "both sides have done the same"
    assert figures["commits_per_job"] > 1


def test_bare_updates_do_all_of_them(made: Bench) -> None:
    assert bare_updates(made, 50, 3) > 0
    assert made.one("SELECT sum(n) FROM counter") == 50


def test_control(made: Bench) -> None:
    figures = MEASURES["control"][0](made, 2, 1)
    assert set(figures) == {"changes", "workers"} | spread("resume_") | spread("raise_")
    assert figures["resume_p50_ms"] > 0
    assert figures["raise_p50_ms"] > 0


def test_latency(made: Bench) -> None:
    figures = MEASURES["latency"][0](made, 3, 1)
    assert set(figures) == {"jobs", "workers"} | spread() | spread("committed_")
    assert figures["p50_ms"] > figures["committed_p50_ms"] > 0


def test_recovery(made: Bench) -> None:
    figures = MEASURES["recovery"][0](made, 1, 2)
    assert set(figures) == {"kills", "workers"} | spread()
    assert figures["max_ms"] > 0


def test_hostage(made: Bench) -> None:
    figures = bench_hostage(made, 1, 2, seconds=0.4)
    kinds = {f"{kind}_{what}" for kind in ("sleep", "gil") for what in ("hostages", "results")}
    times = {name for kind in ("sleep", "gil") for what in ("begun", "durable") for name in spread(f"{kind}_{what}_")}
    assert set(figures) == {"jobs", "workers", "long_s"} | kinds | times
    assert made.ended() == 2 * 1501, "all short jobs came to their end"


def test_idle(made: Bench) -> None:
    figures = bench_idle(made, 1, 2, seconds=0.5)
    rates = {"statements_per_s", "commits_per_s", "cpu_s_per_minute"}
    assert set(figures) == {"workers", "seconds", "jobs"} | rates | spread("pickup_")
    assert figures["cpu_s_per_minute"] >= 0
    assert figures["statements_per_s"] is None


def test_limits(made: Bench) -> None:
    figures = bench_limits(made, 50, 1, rounds=1)
    cases = ("free", "concurrency", "keys", "behind_hot_key")
    assert set(figures) == {"jobs", "workers", "rounds"} | {f"{case}_per_s" for case in cases} | {f"{c}_ratio" for c in cases[1:]}
    assert min(figures.values()) > 0
    assert made.one("SELECT count(*) FROM pgqueue.job WHERE key = 'hot'") == 100


def test_snapshot(made: Bench) -> None:
    figures = MEASURES["snapshot"][0](made, 2000, 1)
    assert set(figures) == DRAIN | {"slices_per_s", "last_to_first"}
    assert len(figures["slices_per_s"]) == 10
    snapshots = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in%%'"
    assert made.one(snapshots) == 0, "it is let go"


def test_an_embedded_server_counts_statements_and_the_benchmark_is_not_among_them() -> None:
    if not preload():
        pytest.skip("these binaries have no pg_stat_statements")
    with bench(None) as made:
        made.wait_until_alone()
        before = made.counts()
        for _ in range(100):
            made.one("SELECT 1")
        after_questions = made.counts()
        with psycopg.connect(made.dsn, autocommit=True) as conn:
            for _ in range(10):
                conn.execute("SELECT 1")
        made.wait_until(lambda: made.counts().since(after_questions).commits >= 10)
        after_others = made.counts()
        assert after_questions.since(before).statements == 0
        assert after_others.since(after_questions).statements == 10
        assert after_questions.since(before).commits < 100, "some of autovacuum's, but none of ours"
        figures = MEASURES["noop"][0](made, 20, 1)
        assert figures["statements_per_job"] > 0


def test_dead_workers_are_noticed(made: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgqueue.bench.harness.TARGET", "no.such.module:app")
    with made.workers(1), pytest.raises(PgQueueError, match="exit code 78"):
        made.wait_for_workers(1)


def test_percentiles() -> None:
    assert percentiles([0.001 * n for n in range(1, 101)]) == {"p50_ms": 51.0, "p99_ms": 100.0, "max_ms": 100.0}
    assert percentiles([], "x_") == {"x_p50_ms": None, "x_p99_ms": None, "x_max_ms": None}


def databases(server: Server) -> list[str]:
    with psycopg.connect(server.dsn) as conn:
        return [row[0] for row in conn.execute("SELECT datname FROM pg_database WHERE datname LIKE 'pgqueue_bench%'")]


def test_the_command(server: Server) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pgqueue", "bench", "noop", "-n", "5", "-w", "1", "--json"],
        env={**os.environ, "PGQUEUE_DSN": server.dsn},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert set(figures) == DRAIN | {"bench"}
    assert figures["statements_per_job"] is None
    assert databases(server) == [], "its database is dropped"


def test_a_benchmark_that_is_told_to_end_leaves_nothing(server: Server) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "pgqueue", "bench", "latency", "-n", "100000", "--dsn", server.dsn],
        cwd=ROOT,
        start_new_session=True,
    )
    working = "SELECT count(*) FROM pg_stat_activity WHERE datname LIKE 'pgqueue_bench%' AND application_name LIKE '%:claims'"
    with psycopg.connect(server.dsn, autocommit=True) as conn:
        wait_for(lambda: conn.execute(working).fetchone() == (2,))
        process.terminate()
        assert process.wait(60) == 128 + signal.SIGTERM
        assert databases(server) == []
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)  # the supervisor is gone, too


def test_figures_for_people() -> None:
    assert [in_words(value) for value in (None, 0.006, 7, [1, None])] == ["-", "0.006", "7", "1 -"]
