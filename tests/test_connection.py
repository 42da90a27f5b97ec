"""The connection that a transactional step is given: what it refuses, what it allows, and what nobody takes away from it.

In each case: no effect without its checkpoint, and the next step finds a connection as good as new. In both colours: see both.py.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg.rows import dict_row
from psycopg.types.json import JsonbDumper

from pgqueue import App, JobFailed, Retry
from pgqueue.errors import TransactionMisused
from tests import both
from tests.support import Hand, drain, violations, wait_for

colour, pytest_generate_tests = both.colour, both.pytest_generate_tests


@pytest.fixture
def app(app: App, conn: psycopg.Connection[Any]) -> App:
    conn.execute("CREATE TABLE mark (what text)")
    return app


def mark(tx: psycopg.Connection[Any], what: str) -> None:
    tx.execute("INSERT INTO mark VALUES (%s)", (what,))


def marks(conn: psycopg.Connection[Any]) -> list[str]:
    return [row[0] for row in conn.execute("SELECT what FROM mark ORDER BY ctid")]


#: Each ends, or would end, the transaction. All are refused before they reach the server.
REFUSED = [
    "COMMIT", "commit ; ", "END", "ABORT", "BEGIN", "ROLLBACK", "ROLLBACK WORK", "START TRANSACTION", "COMMIT AND CHAIN",
    "/* /* nested */ */ COMMIT", "-- ends at a carriage return\rCOMMIT", "\n;;\f/**/-- x\n COMMIT",
    "PREPARE/**/TRANSACTION 'x'", "ROLLBACK -- TO\n", "COMMIT/**/", "COMMIT PREPARED 'x'",
]  # fmt: skip
#: These look like it.
ALLOWED = [
    "SAVEPOINT a", "ROLLBACK TO a", "ROLLBACK /* x */ TO SAVEPOINT a", "RELEASE a", "PREPARE transaction_log AS SELECT 1",
    "/* COMMIT */ SELECT 1", "-- COMMIT\nSELECT 1", "SELECT 'COMMIT'", "",
]  # fmt: skip


def test_statements_that_end_the_transaction_are_refused_however_they_are_written(app: App, dsn: str, conn: Any) -> None:
    @app.transaction(name="refused", retry=Retry(1))
    def refused(tx: psycopg.Connection[Any], statement: str, how: str) -> None:
        mark(tx, "refused")
        try:
            if how == "prepared":
                tx.execute(statement, prepare=True)
            elif how == "executemany":
                tx.cursor().executemany(statement, [(), ()])
            elif how == "pipeline":
                with tx.pipeline():
                    tx.execute(statement)
            elif how == "copy":
                with tx.cursor() as cursor, cursor.copy(statement):
                    pass
            else:
                tx.execute(statement)
        except TransactionMisused:
            mark(tx, "went on")

    @app.transaction(name="allowed", retry=Retry(1))
    def allowed(tx: psycopg.Connection[Any]) -> None:
        for statement in ALLOWED:
            tx.execute(statement)
        mark(tx, "allowed")

    hows = ["execute", "prepared", "executemany", "pipeline", "copy"]
    jobs = app.enqueue_many([refused.call(statement, how) for how in hows for statement in REFUSED])
    fine = allowed.enqueue()
    drain(app, dsn)
    assert [job.status() for job in jobs] == ["succeeded"] * len(jobs)
    assert fine.status() == "succeeded", fine.attempts()
    assert marks(conn) == ["refused", "went on"] * len(jobs) + ["allowed"]


def test_a_server_side_cursor_cannot_carry_a_commit(app: App, dsn: str, conn: Any) -> None:
    @app.transaction(name="named", retry=Retry(1))
    def named(tx: psycopg.Connection[Any], statement: str) -> list[Any]:
        mark(tx, "named")
        with tx.cursor(name="c") as cursor:
            cursor.execute(statement)
            return [list(row) for row in cursor.fetchall()]

    good, bad = named.enqueue("SELECT 1"), named.enqueue("SELECT 1; COMMIT")
    drain(app, dsn)
    assert good.result(timeout=5) == [[1]]
    assert bad.status() == "failed"
    assert marks(conn) == ["named"]


@both.def_only("its loops would be 'async for': see the next one")
def test_stream(app: App, dsn: str, conn: Any) -> None:
    @app.transaction(name="stream", retry=Retry(1))
    def stream(tx: psycopg.Connection[Any], statement: str) -> list[Any]:
        mark(tx, "stream")
        return [row[0] for row in tx.cursor().stream(statement)]

    @app.transaction(name="left_open", retry=Retry(1))
    def left_open(tx: psycopg.Connection[Any]) -> int:
        mark(tx, "left open")
        kept.append(tx.cursor().stream("SELECT generate_series(1, 100000)"))
        return next(kept[0])[0]

    kept: list[Any] = []
    good, bad, worse = stream.enqueue("SELECT generate_series(1, 3)"), stream.enqueue("COMMIT"), left_open.enqueue()
    last = stream.enqueue("SELECT 4")
    drain(app, dsn)
    assert good.result(timeout=5) == [1, 2, 3]
    assert last.result(timeout=5) == [4]
    for job in (bad, worse):
        with pytest.raises(JobFailed, match="TransactionMisused"):
            job.result(timeout=5)
    assert marks(conn) == ["stream", "stream"]


@both.def_only("it is async already")
def test_async_stream(app: App, dsn: str, conn: Any) -> None:
    @app.transaction(name="stream", retry=Retry(1))
    async def stream(tx: psycopg.AsyncConnection[Any], statement: str) -> list[Any]:
        await tx.execute("INSERT INTO mark VALUES ('stream')")
        return [row[0] async for row in tx.cursor().stream(statement)]

    @app.transaction(name="left_open", retry=Retry(1))
    async def left_open(tx: psycopg.AsyncConnection[Any]) -> int:
        await tx.execute("INSERT INTO mark VALUES ('left open')")
        kept.append(tx.cursor().stream("SELECT generate_series(1, 100000)"))
        return (await anext(kept[0]))[0]

    kept: list[Any] = []
    good, bad, worse = stream.enqueue("SELECT generate_series(1, 3)"), stream.enqueue("COMMIT"), left_open.enqueue()
    last = stream.enqueue("SELECT 4")
    drain(app, dsn)
    assert good.result(timeout=5) == [1, 2, 3]
    assert last.result(timeout=5) == [4]
    for job in (bad, worse):
        with pytest.raises(JobFailed, match="TransactionMisused"):
            job.result(timeout=5)
    assert marks(conn) == ["stream", "stream"]


def test_what_is_left_open_fails_the_step_and_leaves_nothing(app: App, dsn: str, conn: Any) -> None:
    kept: list[Any] = []

    @app.transaction(name="copying", retry=Retry(1))
    def copying(tx: psycopg.Connection[Any]) -> None:
        mark(tx, "copying")
        tx.execute("COPY mark FROM STDIN")

    @app.transaction(name="pipelining", retry=Retry(1))
    def pipelining(tx: psycopg.Connection[Any]) -> None:
        mark(tx, "pipelining")
        tx.pgconn.enter_pipeline_mode()

    @app.transaction(name="selecting", retry=Retry(1))
    def selecting(tx: psycopg.Connection[Any]) -> None:
        mark(tx, "selecting")
        tx.pgconn.send_query(b"SELECT 1")

    @app.transaction(name="savepoint", retry=Retry(1))
    def savepoint(tx: psycopg.Connection[Any]) -> None:
        tx.execute("SAVEPOINT a")
        mark(tx, "savepoint")

    @app.transaction(name="fine")
    def fine(tx: psycopg.Connection[Any]) -> None:
        kept.append(tx.execute("SELECT 1").fetchone())

    bad = [copying.enqueue(), pipelining.enqueue(), selecting.enqueue()]
    good = [savepoint.enqueue(), fine.enqueue()]
    drain(app, dsn)
    assert [job.status() for job in bad] == ["failed"] * 3
    for job in bad[1:]:
        with pytest.raises(JobFailed, match="in the middle of"):
            job.result(timeout=5)
    assert [job.status() for job in good] == ["succeeded"] * 2
    assert kept == [(1,)]
    assert marks(conn) == ["savepoint"]
    assert violations(conn) == []


def test_a_savepoint_keeps_what_is_outside_of_it(app: App, dsn: str, conn: Any) -> None:
    @app.transaction(name="careful", retry=Retry(1))
    def careful(tx: psycopg.Connection[Any]) -> str:
        mark(tx, "before")
        try:
            with tx.transaction():
                mark(tx, "gone")
                tx.execute("SELECT 1/0")
        except psycopg.errors.DivisionByZero:
            pass
        with tx.transaction(force_rollback=True):
            mark(tx, "gone too")
        with tx.transaction():
            mark(tx, "kept")
        mark(tx, "after")
        return "done"

    job = careful.enqueue()
    drain(app, dsn)
    assert job.result(timeout=5) == "done"
    assert marks(conn) == ["before", "kept", "after"]


def test_a_second_connection_is_not_part_of_the_transaction(app: App, dsn: str, conn: Any) -> None:
    """Its errors, also a lost connection, are the step's: ours is well, and its transaction is rolled back once."""

    @app.transaction(name="two", retry=Retry(1))
    def two(tx: psycopg.Connection[Any], end: bool) -> None:
        mark(tx, "ours")
        with psycopg.connect(dsn, autocommit=True) as other:
            other.execute("INSERT INTO mark VALUES ('other')")
            if end:
                conn.execute("SELECT pg_terminate_backend(%s)", (other.info.backend_pid,))
                other.execute("SELECT 1")

    good, bad = two.enqueue(False), two.enqueue(True)
    drain(app, dsn)
    assert good.status() == "succeeded"
    with pytest.raises(JobFailed, match="terminating connection"):
        bad.result(timeout=5)
    assert sorted(marks(conn)) == ["other", "other", "ours"]
    assert [a.kind for a in bad.attempts()] == ["error"]


