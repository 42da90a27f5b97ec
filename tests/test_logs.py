"""The log: one line per record, which nobody can forge, in which no secret is, and which stops nothing."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pgqueue import App
from pgqueue.cli.commands import cli
from pgqueue.database import connect, masked, secrets_of
from pgqueue.errors import Configuration, DatabaseUnreachable, PgQueueError
from pgqueue.logs import LONGEST, Handler, harmless
from tests.apps import counted
from tests.shop import Shop
from tests.support import ROOT, Workers, wait_for
from tests.test_exposition import free_port, get, samples, value

JOB = "01a22430-0237-70ff-a19d-fedd8541a9ee"
HOSTILE = "\r\n2026-01-01 00:00:00 ERROR worker[1] forged\x1b[2J\x9b31m\u2028\u202e\0\ud800"


class Log:
    """A log that can be read."""

    def __init__(self, as_json: bool) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        self.handler = Handler(self._write, as_json)
        self.logger = logging.Logger("pgqueue.test")
        self.logger.addHandler(self.handler)

    def text(self) -> str:
        said = b""
        try:
            while data := os.read(self._read, 1 << 16):
                said += data
        except BlockingIOError:
            pass
        return said.decode()

    def __del__(self) -> None:
        self.handler.close()
        os.close(self._read)
        os.close(self._write)

    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text().splitlines()]


@pytest.fixture(params=["text", "json"])
def log(request: pytest.FixtureRequest) -> Log:
    return Log(request.param == "json")


def test_json_has_the_fields() -> None:
    log = Log(as_json=True)
    try:
        raise ValueError("no")
    except ValueError:
        log.logger.exception("job %s", 1, extra={"job_id": "a", "step": 2, "attempt": 1, "duration_ms": 1.5, "secret": "x"})
    [record] = log.records()
    assert list(record) == ["ts", "level", "msg", "role", "pid", "job_id", "attempt", "step", "duration_ms", "exc"]
    assert record["msg"] == "job 1"
    assert record["level"] == "ERROR"
    assert record["exc"].endswith("ValueError: no")
    assert record["ts"].endswith("Z")


def test_text_is_one_line_and_its_traceback_indented() -> None:
    log = Log(as_json=False)
    log.logger.warning("one\ntwo", extra={"job_id": "a"})
    try:
        raise ValueError("first\nsecond")
    except ValueError:
        log.logger.exception("failed")
    first, second, *rest = log.text().splitlines()
    assert first.endswith("one\\ntwo job_id=a")
    assert "failed" in second
    assert all(line.startswith("    ") for line in rest)
    assert rest[-1] == "    ValueError: first second"


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=6000) | st.just(HOSTILE))
def test_a_listing_is_lines_below_its_record_and_forges_none(said: str) -> None:
    """Only what is given as one: a message that has line ends in it is one line all the same."""
    log = Log(as_json=False)
    log.logger.warning("stacks", extra={"listing": f"one\n{said}"})
    first, second, *rest = log.text().rstrip("\n").split("\n")
    assert first.endswith("stacks")
    assert second == "    one"
    assert all(line.startswith("    ") and harmless(line) == line for line in rest)
    log = Log(as_json=True)
    log.logger.warning("stacks", extra={"listing": f"one\n{said}"})
    [record] = log.records()
    assert record["msg"].startswith("stacks\none\n")


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=6000) | st.just(HOSTILE))
def test_nothing_forges_a_record(said: str) -> None:
    for as_json in (True, False):
        log = Log(as_json)
        log.logger.warning("%s", said, extra={"workflow": said, "job_id": said})
        text = log.text()
        assert text.count("\n") == 1
        assert text.endswith("\n")
        assert len(text.encode()) <= LONGEST
        assert harmless(text[:-1]) == text[:-1]
        if as_json:
            json.loads(text)


def test_long_ones_are_shortened_and_still_one_piece(log: Log) -> None:
    try:
        raise ValueError("y" * 100_000)
    except ValueError:
        log.logger.exception("%s", "\U0001f600" * 100_000)
    text = log.text()
    assert len(text.encode()) <= LONGEST
    assert "[...]" in text


def test_what_cannot_be_formatted_is_no_reason_to_fail(log: Log) -> None:
    class Broken:
        def __str__(self) -> str:
            raise RuntimeError

    log.logger.warning("%s", Broken())
    log.logger.warning("%d", "x")
    try:
        raise ValueError(Broken())
    except ValueError:
        log.logger.exception("failed")
    assert log.text().count("cannot be formatted") == 2


def test_detail_of_the_database_is_left_out(conn: psycopg.Connection[Any]) -> None:
    conn.execute("CREATE TABLE person (email text PRIMARY KEY)")
    address = "ann@" + "example.org"
    conn.execute("INSERT INTO person VALUES (%s)", [address])
    log = Log(as_json=True)
    try:
        try:
            conn.execute("INSERT INTO person VALUES (%s)", [address])
        except psycopg.Error as error:
            raise PgQueueError("it failed") from error
    except PgQueueError:
        log.logger.exception("failed")
    [record] = log.records()
    assert "duplicate key" in record["exc"]
    assert "ann@" not in record["exc"]


# ---------------------------------------------------------------------------------------------------- secrets

SECRET = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=4, max_size=30)


@settings(max_examples=20, deadline=None)
@given(SECRET.map(lambda text: "Zq9" + text))
def test_a_password_is_in_no_output(secret: str) -> None:
    """In a DSN of either form, where it can be connected to and where not, in every text that we make of it."""
    escaped = secret.replace("\\", "\\\\").replace("'", "\\'")
    for dsn in (f"postgresql://u:{quote(secret, safe='')}@127.0.0.1:1/x", f"host=127.0.0.1 port=1 user=u password='{escaped}'"):
        app = App(dsn)
        outputs = [masked(dsn), repr(app), repr(app.client), repr(app.client.pool), str(vars(app.client.pool).keys())]
        with pytest.raises(DatabaseUnreachable) as caught:
            connect(dsn, "x")
        outputs += [str(caught.value), repr(caught.value)]
        log = Log(as_json=False)
        log.handler.lines.hide([secret])
        log.logger.warning("cannot connect to %s %s", dsn, secret, extra={"job_id": dsn})
        outputs.append(log.text())
        for output in outputs:
            assert secret not in output
            assert quote(secret, safe="") not in output


#: How each command is called that asks the database, so that it does.
COMMANDS = {
    "cancel": f"{JOB} --yes",
    "config": "",
    "doctor": "",
    "enqueue": "x {} --queue default",
    "event": "x 1",
    "exporter": "",
    "grant": "producer x",
    "jobs": "",
    "limit": "default --concurrency 5",
    "migrate": "tests.apps.bank:app",
    "pause": "default",
    "prune": "--older 7d --yes",
    "queues": "",
    "requeue": f"{JOB} --yes",
    "rerun": JOB,
    "resume": "default",
    "retention": "",
    "schedules": "",
    "send": f"{JOB} t 1",
    "show": JOB,
    "status": "",
    "top": "--once",
}
#: They have a database of their own, ask none, or are real processes in the next test.
OTHERS = {"bench", "chaos", "demo", "dev", "health", "work"}


@settings(max_examples=3, deadline=None)
@given(SECRET.map(lambda text: "Zq9" + text))
def test_no_command_shows_the_password(secret: str) -> None:
    assert COMMANDS.keys() | OTHERS == cli.commands.keys()
    for name, rest in COMMANDS.items():
        dsn = f"postgresql://u:{quote(secret, safe='')}@127.0.0.1:1/x"
        done = CliRunner().invoke(cli, [name, *rest.split()], env={"PGQUEUE_DSN": dsn})
        said = done.output + "".join(traceback.format_exception(done.exception))
        assert "password=***" in said, name
        assert secret not in said, name
        assert quote(secret, safe="") not in said, name


def test_no_process_shows_the_password(dsn: str, workers: Workers) -> None:
    """As it is in the environment of real processes: their output, their log, their command line, their metrics."""
    secret, wrong, port = conninfo_to_dict(dsn)["password"], "Zq9-s3cr3t%/ü", free_port()
    assert isinstance(secret, str)
    for bad in (f"{dsn} password='{wrong}'", f"postgresql://u:{quote(wrong, safe='')}@127.0.0.1:1/x", f"no dsn {wrong}"):
        command = [sys.executable, "-m", "pgqueue", "work", "tests.apps.counted:app"]
        ran = subprocess.run(
            command, env={**os.environ, "PGQUEUE_DSN": bad}, cwd=ROOT, capture_output=True, text=True, timeout=120
        )
        assert ran.returncode in (69, 78)
        assert wrong not in ran.stdout + ran.stderr
        assert quote(wrong, safe="") not in ran.stdout + ran.stderr
    work = workers.start("tests.apps.counted:app", "-w", "1", "-v", "--metrics", str(port))
    wait_for(lambda: get(port, "/readyz")[0] == 200, what=work.log())
    for pid in [work.pid, *work.children()]:
        with open(f"/proc/{pid}/cmdline") as line:
            assert secret not in line.read()
    assert secret not in get(port, "/metrics")[1] + work.log()


@pytest.mark.parametrize("secret", ["p@ss22", "pa/ss22", "12/s3cret", "p@s/s22", "a@b:c@d99"])
def test_a_password_that_is_not_quoted_is_a_clear_error_and_in_no_output(secret: str) -> None:
    """libpq takes the rest of it for a host, a port or a database, and says so."""
    dsn = f"postgresql://u:{secret}@127.0.0.1:1/x"
    with pytest.raises(Configuration, match="has to be quoted, @ as %40") as caught:
        connect(dsn, "x")
    log = Log(as_json=False)
    log.handler.lines.hide(secrets_of(dsn))
    log.logger.warning("cannot connect to %s, with %s", dsn, secret)
    for output in (masked(dsn), str(caught.value), log.text()):
        assert not any(piece in output for piece in (secret, *(piece for piece in secret.split("@") if len(piece) > 3)))


@pytest.mark.parametrize("dsn", ["postgresql://u@h/x?options=a@b", "postgresql://u:p%40ss@h:1/my@db", "host=h user=a@b port=1",
                                 "postgresql://h:1/x?user=a@b", "postgresql:///x?host=%40abstract"])  # fmt: skip
def test_an_at_sign_elsewhere_is_no_matter(dsn: str) -> None:
    assert "cannot be parsed" not in masked(dsn)


def test_passwords_that_come_later_are_hidden_from_whoever_writes(shop: Shop, dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the App, of another DSN after a reload, and of where to listen: in the supervisor (what workers write while they
    import the App is hidden by what they have from it) and in workers."""
    monkeypatch.setenv("PGQUEUE_LISTEN_DSN", make_conninfo(dsn, sslpassword="listen-s3cret"))
    tells = """
import logging
from pgqueue.context import process
if process.role == 'worker':
    logging.getLogger('pgqueue.shop').warning('imports with first-s3cret, SECOND, listen-s3cret')
@app.on('worker_start')
def tell():
    logging.getLogger('pgqueue.shop').warning('starts with first-s3cret, SECOND, listen-s3cret')
"""
    shop.write("first", tells.replace("SECOND, ", "") + f"app.dsn = {make_conninfo(dsn, sslpassword='first-s3cret')!r}\n")
    work = shop.start("-w", "1")
    assert shop.answer() == "first"
    second = make_conninfo(dsn, sslpassword="second-s3cret")
    shop.write("second one", tells.replace("SECOND", "second-s3cret") + f"app.dsn = {second!r}\n")
    work.signal(signal.SIGHUP)
    wait_for(lambda: "reloaded: all" in work.log(), what=f"the reload\n{work.log()}")
    assert shop.answer() == "second one"
    log = work.log()
    assert "imports with ***, ***, ***" in log
    assert "starts with ***, ***, ***" in log
    assert "s3cret" not in log


