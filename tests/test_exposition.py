"""What a supervisor's port answers, with real processes: metrics, probes, and clients that do not behave."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from typing import Any

import psycopg
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from chaos.commits import HeldCommits, ghost_standby
from pgqueue._version import __version__
from pgqueue.config import Address
from pgqueue.database import run
from pgqueue.housekeeper.exposition import Exposition, Health
from pgqueue.housekeeper.http import LONGEST_REQUEST, MOST_CLIENTS, Answer, Server
from pgqueue.meter import Meters
from pgqueue.metrics import CLAIM_LOST, IN_DOUBT, METRICS
from pgqueue.slots import Order, Phase, Slots
from tests.apps import counted
from tests.support import Hand, Work, Workers, wait_for, worker_pids

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as door:
        port: int = door.getsockname()[1]
        return port


def get(port: int, path: str, accept: str = "*/*") -> tuple[int, str]:
    asked = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers={"Accept": accept})
    try:
        with urllib.request.urlopen(asked, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError:  # nobody listens yet, or the housekeeper was killed
        return 0, ""


def samples(port: int) -> Samples:
    status, text = get(port, "/metrics")
    return samples_of(text) if status == 200 else {}


def samples_of(text: str) -> Samples:
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in parse(text) for s in family.samples}


def value(found: Samples, name: str, **labels: str) -> float:
    return found.get((name, tuple(sorted(labels.items()))), 0.0)


@pytest.fixture
def counted_db(dsn: str, conn: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[psycopg.Connection[Any]]:
    monkeypatch.setenv("PGQUEUE_DSN", dsn)
    run(conn, counted.app.registration())
    yield conn
    counted.app.close()


def serve(workers: Workers, *options: str) -> tuple[Work, int]:
    port = free_port()
    work = workers.start("tests.apps.counted:app", "-w", "2", "--metrics", str(port), *options)
    wait_for(lambda: get(port, "/readyz")[0] == 200, what=work.log())
    return work, port


# ------------------------------------------------------------------------------------------------- real processes


def test_everything_is_counted(counted_db: psycopg.Connection[Any], workers: Workers) -> None:
    work, port = serve(workers)
    for end in ("", "cancel", "fail"):
        counted.every.enqueue(end)
    counted.see.enqueue('who "\n\\', 500)
    for _ in range(20):
        counted.write.enqueue()
    ended = "SELECT count(*) FROM pgqueue.outcome"
    wait_for(lambda: counted_db.execute(ended).fetchone() == (24,), what=work.log())

    def counts(found: Samples) -> bool:
        return sum(v for (name, _), v in found.items() if name == "pgqueue_jobs_total") == 24

    wait_for(lambda: counts(samples(port)), what="the last ones to be counted")
    found = wait_for(lambda: (found := samples(port)) and value(found, "pgqueue_queue_limit", queue="other") and found)
    for end, outcome in (("every", "succeeded"), ("every", "cancelled"), ("every", "failed")):
        assert value(found, "pgqueue_jobs_total", queue="default", workflow=end, outcome=outcome) == 1
    assert value(found, "pgqueue_jobs_total", queue="default", workflow="write", outcome="succeeded") == 20
    assert value(found, "pgqueue_job_duration_seconds_count", queue="default", workflow="write") == 20
    assert value(found, "pgqueue_job_wait_seconds_count", queue="default", workflow="every") == 3
    assert value(found, "pgqueue_unfinished_runs_total", queue="default", workflow="every", how="suspend") == 3

    def steps(step: str, kind: str, outcome: str) -> float:
        return value(found, "pgqueue_steps_total", workflow="every", step=step, kind=kind, outcome=outcome)

    assert steps("write", "transaction", "succeeded") == 3
    assert steps("see", "step", "succeeded") == 9
    assert steps("see", "step", "replayed") >= 3
    assert steps("pgqueue.sleep", "sleep", "succeeded") == 3
    assert steps("fail", "step", "failed") == 3
    assert (steps("fail_once", "step", "retry"), steps("fail_once", "step", "failed")) == (1, 1)
    assert value(found, "pgqueue_claims_total", result="jobs") == value(found, "pgqueue_claim_batch_count") > 0
    assert value(found, "pgqueue_workers", state="booting") == 0
    assert sum(v for (name, _), v in found.items() if name == "pgqueue_workers") == 2
    assert value(found, "pgqueue_info", version=__version__, app="tests.apps.counted:app", queues="default,other") == 1
    assert value(found, "pgqueue_queue_limit", queue="other") == 3
    assert value(found, "pgqueue_conflicts_total") == 0
    assert value(found, "pgqueue_table_bytes", table="job") > 0
    assert value(found, "shop_seen_total", who='who "\n\\') == 1
    assert value(found, "shop_size_bytes_bucket", who="a", le="10.0") == 3
    assert value(found, "shop_level") in (5, 500)
    known = {sample for family in METRICS for sample in family.samples}
    assert {name for name, _ in found if name.startswith("pgqueue_")} <= known

    _, text = get(port, "/metrics", "application/openmetrics-text; version=1.0.0")
    assert text.endswith("# EOF\n")
    assert {s.name for family in parse_openmetrics(text) for s in family.samples} >= {name for name, _ in found}
    if promtool := shutil.which("promtool", path=f"{os.environ['PATH']}:/usr/local/bin:/usr/bin"):
        checked = subprocess.run([promtool, "check", "metrics"], input=get(port, "/metrics")[1], text=True, capture_output=True)
        assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")
    else:
        assert "CI" not in os.environ, "promtool is missing: apt-get install prometheus"


def test_counters_outlive_workers_and_the_housekeeper(counted_db: psycopg.Connection[Any], workers: Workers) -> None:
    work, port = serve(workers)
    last: Samples = {}
    for number in range(6):
        jobs = counted.app.enqueue_many([counted.nap.call(0.001)] * 50 + [counted.write.call()] * 50)
        for job in jobs[::10]:
            job.result(timeout=60)
        victims = worker_pids(counted_db, work)
        if number % 3 == 2:
            victims = list(set(work.children()) - set(victims))
        os.kill(victims[0], signal.SIGKILL)
        now = wait_for(lambda: samples(port), what=work.log())
        for (name, labels), before in last.items():
            if name.endswith(("_total", "_count", "_bucket")) and not name.startswith("pgqueue_conflicts"):
                assert now[name, labels] >= before, (name, labels)
        last = now
    ended = "SELECT count(*) FROM pgqueue.outcome"
    wait_for(lambda: counted_db.execute(ended).fetchone() == (600,), what=work.log())
    found = wait_for(lambda: (now := samples(port)) and value(now, "pgqueue_worker_exits_total", reason="signal") == 4 and now)
    assert value(found, "pgqueue_recovery_seconds_count") <= 4
    assert not any(v for (name, _), v in found.items() if name == "pgqueue_claim_lost_total")


def test_a_lost_claim_is_counted(counted_db: psycopg.Connection[Any], dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    meters = Meters(1)
    monkeypatch.setattr(counted.app, "meter", meters.meter(0))
    hand = Hand(counted.app, dsn)
    counted.write.enqueue()
    [job] = hand.claim()
    counted_db.execute("UPDATE pgqueue.running SET claim = claim + 1")
    assert hand.run(job) is None
    meters.admit()
    assert (meters.read() or {})[CLAIM_LOST] == {("fence",): [1.0]}
    hand.close()


@pytest.mark.parametrize("resolved", ["aborted", "committed"])
def test_a_commit_in_doubt_is_counted(
    counted_db: psycopg.Connection[Any], dsn: str, monkeypatch: pytest.MonkeyPatch, resolved: str
) -> None:
    """Its session is ended inside COMMIT: before it is durable, and after."""
    meters = Meters(1)
    monkeypatch.setattr(counted.app, "meter", meters.meter(0))
    hand = Hand(counted.app, dsn)
    job = counted.write.enqueue()
    [claimed] = hand.claim()
    inside = "wait_event = 'SyncRep' AND application_name LIKE '%:step:%'"
    counted_db.execute("SET synchronous_commit = local")
    with ThreadPoolExecutor() as pool, ExitStack() as stack:
        if resolved == "committed":
            stack.enter_context(ghost_standby(counted_db))
        else:
            held = HeldCommits(counted_db)
            held.hold("pgqueue.outcome")
            stack.callback(held.release)
            inside = "wait_event_type = 'Lock' AND wait_event = 'advisory'"
        result = pool.submit(hand.run, claimed)
        end = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND {inside}"
        wait_for(lambda: counted_db.execute(end).fetchall(), what="the session to be inside COMMIT")  # type: ignore[arg-type]
        stack.close()
        assert result.result(60) is None, "the transaction has ended the job"
    meters.admit()
    assert (meters.read() or {})[IN_DOUBT] == {(resolved,): [1.0]}
    assert job.status() == "succeeded"
    hand.close()


def test_ready_is_who_can_run_jobs(counted_db: psycopg.Connection[Any], workers: Workers) -> None:
    work, port = serve(workers, "--drain-timeout", "60s")
    assert get(port, "/livez") == (200, "ok\n")
    counted.nap.enqueue(3.0)
    wait_for(lambda: value(samples(port), "pgqueue_workers", state="busy") == 1)
    work.signal(signal.SIGTERM)
    wait_for(lambda: get(port, "/readyz") == (503, "it is draining\n"), what=work.log())
    assert get(port, "/livez") == (200, "ok\n")
    assert work.wait() == 0, work.log()


def test_a_port_that_is_taken_is_waited_for(counted_db: psycopg.Connection[Any], workers: Workers) -> None:
    with socket.create_server(("127.0.0.1", 0)) as door:
        port = door.getsockname()[1]
        work = workers.start("tests.apps.counted:app", "-w", "1", "--metrics", str(port))
        counted.write.enqueue().result(timeout=60)
        wait_for(lambda: "cannot listen on" in work.log(), what=work.log())
    wait_for(lambda: get(port, "/readyz")[0] == 200, what=work.log())
    assert work.log().count("cannot listen on") == 1


# ------------------------------------------------------------------------------------------------------- probes


def test_what_the_probes_say() -> None:
    slots, health = Slots(2), Health()
    pages = Exposition(slots, health, "shop:app", ["default"])
    assert pages.livez() == Answer(503, b"the supervisor has not gone round for inf s\n")
    slots.supervisor.tick()
    assert pages.livez().status == 200
    assert set(pages.readyz().body.decode().splitlines()) == {
        "the schema of the database does not fit", "the database has not answered lately", "no worker has started",
    }  # fmt: skip
    health.answered()
    health.schema_fits = True
    slots[0].assign("01920000-0000-7000-8000-0000000000aa")
    assert pages.readyz() == Answer(503, b"no worker has started\n")
    slots[0].phase = Phase.IDLE
    assert pages.readyz().status == 200
    health.answered_at = time.monotonic() - 31
    assert pages.readyz() == Answer(503, b"the database has not answered lately\n")
    health.answered()
    slots.set_stopping()
    slots[0].order = Order.DRAIN
    assert pages.readyz() == Answer(503, b"it is draining\n")


@pytest.mark.parametrize(
    ("given", "address"),
    [
        ("9909", "127.0.0.1:9909"),
        (9909, "127.0.0.1:9909"),
        (":1", "127.0.0.1:1"),
        ("0.0.0.0:80", "0.0.0.0:80"),
        ("[::]:80", "[::]:80"),
    ],
)
def test_addresses(given: Any, address: str) -> None:
    assert Address().read(given) == address


@pytest.mark.parametrize("given", ["", "99999", "a b:1", "localhost", "localhost:", "1:2:3", "http://localhost:1", None])
def test_what_is_no_address(given: Any) -> None:
    with pytest.raises(ValueError, match="is no address"):
        Address().read(given)


# --------------------------------------------------------------------------------------------------- bad clients


@pytest.fixture(scope="module")
def port() -> int:
    def broken(_: str) -> Answer:
        raise ValueError("a bug")

    port = free_port()
    pages = {"/small": lambda _: Answer(200, b"small\n"), "/large": lambda _: Answer(200, b"x" * 5_000_000), "/broken": broken}
    Server(("127.0.0.1", port), pages).start()
    wait_for(lambda: get(port, "/small")[0] == 200)
    return port


def say(port: int, what: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        client.sendall(what)
        client.shutdown(socket.SHUT_WR)
        said = b""
        while data := client.recv(65536):
            said += data
        return said


@pytest.mark.parametrize(
    ("asked", "status", "body"),
    [
        (b"GET /small HTTP/1.1\r\nHost: x\r\n\r\n", 200, b"small\n"),
        (b"GET /small?x=1 HTTP/1.0\r\n\r\n", 200, b"small\n"),
        (b"HEAD /small HTTP/1.1\r\n\r\n", 200, b""),
        (b"GET /other HTTP/1.1\r\n\r\n", 404, b"there are /small, /large, /broken\n"),
        (b"POST /small HTTP/1.1\r\nContent-Length: 0\r\n\r\n", 405, None),
        (b"DELETE /small HTTP/1.1\r\n\r\n", 405, None),
        (b"GET /broken HTTP/1.1\r\n\r\n", 500, b"internal error: see the log\n"),
        (b"GET /small\r\n\r\n", 400, None),
        (b"GET /small HTTP/2\r\n\r\n", 400, None),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400, None),
        (b"GET /small HTTP/1.1\r\n", 400, None),
        (b"GET /" + b"a" * LONGEST_REQUEST + b" HTTP/1.1\r\n", 431, None),
        (b"\r\n\r\n", 400, None),
        (b"", 400, None),
    ],
)
def test_requests(port: int, asked: bytes, status: int, body: bytes | None) -> None:
    head, _, said = say(port, asked).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert body is None or said == body


def test_nobody_is_kept_by_slow_clients(port: int) -> None:
    """Some say nothing, some half a question, some do not read the answer. Everybody else is served."""
    slow = []
    try:
        for number in range(3 * MOST_CLIENTS):
            client = socket.create_connection(("127.0.0.1", port), timeout=30)
            slow.append(client)
            if number % 3:
                client.sendall(b"GET /large HTTP/1.1\r\n" if number % 3 == 1 else b"GET /large HTTP/1.1\r\n\r\n")
            if number % 10 == 0:
                assert get(port, "/small") == (200, "small\n")
        assert get(port, "/small") == (200, "small\n")
    finally:
        for client in slow:
            client.close()
    assert get(port, "/small") == (200, "small\n")


def test_a_slow_reader_gets_all_of_it(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        client.sendall(b"GET /large HTTP/1.1\r\n\r\n")
        said = 0
        while data := client.recv(1 << 20):
            said += len(data)
    assert said > 5_000_000


def test_no_other_address_is_listened_on(port: int) -> None:
    """The default is this machine's own loopback: even another of its addresses is refused."""
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", port), timeout=5)
    assert json.dumps(Address().read(9909)) == '"127.0.0.1:9909"'
