"""Upgrades: an older schema with jobs in every state, changes of tables under a running workload, migrators that are killed."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgqueue import migrate, protocol
from pgqueue.database import SCHEMA_VERSION, connect, run
from pgqueue.errors import PgQueueError
from tests.apps import bank
from tests.support import ROOT, Workers, kill, states, violations, wait_for, worker_pids
from tests.test_kill import check_ledger

#: What "pgqueue migrate --sql" printed when the schema had this version. New ones are added with each release, none is changed.
OLD = sorted((ROOT / "tests" / "upgrades").glob("schema-*.sql"))

#: What a later version may do to the tables, all at once: more columns, an index, a table, a constraint.
NEXT = """
ALTER TABLE pgqueue.job ADD COLUMN next_a text, ADD COLUMN next_b integer;
ALTER TABLE pgqueue.outcome ADD COLUMN next_a text;
ALTER TABLE pgqueue.checkpoint ADD COLUMN next_a text;
ALTER TABLE pgqueue.attempt ADD COLUMN next_a text;
ALTER TABLE pgqueue.running ADD COLUMN next_a integer NOT NULL DEFAULT 1;
ALTER TABLE pgqueue.ready ADD COLUMN next_a integer;
ALTER TABLE pgqueue.scheduled ADD COLUMN next_a integer;
ALTER TABLE pgqueue.waiting ADD COLUMN next_a integer CHECK (next_a > 0);
ALTER TABLE pgqueue.worker ADD COLUMN next_a integer;
ALTER TABLE pgqueue.queue ADD COLUMN next_a integer;
ALTER TABLE pgqueue.installation ADD COLUMN next_a integer;
CREATE INDEX next_created ON pgqueue.job (created_at);
CREATE TABLE pgqueue.next (id uuid PRIMARY KEY);
"""


@pytest.fixture
def next_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package as it may be after the next release: with one more table file."""
    path = tmp_path / f"{SCHEMA_VERSION + 1:04}_next.sql"
    path.write_text(NEXT)
    files = migrate._files
    monkeypatch.setattr(migrate, "_files", lambda folder: [*files(folder), *[path] * (folder == "tables")])
    return path


@pytest.mark.parametrize("old", OLD, ids=lambda path: path.stem)
def test_an_older_schema_with_jobs_in_every_state(
    empty_dsn: str, tmp_path: Path, bank_file: Path, monkeypatch: pytest.MonkeyPatch, old: Path
) -> None:
    """Jobs that were enqueued, scheduled, put aside and half done before the upgrade are done after it."""
    workers = Workers(empty_dsn, tmp_path)
    monkeypatch.setenv("PGQUEUE_DSN", empty_dsn)
    with connect(empty_dsn, "tests") as conn:
        conn.execute(old.read_text())  # type: ignore[arg-type]
        conn.execute(bank.TABLES)  # type: ignore[arg-type]
        enqueue = "SELECT pgqueue.enqueue_workflow('tests.apps.bank.deposit', %s, queue => 'default', delay => %s)::text"
        jobs = [
            conn.execute(enqueue, ('{"account": 1, "amount": 5}', delay)).fetchone()[0]  # type: ignore[index]
            for delay in (None, "1 second", None, None, None)
        ]
        dead = "00000000-0000-4000-8000-000000000000"  # a worker of before, which was killed in the middle of its jobs
        conn.execute(
            "INSERT INTO pgqueue.worker VALUES"
            " (%s, 'h', 'b', 'p', 1, 1, 0, clock_timestamp(), 'killed', NULL, clock_timestamp())",
            (dead,),
        )
        conn.execute(
            "WITH r AS (DELETE FROM pgqueue.ready WHERE job_id = ANY (%s::uuid[]) RETURNING *) INSERT INTO pgqueue.running"
            " (job_id, claim, worker, queue, lane, pos, started_at)"
            " SELECT job_id, 7, %s, queue, lane, pos, clock_timestamp() FROM r",
            (jobs[2:4], dead),
        )
        conn.execute(
            "WITH r AS (DELETE FROM pgqueue.ready WHERE job_id = %s::uuid RETURNING *) INSERT INTO pgqueue.waiting"
            " (job_id, kind, key, queue, lane) SELECT job_id, 'name', 'tests.apps.bank.deposit', queue, lane FROM r",
            (jobs[4],),
        )
        refused = workers.start("tests.apps.bank:app")
        assert refused.wait() == 78, refused.log()
        assert "pgqueue migrate" in refused.log()

        assert migrate.migrate(conn)
        run(conn, bank.app.registration())
        assert violations(conn) == []
        later = "SELECT FROM pgqueue.scheduled WHERE run_at > clock_timestamp()"
        wait_for(lambda: conn.execute(later).fetchone() is None, what="all to be due: for others --burst does not wait")
        try:
            workers.burst("tests.apps.bank:app", "-w", "1", "--lease", "1s")
        finally:
            workers.stop_all()
        check_ledger(conn, len(jobs))


@contextmanager
def load(dsn: str) -> Iterator[list[str]]:
    """Somebody who enqueues all the time, each job in a transaction of its own. Every error fails the test."""
    over, made, errors = threading.Event(), [], []

    def produce() -> None:
        with psycopg.connect(dsn, autocommit=True) as conn:
            call = "SELECT pgqueue.enqueue_workflow('tests.apps.bank.deposit', '{\"account\": 2, \"amount\": 3}')::text"
            while not over.is_set():
                try:
                    made.append(conn.execute(call).fetchone()[0])  # type: ignore[index]
                except Exception as error:
                    errors.append(error)
                over.wait(0.02)

    thread = threading.Thread(target=produce)
    thread.start()
    try:
        yield made
    finally:
        over.set()
        thread.join()
    assert errors == []


