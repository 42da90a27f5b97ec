"""pgqueue doctor: each of its findings is provoked on a real server, and a healthy one has none."""

from __future__ import annotations

import json
import shutil
import tempfile
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from chaos.pooler import Pooler
from pgqueue import App, Queue, migrate, protocol
from pgqueue.database import connect, run
from pgqueue.doctor import tables
from pgqueue.doctor.examine import CHECKS, examine
from pgqueue.doctor.finding import Case, Finding
from pgqueue.embedded import Embedded
from pgqueue.settings import resolve
from tests.support import ROOT, Hand, Workers, database_of, later, wait_for
from tests.test_cli import pgqueue
from tests.test_docs import code, section, table

BAD = {
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "autovacuum": "off",
    "autovacuum_naptime": "600s",
    "track_counts": "off",
    "statement_timeout": "10s",
    "max_connections": "13",
    "superuser_reserved_connections": "3",
    "max_prepared_transactions": "2",
    "wal_level": "logical",
}


def findings(dsn: str, app: App | None = None, patience: float = 30, **settings: Any) -> list[Finding]:
    with connect(dsn, "pgqueue:doctor") as conn:
        return examine(Case(conn, dsn, resolve(settings, app), app, patience))[0]


def found(dsn: str, check: str, severity: str, says: str, app: App | None = None, **more: Any) -> Finding:
    """The one finding of this check that says this."""
    every = findings(dsn, app, **more)
    fitting = [f for f in every if (f.check, f.severity) == (check, severity) and says in f.what]
    assert len(fitting) == 1, every
    assert fitting[0].advice
    return fitting[0]


@contextmanager
def role(dsn: str, how: str = "LOGIN") -> Iterator[str]:
    """Another role of the server, and as long as the block lasts."""
    name = f"doctor_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(f"CREATE ROLE {name} {how} PASSWORD 'secret'")  # type: ignore[arg-type]
        try:
            yield name
        finally:
            conn.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")  # type: ignore[arg-type]


def as_role(dsn: str, name: str) -> str:
    return psycopg.conninfo.make_conninfo(dsn, user=name, password="secret")


def test_a_healthy_installation(dsn: str, workers: Workers, conn: psycopg.Connection[Any]) -> None:
    workers.start("tests.apps.bank:app", "-w", "1")
    wait_for(lambda: conn.execute("SELECT count(*) FROM pgqueue.workers WHERE beat > 0").fetchone() == (1,))
    done = pgqueue("doctor", "--json", "--strict", dsn=dsn)
    assert done.returncode == 0, done.stdout
    assert {finding["severity"] for finding in json.loads(done.stdout)} <= {"note"}
    said = pgqueue("doctor", "tests.apps.bank:app", dsn=dsn)
    assert "0 errors, 0 warnings" in said.stdout
    assert f"{len(CHECKS) + 1} checks" in said.stdout


# -------------------------------------------------------------------------------------------------------- schema


def test_the_schema(empty_dsn: str, dsn: str, conn: psycopg.Connection[Any]) -> None:
    assert "no pgqueue schema" in found(empty_dsn, "schema", "error", "").what
    assert pgqueue("doctor", dsn=empty_dsn).returncode == 1
    newest = conn.execute("SELECT max(number) FROM pgqueue.migration").fetchone()[0]  # type: ignore[index]
    conn.execute("INSERT INTO pgqueue.migration (number, name) VALUES (9999, 'of the future')")
    found(dsn, "schema", "note", "has version 9999")
    conn.execute("DELETE FROM pgqueue.migration WHERE number = 2")
    found(dsn, "schema", "error", "migrations are missing: 2")
    conn.execute("DELETE FROM pgqueue.migration WHERE number >= %s", (newest,))
    found(dsn, "schema", "error", "has version")