# ----------------------------------------------------------------------------------------- a log that takes no more


@pytest.mark.parametrize("kind", ["pipe", "socket", "nobody reads"])
def test_what_is_not_taken_is_dropped(kind: str) -> None:
    if kind == "socket":
        ours, theirs = socket.socketpair()
        read, write = ours.fileno(), theirs.fileno()
    else:
        read, write = os.pipe()
    if kind == "nobody reads":
        os.close(read)
    handler, calls = Handler(write, True), []
    handler.on_drop = lambda: calls.append(1)
    logger = logging.Logger("pgqueue.test")
    logger.addHandler(handler)
    done = threading.Event()

    def fill() -> None:
        for _ in range(5000):
            logger.warning("x" * 1000)
        done.set()

    threading.Thread(target=fill, daemon=True).start()
    assert done.wait(60), "the log stops what it is about"
    assert handler.dropped == len(calls) > 0
    if kind != "nobody reads":
        os.set_blocking(read, False)
        said = b""
        for _ in range(2):
            try:
                while data := os.read(read, 1 << 16):
                    said += data
            except BlockingIOError:
                logger.warning("again")
        assert b"log records were dropped" in said
        assert all(json.loads(line) for line in said.splitlines()), "only whole records"
        assert os.get_blocking(write), "what others have of it is left as it was"
    handler.close()
    if kind == "socket":
        ours.close()
        theirs.close()
    else:
        os.close(write)