def test_what_a_step_sets_is_gone_for_the_next(app: App, dsn: str, conn: Any) -> None:
    class Loud(JsonbDumper):
        def dump(self, obj: Any) -> Any:
            raise AssertionError("the adapter of another step")

    heard: list[str] = []

    @app.transaction(name="sets")
    def sets(tx: psycopg.Connection[Any]) -> None:
        tx.row_factory = dict_row
        tx.adapters.register_dumper(dict, Loud)
        tx.add_notice_handler(lambda diagnostic: heard.append(diagnostic.message_primary or ""))
        tx.execute("DO $$ BEGIN RAISE NOTICE 'first'; END $$")
        tx.execute("SET search_path = nowhere")
        tx.execute("SET LOCAL work_mem = '1MB'")
        tx.execute("/* to a role that may do nothing */ SET ROLE pg_monitor")
        tx.execute("RESET ROLE")

    @app.transaction(name="sees")
    def sees(tx: psycopg.Connection[Any]) -> list[Any]:
        tx.execute("DO $$ BEGIN RAISE NOTICE 'second'; END $$")
        row = tx.execute(
            "SELECT current_setting('search_path'), current_setting('work_mem'), current_user = session_user"
        ).fetchone()
        assert row is not None
        return list(row)

    first, second = sets.enqueue(), sees.enqueue()
    drain(app, dsn)
    assert first.status() == "succeeded", first.attempts()
    assert second.result(timeout=5) == ['"$user", public', "4MB", True]
    assert heard == ["first"]


