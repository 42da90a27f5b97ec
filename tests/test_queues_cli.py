"""pgqueue queues, limit, pause and resume."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import psycopg
import pytest

from pgqueue import App, Queue, Rate
from pgqueue.database import run
from pgqueue.errors import UnknownQueue
from tests.support import ROOT, Hand


def pgqueue(dsn: str, *arguments: str, code: int = 0) -> str:
    return both(dsn, *arguments, code=code)[code != 0]


def both(dsn: str, *arguments: str, code: int = 0) -> tuple[str, str]:
    """What it says on stdout and on stderr."""
    done = subprocess.run(
        [sys.executable, "-m", "pgqueue", *arguments, "--dsn", dsn],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout, done.stderr


@pytest.fixture
def app(dsn: str, conn: psycopg.Connection[Any]) -> App:
    app = App(dsn, queues=[Queue("mail", concurrency=2, rate=Rate(100, per="1m", burst=5))])

    @app.step(name="send", queue="mail")
    def send() -> None: ...

    run(conn, app.registration())
    return app


def facts(dsn: str) -> dict[str, Any]:
    return {row["queue"]: row for row in json.loads(pgqueue(dsn, "queues", "--json"))}


def test_limits_are_shown_and_changed(app: App, dsn: str, conn: psycopg.Connection[Any]) -> None:
    mail = facts(dsn)["mail"]
    assert mail["limits"] == mail["declared"] == {"concurrency": 2, "rate": {"n": 100, "per": 60, "burst": 5}}
    assert (mail["chosen"], mail["used"], mail["paused"]) == ({}, 0, False)
    assert pgqueue(dsn, "limit", "mail", "--concurrency", "7", "--rate", "off") == "mail: concurrency 7\n"
    run(conn, app.registration())
    mail = facts(dsn)["mail"]
    assert mail["limits"] == {"concurrency": 7}
    assert mail["declared"]["concurrency"] == 2
    assert mail["chosen"] == {"concurrency": 7, "rate": None}
    shown = pgqueue(dsn, "queues")
    assert "concurrency 7, rate off" in shown
    assert (
        pgqueue(dsn, "limit", "mail", "--concurrency", "default", "--rate", "10/s:3")
        == "mail: concurrency 2, rate 10/1s burst 3\n"
    )
    for option, wrong in (("--rate", "fast"), ("--rate", "0/1m"), ("--concurrency", "-1"), ("--per-key", "many")):
        pgqueue(dsn, "limit", "mail", option, wrong, code=64)
    pgqueue(dsn, "limit", "mail", code=64)
    assert pgqueue(dsn, "limit", "mail", "--fair-by", "who", "--weight", "a=2").endswith("fair-by who, weights a=2\n")
    assert "fair-by" not in pgqueue(dsn, "limit", "mail", "--fair-by", "default", "--weight", "a=default")
    assert "there is no queue 'nowhere'" in pgqueue(dsn, "limit", "nowhere", "--concurrency", "1", code=1)
    assert "there is no queue 'nowhere'" in pgqueue(dsn, "pause", "nowhere", code=1)


def test_a_queue_that_is_fair_by_what_jobs_do_not_have(app: App, dsn: str) -> None:
    said, warned = both(dsn, "limit", "mail", "--fair-by", "tenannt")
    assert "fair-by tenannt" in said
    assert "jobs without this argument" in warned
    assert both(dsn, "limit", "mail", "--fair-by", "default")[1] == ""
    assert "the weights count when" in both(dsn, "limit", "mail", "--weight", "acme=3")[1]
    assert both(dsn, "limit", "mail", "--weight", "acme=default")[1] == ""
    for name in ("x" * 129, ""):
        refusal = pgqueue(dsn, "limit", "mail", "--fair-by", name, code=64)
        assert "fair_by is the name of a parameter, up to 128 characters" in refusal
        assert len(refusal) < 700


def test_jobs_that_ran_before_there_was_a_limit_are_shown_as_used(app: App, dsn: str) -> None:
    pgqueue(dsn, "limit", "mail", "--concurrency", "off", "--rate", "off")
    app.functions["send"].enqueue()
    hand = Hand(app, dsn)
    assert len(hand.claim()) == 1
    assert facts(dsn)["mail"]["used"] is None
    pgqueue(dsn, "limit", "mail", "--concurrency", "1")
    assert facts(dsn)["mail"]["used"] == 1
    hand.close()
    app.close()


def test_from_python(app: App, dsn: str, conn: psycopg.Connection[Any]) -> None:
    assert app.limit("mail", concurrency=7, rate=Rate(10, per="1s", burst=3), aging="1m")["aging"] == 60
    run(conn, app.registration())
    mail = facts(dsn)["mail"]
    assert mail["limits"] == {"concurrency": 7, "rate": {"n": 10, "per": 1, "burst": 3}, "aging": 60}
    assert (mail["next_start_seconds"], mail["tokens"]) == (0, 3)
    conn.execute("INSERT INTO pgqueue.rate_register VALUES ('mail', '', pgqueue.clock() + interval '150 ms')")
    assert facts(dsn)["mail"]["tokens"] in (1, 2, 3)
    assert app.limit("mail", concurrency=None, rate=0, aging=0) == {"concurrency": 2}
    app.pause("mail")
    assert facts(dsn)["mail"]["paused"]
    app.resume("mail")
    assert not facts(dsn)["mail"]["paused"]
    with pytest.raises(UnknownQueue):
        app.pause("nowhere")
    with pytest.raises(UnknownQueue):
        app.limit("nowhere", concurrency=5)
    with pytest.raises(TypeError):
        app.limit("mail", speed=5)
    app.close()


def test_a_paused_queue_gives_out_nothing(app: App, dsn: str) -> None:
    job = app.functions["send"].enqueue()
    assert pgqueue(dsn, "pause", "mail") == "mail is paused\n"
    hand = Hand(app, dsn)
    assert hand.drain() == 0
    assert facts(dsn)["mail"]["paused"]
    assert facts(dsn)["mail"]["ready"] == 1
    assert pgqueue(dsn, "resume", "mail") == "mail goes on\n"
    assert hand.drain() == 1
    assert job.status() == "succeeded"
    hand.close()
    app.close()