def test_rights(dsn: str, conn: psycopg.Connection[Any]) -> None:
    with role(dsn) as name:
        found(as_role(dsn, name), "rights", "error", "may not look at the schema")
        assert (
            f"1 error, 0 warnings, 0 notes; only 1 of {len(CHECKS) + 1} checks could be made"
            in pgqueue("doctor", dsn=as_role(dsn, name)).stdout
        )
        conn.execute(f"GRANT USAGE ON SCHEMA pgqueue TO {name}")
        conn.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA pgqueue TO {name}")
        every = findings(as_role(dsn, name))
        assert any("cannot do what workers do" in f.what and f.severity == "error" for f in every), every
        assert any("could not be made" in f.what and f.severity == "warning" for f in every), every
        assert any("cannot see what other roles' sessions do" in f.what for f in every), every
        assert not any("superuser" in f.what for f in every), every
    found(dsn, "rights", "note", "superuser")
    conn.execute("GRANT SELECT ON pgqueue.jobs TO PUBLIC; GRANT USAGE ON SCHEMA pgqueue TO PUBLIC")
    assert "select on pgqueue.jobs" in found(dsn, "rights", "error", "everybody has rights").what
    migrate.migrate(conn)
    assert not any(f.check == "rights" and f.severity == "error" for f in findings(dsn)), "migrate takes them back"


def test_the_role_of_workers_has_what_it_needs(dsn: str, conn: psycopg.Connection[Any]) -> None:
    migrate.migrate(conn, roles=True)
    with role(dsn) as name:
        conn.execute(f"GRANT pgqueue_worker TO {name}")  # type: ignore[arg-type]
        every = findings(as_role(dsn, name))
        assert {f.severity for f in every} <= {"note"}, every