def test_a_setting_that_is_rolled_back_is_gone_too(app: App, dsn: str, conn: Any) -> None:
    @app.transaction(name="sets", retry=Retry(1))
    def sets(tx: psycopg.Connection[Any]) -> None:
        tx.execute("SET statement_timeout = '1h'")
        raise ValueError("after the setting")

    @app.transaction(name="sees")
    def sees(tx: psycopg.Connection[Any]) -> str:
        row = tx.execute("SHOW statement_timeout").fetchone()
        assert row is not None
        return str(row[0])

    sets.enqueue()
    job = sees.enqueue()
    drain(app, dsn)
    assert job.result(timeout=5) == "0"


@pytest.mark.parametrize("fails", [False, True])
def test_prepared_statements_that_a_step_throws_away_are_prepared_again(app: App, dsn: str, conn: Any, fails: bool) -> None:
    """DEALLOCATE is not undone by a rollback, and psycopg says it after every ROLLBACK TO a savepoint."""

    @app.transaction(name="throws_away", retry=Retry(1))
    def throws_away(tx: psycopg.Connection[Any], how: str) -> None:
        mark(tx, how)
        if how == "savepoint":
            with tx.transaction(force_rollback=True):
                mark(tx, "gone")
        else:
            tx.execute(how, prepare=how.endswith("*/"))
        if fails:
            raise ValueError("after it")

    @app.workflow(name="flow")
    def flow(how: str) -> None:
        throws_away(how)

    hows = ["savepoint", "DEALLOCATE ALL", "/**/ deallocate /**/ all /**/"]
    jobs = app.enqueue_many([f.call(how) for how in hows for f in (flow, throws_away)])
    drain(app, dsn)
    assert {job.status() for job in jobs} == {"failed" if fails else "succeeded"}
    errors = {row[0] for row in conn.execute("SELECT error::json ->> 'type' FROM pgqueue.attempts")}
    assert errors <= ({"ValueError", "StepFailed"} if fails else set())
    assert marks(conn) == ([] if fails else [how for how in hows for _ in range(2)])
    assert violations(conn) == []


