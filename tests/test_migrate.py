"""Migrations: idempotent, two at once, killed half way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from pgqueue import migrate
from pgqueue.database import SCHEMA_VERSION, check_schema, connect
from pgqueue.errors import SchemaMissing
from tests.support import ROOT, wait_for

NUMBERS = [int(path.name[:4]) for path in sorted((ROOT / "pgqueue/sql/tables").glob("*.sql"))]


def test_again_changes_nothing(empty_dsn: str) -> None:
    with connect(empty_dsn, "tests") as conn:
        with pytest.raises(SchemaMissing, match="pgqueue migrate"):
            check_schema(conn)
        assert migrate.migrate(conn) == NUMBERS
        before = conn.execute("SELECT id FROM pgqueue.installation").fetchone()
        conn.execute("SELECT pgqueue.enqueue_workflow('x', queue => 'default')")
        assert migrate.migrate(conn) == []
        check_schema(conn)
        assert conn.execute("SELECT id FROM pgqueue.installation").fetchone() == before
        assert conn.execute("SELECT count(*) FROM pgqueue.job").fetchone() == (1,)


def test_the_version_is_the_number_of_the_last_file() -> None:
    assert len(set(NUMBERS)) == len(NUMBERS)
    assert max(NUMBERS) == SCHEMA_VERSION


def test_many_at_once_take_turns(empty_dsn: str) -> None:
    def one(_: int) -> list[int]:
        with connect(empty_dsn, "tests") as conn:
            return migrate.migrate(conn)

    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(one, range(4)))
    assert sorted(map(len, done)) == [0, 0, 0, len(NUMBERS)]


def test_killed_half_way_leaves_nothing(empty_dsn: str) -> None:
    """Another session holds a lock that the migrator needs in the middle; it is killed while it waits."""
    with psycopg.connect(empty_dsn) as other, connect(empty_dsn, "tests") as conn:
        other.execute("CREATE SCHEMA pgqueue")  # uncommitted: CREATE SCHEMA IF NOT EXISTS waits for it
        migrator = subprocess.Popen(
            [sys.executable, "-m", "pgqueue", "migrate"],
            env={**os.environ, "PGQUEUE_DSN": empty_dsn},
            cwd=ROOT,
            stderr=subprocess.DEVNULL,
        )
        sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgqueue:migrate'"
        blocked = sessions + " AND cardinality(pg_blocking_pids(pid)) > 0"
        wait_for(lambda: conn.execute(blocked).fetchone() == (1,), what="the migrator to wait")
        migrator.send_signal(signal.SIGKILL)
        migrator.wait()
        other.rollback()
        wait_for(
            lambda: (
                conn.execute("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgqueue:migrate'").fetchone()
                == (0,)
            ),
            what="its session to end",
        )
        conn.execute("DROP SCHEMA IF EXISTS pgqueue CASCADE")
        assert len(migrate.migrate(conn)) == len(NUMBERS)


def test_workers_go_on_while_migrate_runs(dsn: str) -> None:
    """Functions are replaced under running workers: their next call finds the new one."""
    with connect(dsn, "tests") as conn, psycopg.connect(dsn) as busy:
        busy.execute("SELECT pgqueue.enqueue_workflow('x', queue => 'default')")  # has used the functions, and is open
        busy.commit()
        assert migrate.migrate(conn) == []
        busy.execute("SELECT pgqueue.enqueue_workflow('x', queue => 'default')")