def test_tables(dsn: str, conn: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    conn.execute("ALTER TABLE pgqueue.job SET (autovacuum_enabled = false)")
    assert "RESET" in found(dsn, "autovacuum", "error", "autovacuum is off for pgqueue.job").advice
    conn.execute("ALTER TABLE pgqueue.ready RESET (autovacuum_vacuum_scale_factor)")
    advice = found(dsn, "autovacuum", "warning", "pgqueue.ready has lost").advice
    conn.execute(advice)  # type: ignore[arg-type]
    assert not any("has lost" in f.what for f in findings(dsn))
    monkeypatch.setattr(tables, "MANY_DEAD", 1000)
    monkeypatch.setattr(tables, "WIDE", 100_000)
    conn.execute("ALTER TABLE pgqueue.ready SET (autovacuum_enabled = false)")
    conn.execute("INSERT INTO pgqueue.ready SELECT 'default', 1, g, gen_random_uuid() FROM generate_series(1, 3000) g")
    conn.execute("DELETE FROM pgqueue.ready")
    conn.execute("SELECT pg_stat_force_next_flush()")
    conn.execute("SELECT 1")
    found(dsn, "bloat", "warning", "pgqueue.ready has 3,000 dead rows")
    conn.execute("VACUUM (TRUNCATE off) pgqueue.ready")
    found(dsn, "bloat", "note", "pgqueue.ready takes")


def test_the_invariant(dsn: str, conn: psycopg.Connection[Any]) -> None:
    conn.execute("INSERT INTO pgqueue.ready (queue, lane, pos, job_id) VALUES ('default', 1, 1, gen_random_uuid())")
    found(dsn, "invariant", "error", "is not in exactly one place")
    conn.execute("SELECT nextval('pgqueue.conflict')")
    found(dsn, "invariant", "error", "1 rows were met")
    with psycopg.connect(dsn) as other:
        other.execute("LOCK TABLE pgqueue.outcome IN ACCESS EXCLUSIVE MODE")
        with connect(dsn, "pgqueue:doctor") as asking:
            case = Case(asking, dsn, resolve({}), None, patience=0.2)
            assert any("could not be looked at" in f.what and f.severity == "note" for f in CHECKS["invariant"](case))


# -------------------------------------------------------------------------------------------------------- server


@pytest.fixture(scope="module")
def bad_server() -> Iterator[Embedded]:
    with tempfile.TemporaryDirectory(prefix="pgqueue-tests-", ignore_cleanup_errors=True) as home:
        server = Embedded(Path(home) / "data", settings=BAD)
        with connect(server.start(), "tests") as conn:
            migrate.migrate(conn)
        try:
            yield server
        finally:
            server.remove()


def test_settings_of_a_bad_server(bad_server: Embedded) -> None:
    """All of them at once: none hides another. The worst come first."""
    every = findings(bad_server.dsn, workers=8)
    assert [f.severity for f in every] == sorted((f.severity for f in every), key=["error", "warning", "note"].index)
    for check, severity, says in (
        ("settings", "error", "fsync is off"),
        ("settings", "error", "full_page_writes is off"),
        ("settings", "warning", "synchronous_commit is off"),
        ("settings", "warning", "statement_timeout is 10 s"),
        ("autovacuum", "error", "autovacuum is off: the work lists grow"),
        ("autovacuum", "error", "track_counts is off"),
        ("autovacuum", "warning", "looks only every 600 s"),
        ("connections", "warning", "of 10 connections of this server are in use, and one more pgqueue work would need 18"),
    ):
        assert [f for f in every if (f.check, f.severity) == (check, severity) and says in f.what], (says, every)
    with psycopg.connect(bad_server.dsn, autocommit=True) as conn:
        conn.execute("ALTER ROLE CURRENT_USER SET default_transaction_read_only = on")
        conn.execute("ALTER ROLE CURRENT_USER SET lock_timeout = '1s'")
    found(bad_server.dsn, "settings", "error", "read-only by default")
    found(bad_server.dsn, "settings", "warning", "lock_timeout is 1 s")
    with psycopg.connect(bad_server.dsn, autocommit=True) as conn:
        conn.execute("SET default_transaction_read_only = off")
        conn.execute("ALTER ROLE CURRENT_USER RESET ALL")


def test_a_prepared_transaction_and_a_slot_hold_the_horizon(bad_server: Embedded) -> None:
    with psycopg.connect(bad_server.dsn, autocommit=True) as conn:
        conn.execute("SELECT pg_create_logical_replication_slot('unread', 'pgoutput')")
        conn.execute("BEGIN; SELECT pg_current_xact_id(); PREPARE TRANSACTION 'left behind'")  # type: ignore[arg-type]
        assert not any("left behind" in f.what for f in findings(bad_server.dsn)), "it is young"
        later(conn, "20 minutes")
        advice = found(bad_server.dsn, "horizon", "warning", "a prepared transaction (left behind) is open for 20 minutes").advice
        assert "ROLLBACK PREPARED 'left behind'" in advice
        later(conn, "2 hours")
        found(bad_server.dsn, "horizon", "error", "left behind")
        conn.execute("ROLLBACK PREPARED 'left behind'")
        advice = found(bad_server.dsn, "horizon", "warning", "replication slot unread").advice
        assert "pg_drop_replication_slot('unread')" in advice
        conn.execute("SELECT pg_drop_replication_slot('unread')")
        later(conn, "0")
        assert not any(f.check == "horizon" for f in findings(bad_server.dsn))


def test_a_standby(bad_server: Embedded) -> None:
    bad_server.stop()
    signal = bad_server._data / "standby.signal"
    signal.touch()
    shutil.chown(signal, signal.parent.stat().st_uid, signal.parent.stat().st_gid)
    try:
        dsn = bad_server.start()
        found(dsn, "settings", "error", "is a standby")
    finally:
        bad_server.stop()
        signal.unlink()
        bad_server.start()


def test_a_session_holds_the_horizon(dsn: str, conn: psycopg.Connection[Any]) -> None:
    with psycopg.connect(dsn, application_name="nightly report") as other:
        other.execute("SET default_transaction_isolation = 'repeatable read'")
        other.commit()
        other.execute("SELECT 1")
        later(conn, "16 minutes")
        finding = found(dsn, "horizon", "warning", "nightly report, idle in transaction) is open for 16 minutes")
        assert f"pg_terminate_backend({other.info.backend_pid})" in finding.advice


def test_a_session_of_another_database_holds_nothing_of_ours(dsn: str, empty_dsn: str, conn: psycopg.Connection[Any]) -> None:
    age = "SELECT value FROM pgqueue.metrics() WHERE metric = 'pgqueue_xmin_horizon_age_seconds'"
    with psycopg.connect(empty_dsn) as other:
        other.execute("SET default_transaction_isolation = 'repeatable read'")
        other.commit()
        other.execute("SELECT 1")
        later(conn, "2 hours")
        assert not any(f.check == "horizon" for f in findings(dsn))
        value = conn.execute(age).fetchone()
        assert value is not None
        assert value[0] < 3600


def test_connections(dsn: str, conn: psycopg.Connection[Any]) -> None:
    with role(dsn, "LOGIN SUPERUSER CONNECTION LIMIT 4") as name:
        found(as_role(dsn, name), "connections", "warning", "of 4 connections of this role are in use")
        conn.execute(f"ALTER DATABASE {conn.info.dbname} CONNECTION LIMIT 5")  # type: ignore[arg-type]
        found(dsn, "connections", "warning", "of this database are in use", threads=3)
        worker = f"pgqueue:{uuid.uuid4()}:claims"
        with connect(as_role(dsn, name), worker), connect(dsn, worker):
            assert name in found(dsn, "connections", "warning", "log in as different roles").what


@pytest.mark.usefixtures("pgbouncer")
def test_a_dsn_to_listen_on_that_cannot_be_read(dsn: str) -> None:
    found(dsn, "pooler", "error", "--listen-dsn: the DSN cannot be parsed", listen_dsn="garbage")


def test_a_pooler(dsn: str) -> None:
    name = psycopg.conninfo.conninfo_to_dict(dsn)["dbname"]
    pools = "".join(f"{mode} = {{server}} dbname={name} pool_mode={mode}\n" for mode in ("session", "transaction"))
    with Pooler(dsn, f"[databases]\n{pools}[pgbouncer]\n") as pooler:
        found(database_of(pooler.dsn(dsn), "session"), "pooler", "note", "a session of its own")
        found(database_of(pooler.dsn(dsn), "transaction"), "pooler", "warning", "shares sessions")


def test_clocks(dsn: str, conn: psycopg.Connection[Any]) -> None:
    for interval in ("1 hour", "-1 hour"):
        later(conn, interval)
        assert "3600." in found(dsn, "clocks", "warning", "s apart").what or "3599." in found(dsn, "clocks", "warning", "").what


# ---------------------------------------------------------------------------------------------------------- work


@pytest.fixture
def app(dsn: str, conn: psycopg.Connection[Any]) -> Iterator[App]:
    app = App(dsn, queues=[Queue("mail")])

    @app.step(name="send", queue="mail")
    def send() -> None: ...

    @app.step(name="limited", timeout="1m")
    def limited() -> None: ...

    run(conn, app.registration())
    yield app
    app.close()


def test_no_workers(app: App, dsn: str, conn: psycopg.Connection[Any]) -> None:
    assert not any(f.check == "workers" for f in findings(dsn)), "nothing to do, nobody needed"
    app.functions["send"].enqueue()
    found(dsn, "workers", "error", "1 jobs are ready, and there is no worker")
    hand = Hand(app, dsn)  # registers, and does not beat
    found(dsn, "workers", "error", "none of the 1 registered workers gives a sign of life", lease=1.0)
    stop = threading.Event()

    def beat() -> None:
        with connect(dsn, "tests") as other:
            while not stop.wait(0.2):
                run(other, protocol.heartbeat([hand.id]))

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        assert not any(f.severity == "error" for f in findings(dsn, lease=5.0))
        later(conn, "10 minutes")
        found(dsn, "workers", "warning", "queue mail: the oldest of 1 ready jobs waits for 10 minutes; 0 run")
        run(conn, protocol.pause("mail"))
        assert "pgqueue resume mail" in found(dsn, "workers", "note", "queue mail is paused").advice
    finally:
        stop.set()
        thread.join()
    later(conn, "0")
    hand.claim()
    run(conn, protocol.fence_worker(hand.id, None, "a test"))
    later(conn, "10 minutes")
    found(dsn, "workers", "warning", f"worker {hand.id} of ")
    hand.close()


def test_unclaimable_jobs(app: App, dsn: str) -> None:
    app.functions["send"].enqueue()
    hand = Hand(app, dsn)
    hand.claim(names=["limited"])
    assert "aliases" in found(dsn, "unclaimable", "error", "1 jobs wait for a worker that knows 'send'", lease=1.0).advice
    assert found(dsn, "unclaimable", "error", "", app=app, lease=1.0).advice == "start workers with this App"
    hand.close()


def test_jobs_that_hang(app: App, dsn: str, conn: psycopg.Connection[Any]) -> None:
    endless = app.functions["send"].enqueue()
    ending = app.functions["limited"].options(timeout="3h").enqueue()
    hand = Hand(app, dsn)
    hand.claim()
    assert ending.status() == "running"
    later(conn, "2 hours")
    assert f"--hard {endless.id}" in found(dsn, "hanging", "warning", f"job {endless.id} (send) runs for 2.0 h", lease=1.0).advice
    hand.close()


def test_schedules_that_are_not_kept(app: App, dsn: str, conn: psycopg.Connection[Any]) -> None:
    app.schedule("0 9 * * *", name="daily")(app.functions["send"])
    run(conn, app.registration())
    later(conn, "2 days")
    conn.execute("UPDATE pgqueue.schedule SET next_at = clock_timestamp()")
    found(dsn, "schedules", "error", "schedule daily is due for 2880 minutes")
    conn.execute("UPDATE pgqueue.schedule SET problem = 'its queue is gone'")
    found(dsn, "schedules", "error", "schedule daily cannot be kept: its queue is gone")


def test_missing_limits(app: App, dsn: str) -> None:
    assert "1 steps and transactions have no time limit: send" in found(dsn, "limits", "note", "no time limit", app=app).what
    from pgqueue.config import SETTINGS

    every = {f.what.partition(" is not set")[0] for f in findings(dsn, app) if f.check == "limits" and "is not set" in f.what}
    assert every == {name for name in ("max_memory", "max_jobs") if name in SETTINGS}


def test_a_queue_that_is_fair_by_what_a_function_does_not_have(app: App, dsn: str) -> None:
    app.step(name="to_whom")(lambda tenant: None)
    app.limit("default", fair_by="tenant")
    finding = found(
        dsn, "limits", "warning", "queue default is shared fairly by 'tenant', which is no parameter of limited:", app=app
    )
    assert "pgqueue limit default --fair-by" in finding.advice
    app.limit("default", fair_by=None)
    assert not any("fairly" in f.what for f in findings(dsn, app))


def test_exit_codes(app: App, dsn: str, conn: psycopg.Connection[Any]) -> None:
    later(conn, "1 hour")
    assert pgqueue("doctor", dsn=dsn).returncode == 0
    assert pgqueue("doctor", "--strict", dsn=dsn).returncode == 1
    assert pgqueue("doctor", dsn="host=/nowhere").returncode == 69
    app.functions["send"].enqueue()
    done = pgqueue("doctor", dsn=dsn)
    assert done.returncode == 1
    assert done.stdout.startswith("error: 1 jobs are ready, and there is no worker [workers]\n    start some")


def test_it_changes_nothing(app: App, dsn: str, conn: psycopg.Connection[Any]) -> None:
    app.functions["send"].enqueue()
    count = "(SELECT count(*) FROM pgqueue.{})"
    rows: Any = f"SELECT {', '.join(count.format(table) for table in ('worker', 'ready', 'waiting'))}"
    before = conn.execute(rows).fetchone()
    findings(dsn)
    assert conn.execute(rows).fetchone() == before == (0, 1, 0)


def test_the_documentation_has_all_checks() -> None:
    rows = [code(row[0])[0] for row in table(section(ROOT / "docs" / "operations.md", "What is wrong?"))]
    assert rows == ["schema", *CHECKS]