def test_values_look_as_on_any_connection(app: App, dsn: str, conn: Any) -> None:
    """pgqueue reads ids as text. The user's code gets what psycopg gives it everywhere."""
    seen: list[Any] = []

    @app.transaction(name="reads")
    def reads(tx: psycopg.Connection[Any]) -> None:
        row = tx.execute("SELECT '01920000-0000-7000-8000-000000000000'::uuid, '{\"a\": 1}'::jsonb, 1.5::numeric").fetchone()
        with psycopg.connect(dsn) as other:
            assert (
                row
                == other.execute(
                    "SELECT '01920000-0000-7000-8000-000000000000'::uuid, '{\"a\": 1}'::jsonb, 1.5::numeric"
                ).fetchone()
            )
        seen.append(row)

    job = reads.enqueue()
    drain(app, dsn)
    assert job.status() == "succeeded", job.attempts()
    assert isinstance(seen[0][0], UUID)


@both.def_only("threads cannot await; tasks that outlive a step are in test_async.py")
def test_threads_share_the_transaction_and_lose_it_when_the_step_ends(app: App, dsn: str, conn: Any) -> None:
    over = threading.Event()
    late: list[Any] = []
    threads: list[threading.Thread] = []

    @app.transaction(name="write")
    def write(tx: psycopg.Connection[Any]) -> None:
        def linger() -> None:
            over.wait(10)
            try:
                mark(tx, "late")
            except TransactionMisused as error:
                late.append(str(error))

        helpers = [threading.Thread(target=mark, args=(tx, f"helper {i}")) for i in range(5)]
        threads.append(threading.Thread(target=linger))
        for thread in [*helpers, *threads]:
            thread.start()
        for thread in helpers:
            thread.join()

    @app.transaction(name="next")
    def after(tx: psycopg.Connection[Any]) -> None:
        over.set()
        threads[0].join()

    jobs = [write.enqueue(), after.enqueue()]
    drain(app, dsn)
    assert [job.status() for job in jobs] == ["succeeded"] * 2
    assert late == ["this connection belonged to a step that has ended: a thread or a task that outlives the step cannot use it"]
    assert sorted(marks(conn)) == [f"helper {i}" for i in range(5)]