@pytest.fixture
def counted_db(dsn: str, conn: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[psycopg.Connection[Any]]:
    monkeypatch.setenv("PGQUEUE_DSN", dsn)
    yield conn
    counted.app.close()


def test_a_full_pipe_stops_nothing(counted_db: psycopg.Connection[Any], dsn: str) -> None:
    """A supervisor whose stderr nobody reads does its work all the same, and says in its metrics what was dropped."""
    port = free_port()
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 4096)
    work = subprocess.Popen(
        [sys.executable, "-m", "pgqueue", "work", "tests.apps.counted:app", "-w", "2", "-v", "--metrics", str(port)],
        cwd=ROOT, env={**os.environ, "PGQUEUE_DSN": dsn}, stdin=subprocess.DEVNULL, stderr=write, start_new_session=True,
    )  # fmt: skip
    try:
        os.close(write)
        wait_for(lambda: get(port, "/readyz")[0] == 200)
        jobs = counted.app.enqueue_many([counted.noisy.call(secret="s3cr3t-input")] * 200)
        for job in jobs:
            assert job.result(timeout=60) == 1
        wait_for(lambda: value(samples(port), "pgqueue_log_records_dropped_total") > 100)
        said = os.read(read, 65536).decode()
        assert "s3cr3t-input" not in said
        work.send_signal(signal.SIGTERM)
        assert work.wait(60) == 0
    finally:
        work.kill()
        work.wait()
        os.close(read)


def test_records_of_a_job_know_it(counted_db: psycopg.Connection[Any], workers: Workers) -> None:
    work = workers.start("tests.apps.counted:app", "-w", "1", "-v", "--log-format", "json")
    job = counted.logs_in_step.enqueue()
    job.result(timeout=60)

    def said(msg: str) -> list[dict[str, Any]]:
        return [record for line in work.log().splitlines() if (record := json.loads(line))["msg"].startswith(msg)]

    wait_for(lambda: said("a run has ended"), what=work.log())
    [body], [step], [thread] = said("in the body"), said("in the step"), said("in a thread")
    for record in (body, step, thread):
        assert (record["job_id"], record["workflow"], record["queue"], record["attempt"]) == (job.id, "logs", "default", 1)
        assert (record["role"], record["level"]) == ("worker", "INFO")
        assert len(record["worker"]) == 36
    assert ("step" in body, step["step"], thread["step"]) == (False, 1, 1)
    [library] = said("of a library")
    assert (library["logger"], library["job_id"], library["step"]) == ("a.library", job.id, 1)
    assert "logger" not in body
    assert "not even this" not in work.log()
    [end] = said("a run has ended")
    assert end["duration_ms"] > 0
    assert end["job_id"] == job.id
