"""The command line: what it prints, and that bad input gives one line, the right exit code, and nothing half done."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.support import ROOT, states

BANK = "tests.apps.bank:app"


def pgqueue(*arguments: str, dsn: str | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PG", "COLUMNS"))} | env
    if dsn is not None:
        environment["PGQUEUE_DSN"] = dsn
    return subprocess.run(
        [sys.executable, "-m", "pgqueue", *arguments], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=60
    )


def refused(code: int, *arguments: str, says: str, dsn: str | None = None) -> str:
    done = pgqueue(*arguments, dsn=dsn)
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    lines = [line for line in done.stderr.splitlines() if line]
    assert says in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    assert len(lines) == 1 or code == 64, done.stderr
    return done.stderr


def test_the_whole_way(empty_dsn: str) -> None:
    dsn = empty_dsn
    assert "applied" in pgqueue("migrate", BANK, dsn=dsn).stdout
    assert "up to date" in pgqueue("migrate", BANK, dsn=dsn).stdout
    assert pgqueue("migrate", "--check", dsn=dsn).returncode == 0
    done = pgqueue("enqueue", "tests.apps.bank.noop", "--id", "a", dsn=dsn)
    job = done.stdout.strip()
    assert pgqueue("enqueue", "tests.apps.bank.noop", "--id", "a", dsn=dsn).stdout.strip() == job
    later = pgqueue("enqueue", "tests.apps.bank.noop", "{}", "--delay", "1h", "--priority", "2", dsn=dsn).stdout.strip()
    assert json.loads(pgqueue("jobs", "--json", "--state", "ready", dsn=dsn).stdout)[0]["id"] == job
    assert pgqueue("work", BANK, "--burst", dsn=dsn).returncode == 0
    shown = json.loads(pgqueue("show", job[:13], "--json", dsn=dsn).stdout) if job[:13] != later[:13] else {"state": "succeeded"}
    assert shown["state"] == "succeeded"
    assert "succeeded" in pgqueue("show", job, dsn=dsn).stdout
    assert "requested" in pgqueue("cancel", later, dsn=dsn).stdout
    assert pgqueue("cancel", job, dsn=dsn).returncode == 1, "it has ended"
    assert pgqueue("requeue", job, dsn=dsn).returncode == 1, "it succeeded"
    assert pgqueue("requeue", "--failed", "--yes", dsn=dsn).returncode == 0
    status = json.loads(pgqueue("status", "--json", dsn=dsn).stdout)
    assert [queue["queue"] for queue in status["queues"]] == ["default", "payments"]
    assert "default" in pgqueue("status", dsn=dsn).stdout
    assert "pruned 1 jobs" in pgqueue("prune", "--older", "0s", "--yes", dsn=dsn).stdout
    assert pgqueue("show", job, dsn=dsn).returncode == 1
    assert "tests.apps.bank.noop" in pgqueue("jobs", dsn=dsn).stdout


def test_wait_prints_the_result(dsn: str, workers: Any) -> None:
    workers.start(BANK, "-w", "1")
    done = pgqueue("enqueue", "tests.apps.bank.noop", "--wait", "30s", "-q", "default", dsn=dsn)
    assert done.stdout.splitlines()[1:] == ["null"], done.stderr


def test_unreachable_database() -> None:
    for command in (["status"], ["migrate"], ["work", BANK], ["enqueue", "x", "-q", "default"]):
        done = pgqueue(*command, dsn="postgresql://me:hunter2@127.0.0.1:1/nowhere")
        assert done.returncode == 69, done.stderr
        assert "cannot connect" in done.stderr
        assert "hunter2" not in done.stderr + done.stdout
        assert len(done.stderr.splitlines()) == 1, done.stderr


def test_wrong_dsn(dsn: str) -> None:
    error = refused(78, "status", says="cannot be parsed", dsn="postgresql://me:hunter2@[host/x")
    assert "hunter2" not in error
    error = refused(69, "status", says="cannot connect", dsn=dsn.replace("dbname=", "dbname=no_such_"))
    assert "does not exist" in error
    wrong = "postgresql://me:hunter2@/x?host=/nonexistent"
    assert "hunter2" not in refused(69, "status", says="cannot connect", dsn=wrong)
    refused(78, "status", says="PGQUEUE_DSN")


def test_a_wrong_dsn_to_listen_is_refused_also_where_nobody_needs_it(dsn: str) -> None:
    for wrong in ("garbage hunter2", "postgresql://me:hunter2@[host/x", "postgresql://me:hunt@er2@host/x"):
        error = refused(
            78, "work", BANK, "--listen-dsn", wrong, "--burst", says="--listen-dsn: the DSN cannot be parsed", dsn=dsn
        )
        assert "hunt" not in error
    done = pgqueue("work", BANK, "--check", dsn=dsn, PGQUEUE_LISTEN_DSN="garbage")
    assert (done.returncode, "PGQUEUE_LISTEN_DSN: the DSN cannot be parsed" in done.stderr) == (78, True)


def test_missing_module_or_app(dsn: str, tmp_path: Path) -> None:
    refused(78, "work", "no.such.module:app", says="no module", dsn=dsn)
    refused(78, "migrate", "no_such_module", says="no module", dsn=dsn)
    refused(78, "work", "tests.apps.bank:nothing", says="it has app", dsn=dsn)
    refused(78, "work", "json:dumps", says="it has none", dsn=dsn)
    refused(78, "work", BANK, "-q", "nowhere", says="no queue nowhere", dsn=dsn)
    (tmp_path / "broken_module.py").write_text("1/0\n")
    done = pgqueue("work", "broken_module:app", dsn=dsn, PYTHONPATH=str(tmp_path))
    assert done.returncode == 78
    assert "ZeroDivisionError" in done.stderr
    assert "Traceback" not in done.stderr


def test_unmigrated_or_old_schema(empty_dsn: str, dsn: str, conn: psycopg.Connection[Any]) -> None:
    for command in (["work", BANK], ["status"], ["jobs"], ["enqueue", "x", "-q", "default"], ["migrate", "--check"]):
        refused(78, *command, says="pgqueue migrate", dsn=empty_dsn)
    conn.execute("DELETE FROM pgqueue.migration WHERE number > 1")
    refused(78, "work", BANK, says="this pgqueue needs", dsn=dsn)


def test_bad_input_to_enqueue(dsn: str, conn: psycopg.Connection[Any], tmp_path: Path) -> None:
    refused(64, "enqueue", "x", "{not json", says="not JSON", dsn=dsn)
    refused(64, "enqueue", "x", "[1]", "-q", "default", says="dict", dsn=dsn)
    refused(64, "enqueue", "x", "{}", "--delay", "-5m", says="duration", dsn=dsn)
    refused(64, "enqueue", "x", "{}", "--delay=-5", says="negative", dsn=dsn)
    refused(64, "enqueue", "x", "{}", "--priority", "10", says="priority", dsn=dsn)
    refused(64, "enqueue", "not a name", "{}", "-q", "default", says="cannot be the name", dsn=dsn)
    refused(1, "enqueue", "unheard.of", says="no workflow", dsn=dsn)
    refused(1, "enqueue", "x", "-q", "nowhere", says="no queue", dsn=dsn)
    refused(64, "enqueue", "x", '{"a": NaN}', "-q", "default", says="nan", dsn=dsn)
    refused(64, "enqueue", "x", '{"a": "\\u0000"}', "-q", "default", says="NUL", dsn=dsn)
    assert states(conn) == {}


def test_an_input_of_2_mib(dsn: str, conn: psycopg.Connection[Any]) -> None:
    from pgqueue import Client
    from pgqueue.errors import ValueTooLarge

    with Client(dsn) as client, pytest.raises(ValueTooLarge, match="the limit is"):
        client.enqueue("x", {"a": "x" * (2 << 20)}, queue="default")
    assert states(conn) == {}


def test_bad_ids_and_usage(dsn: str) -> None:
    for bad in ("zzz", "01-", "", "0" * 37, "01920000000070008000000000000000"):
        refused(1, "show", bad, says="not the id of a job", dsn=dsn)
    refused(1, "show", "01920000-0000-7000-8000-000000000000", says="no job", dsn=dsn)
    refused(1, "cancel", "ffff", says="no job", dsn=dsn)
    refused(64, "requeue", says="name the jobs", dsn=dsn)
    refused(64, "nonsense", says="No such command", dsn=dsn)
    refused(64, "work", says="MODULE:APP", dsn=dsn)
    refused(64, "work", BANK, "--lease", "0.1", says="too short", dsn=dsn)
    refused(64, "prune", "--older", "-1d", "--yes", says="duration", dsn=dsn)


def test_names_that_nobody_has_are_no_empty_tables(dsn: str) -> None:
    refused(1, "jobs", "-q", "maill", says="there is no queue 'maill'", dsn=dsn)
    refused(1, "requeue", "--failed", "-q", "maill", says="there is no queue 'maill'", dsn=dsn)
    assert pgqueue("jobs", "-q", "default", dsn=dsn).stderr == ""
    done = pgqueue("jobs", "--workflow", "typo", "--json", dsn=dsn)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "pgqueue: no job of the name 'typo' fits\n")


def test_what_destroys_asks_first(dsn: str, conn: psycopg.Connection[Any]) -> None:
    done = pgqueue("prune", "--older", "1d", dsn=dsn)
    assert done.returncode == 64
    assert "pruned" not in done.stdout
    assert "ended more than 1d ago?" in done.stderr
    refused(64, "retention", "--failed", "0", "--ticks", "0s", says="keep no failed and ticks, and delete those", dsn=dsn)
    assert conn.execute("SELECT count(*) FROM pgqueue.retention WHERE seconds = 0").fetchone() == (0,)
    assert "0s" in pgqueue("retention", "-q", "default", "--failed", "0", "--yes", dsn=dsn).stdout
    refused(64, "retention", "--failed", "default", says="succeeded and cancelled jobs for 7 days", dsn=dsn)


def test_the_dsn_is_on_no_command_line_of_ours(dsn: str, workers: Any) -> None:
    work = workers.start(BANK, "-w", "1")
    from tests.support import wait_for

    wait_for(lambda: len(work.children()) == 2)
    for pid in [work.pid, *work.children()]:
        assert b"password" not in Path(f"/proc/{pid}/cmdline").read_bytes()
    assert "password" not in work.log()


def test_sql_script_installs_a_schema(empty_dsn: str) -> None:
    script = pgqueue("migrate", "--sql").stdout
    with psycopg.connect(empty_dsn, autocommit=True) as conn:
        conn.execute(script)  # type: ignore[arg-type]
    assert pgqueue("migrate", "--check", dsn=empty_dsn).returncode == 0
    assert pgqueue("work", BANK, "--burst", dsn=empty_dsn).returncode == 0


def test_without_libpq_the_command_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "psycopg.py").write_text("raise ImportError('no pq wrapper available')")
    done = pgqueue("status", PYTHONPATH=str(tmp_path))
    assert done.returncode == 78
    assert "pgqueue-workflows[binary]" in done.stderr