@both.def_only("threads cannot await")
def test_a_thread_in_the_middle_of_a_statement_when_the_step_returns(app: App, dsn: str, conn: Any) -> None:
    """The step fails at once. The server ends the statement when it is through, and until then the job is busy."""
    statement = "SELECT pg_sleep(2)"
    threads: list[threading.Thread] = []

    @app.transaction(name="write", retry=Retry(1))
    def write(tx: psycopg.Connection[Any]) -> None:
        def work() -> None:
            with pytest.raises(psycopg.Error):
                tx.execute(statement)

        mark(tx, "write")
        threads.append(threading.Thread(target=work))
        threads[0].start()
        wait_for(lambda: conn.execute("SELECT FROM pg_stat_activity WHERE query = %s", (statement,)).fetchone() is not None)

    @app.transaction(name="after")
    def after(tx: psycopg.Connection[Any]) -> None:
        mark(tx, "after")

    job, fine = write.enqueue(), after.enqueue()
    hand = Hand(app, dsn)
    claimed = hand.claim()
    settlement = hand.run(claimed[0])
    assert settlement is not None
    assert hand.run(claimed[1]) is None
    wait_for(lambda: hand.settle(settlement) == {})
    hand.close()
    threads[0].join()
    with pytest.raises(JobFailed, match="returned while a thread"):
        job.result(timeout=5)
    assert fine.status() == "succeeded"
    assert marks(conn) == ["after"]


def test_a_child_of_a_fork_cannot_use_the_connection(app: App, dsn: str, conn: Any) -> None:
    """And where it comes back out of the step, it ends: there is one transaction, its parent's."""

    @app.transaction(name="forks", retry=Retry(1))
    def forks(tx: psycopg.Connection[Any], how: str) -> int:
        mark(tx, how)
        pid = os.fork()
        if pid == 0:
            if how == "use":
                try:
                    mark(tx, "child")
                except TransactionMisused:
                    os._exit(7)
                os._exit(1)
            if how == "raise":
                raise ValueError("child")
            return 0
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    hows = ["use", "raise", "return"]
    jobs = app.enqueue_many(forks.map(hows))
    drain(app, dsn)
    assert [job.result(timeout=5) for job in jobs] == [7, 0, 0]
    assert marks(conn) == hows
    assert violations(conn) == []


def test_cursors_that_would_not_look_are_refused(app: App, dsn: str, conn: Any) -> None:
    """psycopg has more kinds of cursors than ours, and methods of its classes can be called around ours."""
    ways = ["factory", "client", "raw", "plain", "method"]

    @app.transaction(name="around", retry=Retry(3, backoff=0))
    def around(tx: psycopg.Connection[Any], way: str) -> None:
        mark(tx, way)
        kinds: Any = psycopg.AsyncConnection, psycopg.AsyncCursor, psycopg.AsyncClientCursor, psycopg.AsyncRawCursor
        if isinstance(tx, psycopg.Connection):
            kinds = psycopg.Connection, psycopg.Cursor, psycopg.ClientCursor, psycopg.RawCursor
        connection, plain, client, raw = kinds
        if way == "method":
            connection.commit(tx)
        elif way == "factory":
            tx.cursor_factory = client
            tx.execute("SELECT 1; COMMIT")
        else:
            {"client": client, "raw": raw, "plain": plain}[way](tx).execute("COMMIT")

    jobs = app.enqueue_many(around.map(ways))
    drain(app, dsn)
    for job in jobs:
        with pytest.raises(JobFailed) as failed:
            job.result(timeout=5)
        assert failed.value.type == "TransactionMisused"
    assert marks(conn) == []


