"""A real Prometheus reads two supervisors under load, while their workers are killed: no scrape fails, no counter goes back.

``make operations`` kills 500; the tests as a whole a few.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from chaos.processes import state
from pgqueue.database import run
from pgqueue.housekeeper.collector import MetricsPage
from pgqueue.meter import Meters
from pgqueue.metrics import DURATION, JOBS, STEPS
from tests.apps import counted
from tests.support import Workers, kill, violations, wait_for, worker_pids
from tests.test_exposition import free_port, get

CONFIG = """
global: {scrape_interval: 2s, scrape_timeout: 2s}
scrape_configs:
  - job_name: pgqueue
    static_configs: [{targets: [%s]}]
"""


class Prometheus:
    """One that stores what it reads in a directory of its own."""

    def __init__(self, program: str, targets: list[int], place: Path) -> None:
        self.port = free_port()
        place.mkdir()
        config = place / "prometheus.yml"
        config.write_text(CONFIG % ", ".join(f"'127.0.0.1:{port}'" for port in targets))
        self._log = (place / "log").open("wb")
        self.process = subprocess.Popen(
            [
                program,
                f"--config.file={config}",
                f"--storage.tsdb.path={place / 'data'}",
                f"--web.listen-address=127.0.0.1:{self.port}",
            ],
            stdout=self._log,
            stderr=self._log,
            stdin=subprocess.DEVNULL,
        )
        wait_for(lambda: get(self.port, "/-/ready")[0] == 200, what="Prometheus to be ready")

    def ask(self, query: str) -> list[tuple[dict[str, str], float]]:
        status, text = get(self.port, "/api/v1/query?" + urllib.parse.urlencode({"query": query}))
        assert status == 200, text
        return [(row["metric"], float(row["value"][1])) for row in json.loads(text)["data"]["result"]]

    def names(self) -> list[str]:
        names: list[str] = json.loads(get(self.port, "/api/v1/label/__name__/values")[1])["data"]
        return names

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(60)
        self._log.close()


@pytest.fixture
def prometheus() -> str:
    found = shutil.which("prometheus", path=f"{os.environ['PATH']}:/usr/local/bin:/usr/bin")
    if found is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("prometheus is not installed: apt install prometheus")
    return found


@pytest.fixture
def load(dsn: str, conn: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[psycopg.Connection[Any]]:
    """Somebody who enqueues, until the test is over."""
    monkeypatch.setenv("PGQUEUE_DSN", dsn)
    run(conn, counted.app.registration())
    over = threading.Event()

    def produce() -> None:
        while not over.wait(0.1):
            counted.app.enqueue_many([counted.nap.call(0.001)] * 10 + [counted.write.call()] * 10 + [counted.every.call("")])

    thread = threading.Thread(target=produce)
    thread.start()
    conn.execute("SELECT 1")
    yield conn
    over.set()
    thread.join()
    counted.app.close()


@pytest.mark.parametrize("kills", [8, pytest.param(500, marks=[pytest.mark.operations, pytest.mark.timeout(1800)])])
def test_no_failed_scrape_and_no_counter_goes_back(
    load: psycopg.Connection[Any], workers: Workers, prometheus: str, tmp_path: Path, kills: int
) -> None:
    ports = [free_port(), free_port()]
    works = [workers.start("tests.apps.counted:app", "-w", "3", "--metrics", str(port)) for port in ports]
    for port, work in zip(ports, works, strict=True):
        wait_for(lambda port=port: get(port, "/readyz")[0] == 200, what=work.log())
        assert get(port, "/metrics")[0] == 200  # the first one loads what it needs
    server = Prometheus(prometheus, ports, tmp_path / "prometheus")
    rng, killed = random.Random(kills), 0
    try:
        wait_for(lambda: len(server.ask("up == 1")) == 2, what="the first scrapes")
        while killed < kills:
            victims = [pid for work in works for pid in worker_pids(load, work) if state(pid) not in "ZX"]
            if victims and kill(victim := rng.choice(victims), signal.SIGKILL):
                killed += 1
                wait_for(lambda victim=victim: state(victim) in "ZX", what="it to be dead: nobody dies twice")
            time.sleep(rng.uniform(0, 0.3))
        exits = 'sum(pgqueue_worker_exits_total{reason="signal"})'
        wait_for(lambda: [value for _, value in server.ask(exits)] == [killed], what="all deaths to be counted")
        [(_, jobs)] = server.ask("sum(pgqueue_jobs_total)")
        [(_, worst)] = server.ask("max(max_over_time(scrape_duration_seconds[1h]))")
        assert jobs > 0
        assert [value for _, value in server.ask("min_over_time(up[1h])")] == [1, 1], "a scrape has failed"
        scrapes = sum(value for _, value in server.ask("count_over_time(up[1h])"))
        counters = [
            name for name in server.names() if name.startswith("pgqueue_") and name.endswith(("_total", "_count", "_bucket"))
        ]
        assert "pgqueue_jobs_total" in counters
        for name in counters:
            assert {value for _, value in server.ask(f"resets({name}[1h])")} <= {0.0}, name
        ended = load.execute("SELECT count(*) FROM pgqueue.outcome").fetchone()
        print(f"{killed} kills, {scrapes:.0f} scrapes, the longest {1000 * worst:.0f} ms; {jobs:.0f} jobs counted, {ended} ended")
        assert all(work.process.poll() is None for work in works)
        assert violations(load) == []
    finally:
        server.stop()


def test_a_scrape_costs_the_same_after_a_thousand_workers() -> None:
    """Recycled workers leave nothing behind but their counts."""
    meters = Meters(3)
    page = MetricsPage(lambda: meters.read() or {})

    def live(index: int) -> None:
        meter = meters.meter(index)
        for workflow in "abcdefgh":
            meter.add(JOBS, ("default", workflow, "succeeded"))
            meter.observe(DURATION, ("default", workflow), 0.1)
            meter.add(STEPS, (workflow, "step", "step", "succeeded"))
        meters.admit()
        meters.fold(index)

    for index in range(3):
        live(index)
    used, lines = meters.used, page("").body.count(b"\n")
    for life in range(1000):
        live(life % 3)
    assert meters.used == used
    assert page("").body.count(b"\n") == lines
    assert b'pgqueue_jobs_total{outcome="succeeded",queue="default",workflow="a"} 1003.0\n' in page("").body
