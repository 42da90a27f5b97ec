"""``pgqueue health``, ``pgqueue top`` and ``pgqueue exporter``: what operators look at."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from pgqueue import protocol
from pgqueue.database import run
from pgqueue.housekeeper import gauges
from pgqueue.meter import Meter
from pgqueue.metrics import METRICS
from tests.apps import counted
from tests.support import ROOT, Hand, Workers, wait_for
from tests.test_exposition import free_port, get, samples, value


@pytest.fixture
def counted_db(dsn: str, conn: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[psycopg.Connection[Any]]:
    monkeypatch.setenv("PGQUEUE_DSN", dsn)
    run(conn, counted.app.registration())
    yield conn
    counted.app.close()


def command(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pgqueue", *words],
        cwd=ROOT,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_health_asks_the_supervisor(counted_db: psycopg.Connection[Any], workers: Workers) -> None:
    port = free_port()
    nobody = command("health", "live", "--metrics", str(port))
    assert nobody.returncode == 1
    assert f"nobody answers at {port}" in nobody.stderr
    work = workers.start("tests.apps.counted:app", "-w", "1", "--metrics", str(port))
    wait_for(lambda: get(port, "/readyz")[0] == 200, what=work.log())
    for what in ("live", "ready"):
        asked = command("health", what, PGQUEUE_METRICS=str(port))
        assert (asked.returncode, asked.stdout, asked.stderr) == (0, "ok\n", "")
    counted.nap.enqueue(2.0)
    wait_for(lambda: value(samples(port), "pgqueue_workers", state="busy") == 1)
    work.signal(signal.SIGTERM)
    asked = wait_for(lambda: (ran := command("health", "ready", "--metrics", f"127.0.0.1:{port}")).returncode and ran)
    assert "draining" in asked.stderr or "nobody answers" in asked.stderr


def test_health_imports_next_to_nothing() -> None:
    script = "import sys; sys.argv = ['pgqueue', 'health', 'live', '--metrics', '1']\n"
    script += "from pgqueue.cli import main\ntry: main()\nexcept SystemExit: print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert {name for name in loaded if name.startswith("pgqueue")} == {
        "pgqueue",
        "pgqueue._version",
        "pgqueue.cli",
        "pgqueue.cli.health",
    }
    assert not {"psycopg", "click", "msgspec", "http", "logging", "typing"} & set(loaded)


def test_top_prints_once(counted_db: psycopg.Connection[Any], dsn: str) -> None:
    hand = Hand(counted.app, dsn)
    for _ in range(4):
        counted.write.enqueue()
    failing = counted.fail_once.enqueue()
    hand.drain()
    assert run(counted_db, protocol.rates(100.0)) == [("default", 0.05, 0.01)]
    counted.see.enqueue("x")
    ran = command("top", "--once")
    assert ran.returncode == 0, ran.stderr
    head, _, columns, default, *rest = ran.stdout.splitlines()
    assert "1 worker, 0 with jobs, " in head
    assert columns.split() == ["queue", "ready", "oldest", "s", "running", "waiting", "scheduled", "jobs/s", "failed/s"]
    assert default.split()[:2] == ["default", "1"]
    assert rest[-1].split()[:2] == [failing.id, "fail_once"]
    assert rest[-1].endswith("ValueError")
    hand.close()


def test_top_refreshes_and_q_quits(counted_db: psycopg.Connection[Any]) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-m", "pgqueue", "top", "--every", "0.2s"])
    said = bytearray()

    def read() -> bytes:
        try:
            while select.select([terminal], [], [], 0)[0] and (data := os.read(terminal, 65536)):
                said.extend(data)
        except OSError:  # it has ended
            pass
        return bytes(said)

    wait_for(lambda: b"default" in read(), what="the queues")
    counted.see.enqueue("x")
    wait_for(lambda: read().count(b"\x1b[H") > 3, what="a few looks")
    os.write(terminal, b"q")
    wait_for(lambda: b"\x1b[?1049l" in read(), what="the terminal as it was")
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 0


def test_one_process_looks_at_the_database(
    counted_db: psycopg.Connection[Any], dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two supervisors that are read one looks; the other takes over; the exporter takes it from both."""
    monkeypatch.setattr(gauges, "EVERY", 0.3)
    one, two, exporter = (gauges.Gauges(dsn, Meter(), always) for always in (False, False, True))
    try:
        one.start()
        wait_for(one.values)
        two.start()
        for _ in range(5):
            assert not two.values()
            time.sleep(0.2)
        one.stop()
        wait_for(two.values)
        exporter.start()
        wait_for(lambda: exporter.values() and not two.values())
    finally:
        for who in (one, two, exporter):
            if who.is_alive():
                who.stop()


def test_the_exporter(counted_db: psycopg.Connection[Any]) -> None:
    """Where the image says, which is where its health check asks."""
    port = free_port()
    there = {**os.environ, "PGQUEUE_METRICS": f"0.0.0.0:{port}"}
    process = subprocess.Popen([sys.executable, "-m", "pgqueue", "exporter"], cwd=ROOT, env=there, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: get(port, "/readyz")[0] == 200)
        subprocess.run([sys.executable, "-m", "pgqueue", "health", "live"], cwd=ROOT, env=there, check=True)
        counted.see.enqueue("x")
        found = wait_for(
            lambda: (now := samples(port)) and value(now, "pgqueue_queue_jobs", queue="default", state="ready") and now
        )
        assert value(found, "pgqueue_queue_oldest_ready_seconds", queue="default") > 0
        assert ("pgqueue_jobs_total" in {name for name, _ in found}) is False
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()


def test_metrics_of_the_database_are_those_of_the_list(counted_db: psycopg.Connection[Any]) -> None:
    counted_db.execute("SELECT pgqueue.add_schedule('nightly', 'see', cron => '0 3 * * *')")
    counted_db.execute("UPDATE pgqueue.schedule SET last_at = pgqueue.clock(), next_at = pgqueue.clock()")
    counted_db.execute("SELECT pgqueue.enqueue_workflow('stranger', queue => 'default')")
    counted_db.execute(
        "INSERT INTO pgqueue.waiting (job_id, kind, key, queue, lane) SELECT id, 'name', name, queue, 11 FROM pgqueue.job"
    )
    counted_db.execute("""SELECT pgqueue.limit_queue('default', '{"rate": {"n": 1, "per": 1, "burst": 1}}')""")
    families = {family.name: family for family in METRICS if family.source == "database"}
    rows = run(counted_db, protocol.metrics())
    assert {name for name, _, _ in rows} == set(families)
    for name, labels, number in rows:
        assert len(labels) == len(families[name].labels)
        assert number >= 0