@pytest.mark.parametrize("whole", [True, False], ids=["a job", "a step"])
def test_a_commit_beneath_psycopg_is_noticed_also_where_the_code_raises_and_nothing_is_tried_again(
    app: App, dsn: str, conn: Any, whole: bool
) -> None:
    @app.transaction(name="beneath", retry=Retry(3, backoff=0))
    def beneath(tx: psycopg.Connection[Any], raises: bool) -> None:
        mark(tx, f"beneath {raises}")
        tx.pgconn.exec_(b"COMMIT")
        if raises:
            raise ValueError("something else")

    @app.workflow(name="calls")
    def calls(raises: bool) -> None:
        beneath(raises)

    jobs = app.enqueue_many((beneath if whole else calls).map([True, False]))
    drain(app, dsn)
    for job in jobs:
        with pytest.raises(JobFailed, match="has ended the transaction"):
            job.result(timeout=5)
    assert marks(conn) == ["beneath True", "beneath False"]


@pytest.mark.parametrize(
    ("statement", "type"),
    [
        ("idle", "TransactionTimeout"),
        ("SET TRANSACTION READ ONLY", "ReadOnlySqlTransaction"),
        ("SET LOCAL transaction_timeout = '100ms'", "TransactionTimeout"),
    ],
    ids=["silent for too long", "made read only", "too long"],
)
def test_what_a_step_does_to_its_own_transaction_is_its_failure(
    app: App, dsn: str, conn: psycopg.Connection[Any], statement: str, type: str
) -> None:
    """And no reason to run it again for ever, as a server in trouble is."""
    if "transaction_timeout" in statement and conn.info.server_version < 170000:
        pytest.skip("transaction_timeout is a setting of PostgreSQL 17")

    @app.transaction(name="own", retry=Retry(2, backoff=0), idle_timeout="200ms")
    def own(tx: psycopg.Connection[Any]) -> None:
        mark(tx, "own")
        if statement == "idle":
            time.sleep(1)
        else:
            tx.execute(statement)
        tx.execute("SELECT pg_sleep(0.5)")
        mark(tx, "own")

    job = own.enqueue()
    drain(app, dsn)
    with pytest.raises(JobFailed) as failed:
        job.result(timeout=5)
    assert failed.value.type == type
    assert [a.kind for a in job.attempts()] == ["error", "error"]
    assert marks(conn) == []


def test_a_step_that_loses_its_session_every_time_can_be_cancelled_and_is_in_nobodys_way(app: App, dsn: str, conn: Any) -> None:
    runs: list[int] = []

    @app.transaction(name="lost", retry=Retry(1))
    def lost(tx: psycopg.Connection[Any]) -> None:
        runs.append(1)
        tx.execute("SELECT pg_terminate_backend(pg_backend_pid())")

    job = lost.enqueue()
    hand = Hand(app, dsn)
    settlement = hand.run(hand.claim()[0])
    assert settlement is not None
    assert settlement.how == "retry"
    assert len(runs) == 5
    assert job.cancel()
    assert hand.settle(settlement) == {}
    assert job.status() == "cancelled"
    assert job.attempts() == []
    hand.close()


def test_temporary_tables_and_locks_do_not_outlive_their_step(app: App, dsn: str, conn: Any) -> None:
    @app.transaction(name="temporary", retry=Retry(1))
    def temporary(tx: psycopg.Connection[Any]) -> None:
        tx.execute("CREATE TEMP TABLE report (x int)")
        tx.execute("SELECT pg_advisory_lock(4711)")

    jobs = app.enqueue_many([temporary.call()] * 2)
    drain(app, dsn)
    assert [job.status() for job in jobs] == ["succeeded"] * 2
    assert conn.execute("SELECT pg_try_advisory_lock(4711)").fetchone() == (True,)