def test_tables_change_under_a_running_workload(
    bank_db: psycopg.Connection[Any], direct_dsn: str, workers: Workers, next_version: Path
) -> None:
    """Old workers go on, with their sessions and prepared statements; new ones work beside them; one of each is killed."""
    with load(direct_dsn) as made:
        old = workers.start("tests.apps.bank:app", "-w", "2", "--lease", "2s")
        wait_for(lambda: states(bank_db).get("succeeded", 0) > 30, what="jobs before the upgrade")
        with connect(direct_dsn, "pgqueue:migrate") as conn:
            assert migrate.migrate(conn) == [SCHEMA_VERSION + 1]
            for _ in range(2):  # functions, views and grants are replaced each time
                assert migrate.migrate(conn) == []
        done = states(bank_db).get("succeeded", 0)
        wait_for(lambda: states(bank_db)["succeeded"] > done + 30, what="old workers to go on")
        new = workers.start("tests.apps.bank:app", "-w", "2", "--lease", "2s")
        wait_for(lambda: len(worker_pids(bank_db, new)) == 2, what="new workers")
        for work in (old, new):
            kill(worker_pids(bank_db, work)[0])
        done = states(bank_db)["succeeded"]
        wait_for(lambda: states(bank_db)["succeeded"] > done + 30, what="both to go on")
        old.signal(signal.SIGTERM)
        assert old.wait() == 0, old.log()
    wait_for(lambda: states(bank_db) == {"succeeded": len(made)}, what="all jobs")
    for work in (old, new):
        for word in ("Traceback", "internal error", "cached plan", "does not match"):
            assert word not in work.log(), work.log()
    check_ledger(bank_db, len(made))


def test_a_migrator_that_cannot_get_its_locks_lets_the_others_go_on(
    bank_db: psycopg.Connection[Any], direct_dsn: str, next_version: Path
) -> None:
    """Somebody's long transaction has a job in hand: the migration waits for it, and nobody waits long for the migration."""
    with psycopg.connect(direct_dsn) as long, connect(direct_dsn, "pgqueue:migrate") as conn:
        long.execute("SELECT pgqueue.enqueue_workflow('x', queue => 'default')")
        with pytest.raises(PgQueueError, match="nothing was changed"):
            migrate.migrate(conn, patience=0.1)
        finished: list[list[int]] = []
        thread = threading.Thread(target=lambda: finished.append(migrate.migrate(conn)))
        thread.start()
        longest = 0.0
        deadline = time.monotonic() + 6
        while time.monotonic() < deadline:
            began = time.monotonic()
            bank_db.execute("SELECT pgqueue.enqueue_workflow('x', queue => 'default')")
            longest = max(longest, time.monotonic() - began)
            time.sleep(0.05)
        assert longest < 20, "the promise is 2 s"
        assert finished == []
        long.commit()
        thread.join(120)
        assert finished == [[SCHEMA_VERSION + 1]]
    assert violations(bank_db) == []


def test_a_migrator_that_is_killed_under_load_leaves_the_old_version(
    bank_db: psycopg.Connection[Any], direct_dsn: str, next_version: Path
) -> None:
    """It has changed all tables, and everybody waits for it. Then it dies, and at once its changes and locks are gone."""
    columns = "SELECT count(*) FROM pg_attribute WHERE attrelid = 'pgqueue.job'::regclass"
    before = bank_db.execute(columns).fetchone()
    next_version.write_text(NEXT + "SELECT pg_sleep(200);")
    program = (
        "import sys, pathlib\nfrom pgqueue import migrate\nfrom pgqueue.database import connect\nfiles = migrate._files\n"
        "migrate._files = lambda folder: [*files(folder), *[pathlib.Path(sys.argv[2])] * (folder == 'tables')]\n"
        "migrate.migrate(connect(sys.argv[1], 'pgqueue:migrate'))\n"
    )
    half_way = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgqueue:migrate' AND wait_event = 'PgSleep'"
    with load(direct_dsn) as made, psycopg.connect(direct_dsn, autocommit=True) as look:
        wait_for(lambda: len(made) > 10, what="a load")
        migrator = subprocess.Popen([sys.executable, "-c", program, direct_dsn, str(next_version)], cwd=ROOT)
        try:
            wait_for(lambda: look.execute(half_way).fetchone() == (1,), 120, what="the migrator to be half way")
        finally:
            migrator.kill()
            migrator.wait()
        done = len(made)
        wait_for(lambda: len(made) > done + 20, what="the load to go on")
        assert bank_db.execute(columns).fetchone() == before
    assert states(bank_db) == {"ready": len(made)}
    assert violations(bank_db) == []


def test_a_newer_schema_is_welcome_and_an_older_one_is_not(bank_db: psycopg.Connection[Any], workers: Workers) -> None:
    bank_db.execute("INSERT INTO pgqueue.migration (number, name) VALUES (9999, 'of a later version')")
    bank.deposit.enqueue(1, 1)
    workers.burst()
    bank_db.execute("DELETE FROM pgqueue.migration WHERE number >= %s", (SCHEMA_VERSION,))
    refused = workers.start()
    assert refused.wait() == 78
    assert "pgqueue migrate" in refused.log()
    assert run(bank_db, protocol.schema_version()) < SCHEMA_VERSION
