"""What a job does: replay, steps, transactions, failures, retries, cancels. Run by hand against the real database.

Each test is run twice, with the jobs as they are written here and with the same jobs as ``async def``: see both.py.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

from pgqueue import (
    App,
    Cancel,
    ClaimLost,
    JobCancelled,
    JobFailed,
    PgQueueError,
    ResultTimeout,
    Retry,
    StepFailed,
    current,
)
from pgqueue import protocol as verbs
from pgqueue.database import connect
from pgqueue.database import run as run_call
from pgqueue.errors import BadValue, OutsideJob
from tests import both
from tests.support import Hand, drain, states, violations

colour, pytest_generate_tests = both.colour, both.pytest_generate_tests

NO_WAIT = Retry(3, backoff=0.01)


@pytest.fixture
def calls(conn: psycopg.Connection[Any]) -> list[Any]:
    conn.execute("CREATE TABLE mark (what text)")
    return []


@pytest.fixture
def hand(app: App, dsn: str) -> Iterator[list[Hand]]:
    """Made at the first use, when the test has registered its functions."""
    hands: list[Hand] = []
    yield hands
    for hand in hands:
        hand.close()


def mark(tx: psycopg.Connection[Any], what: str) -> None:
    tx.execute("INSERT INTO mark VALUES (%s)", (what,))


def marks(conn: psycopg.Connection[Any]) -> list[str]:
    return [row[0] for row in conn.execute("SELECT what FROM mark ORDER BY ctid")]


def test_a_workflow_runs_its_steps_once_and_returns(app: App, dsn: str, conn: Any, calls: list[Any]) -> None:
    @app.step(name="double")
    def double(n: int) -> int:
        calls.append(n)
        return 2 * n

    @app.transaction(name="write")
    def write(tx: psycopg.Connection[Any], what: str) -> str:
        mark(tx, what)
        return what.upper()

    @app.workflow(name="flow")
    def flow(n: int) -> list[Any]:
        return [double(n), write("a"), double(n + 1), write(what="b")]

    job = flow.enqueue(3)
    assert drain(app, dsn) == 1
    assert job.result(timeout=5) == [6, "A", 8, "B"]
    assert calls == [3, 4]
    assert marks(conn) == ["a", "b"]
    assert [(s.seq, s.name, s.result) for s in job.steps()] == [
        (1, "double", 6),
        (2, "write", "A"),
        (3, "double", 8),
        (4, "write", "B"),
    ]
    assert job.attempts() == []
    assert violations(conn) == []
    same = conn.execute("SELECT count(*) FROM pgqueue.checkpoint WHERE xid IS NULL").fetchone()
    assert same == (0,)


def test_replay_does_not_repeat_what_is_checkpointed(app: App, dsn: str, conn: Any, calls: list[Any]) -> None:
    @app.step(name="one")
    def one() -> int:
        calls.append("one")
        return 1

    @app.transaction(name="two")
    def two(tx: psycopg.Connection[Any]) -> int:
        mark(tx, "two")
        return 2

    @app.workflow(name="flow", retry=NO_WAIT)
    def flow() -> int:
        total = one() + two()
        calls.append("body")
        if calls.count("body") < 3:
            raise RuntimeError("the body fails twice")
        return total

    job = flow.enqueue()
    drain(app, dsn)
    assert job.result(timeout=5) == 3
    assert calls == ["one", "body", "body", "body"]
    assert marks(conn) == ["two"]
    assert [a.kind for a in job.attempts()] == ["error", "error"]


def test_a_failing_step_is_tried_again_and_then_raises_in_the_workflow(app: App, dsn: str, conn: Any, calls: list[Any]) -> None:
    @app.step(name="bad", retry=NO_WAIT)
    def bad() -> None:
        calls.append("bad")
        raise ValueError("no use")

    @app.workflow(name="flow")
    def flow() -> str:
        try:
            bad()
        except StepFailed as error:
            return f"{error.type}: {error.message} at {error.seq}"
        return "?"

    job = flow.enqueue()
    drain(app, dsn)
    assert job.result(timeout=5) == "ValueError: no use at 1"
    assert calls == ["bad"] * 3
    assert [(a.kind, a.seq) for a in job.attempts()] == [("error", 1)] * 3
    assert "no use" in str(job.attempts()[0].error)


def test_between_tries_a_job_is_scheduled_and_holds_nothing(app: App, dsn: str, conn: Any) -> None:
    @app.step(name="bad", retry=Retry(3, backoff="1h", jitter=False))
    def bad() -> None:
        raise ValueError("later")

    job = bad.enqueue()
    hand = Hand(app, dsn)
    hand.drain(due_now=False)
    assert job.status() == "scheduled"
    due = conn.execute("SELECT extract(epoch FROM run_at - clock_timestamp()) FROM pgqueue.scheduled").fetchone()
    assert 3500 < due[0] <= 3600
    assert conn.execute("SELECT count(*) FROM pgqueue.running").fetchone() == (0,)
    hand.close()


def test_a_failed_job_says_why_and_can_be_requeued_from_where_it_stopped(app: App, dsn: str, conn: Any, calls: list[Any]) -> None:
    broken = [True]

    @app.step(name="first")
    def first() -> int:
        calls.append("first")
        return 1

    @app.step(name="second", retry=Retry(2, backoff=0.01))
    def second() -> int:
        calls.append("second")
        if broken:
            raise RuntimeError("broken")
        return 2

    @app.workflow(name="flow")
    def flow() -> int:
        return first() + second()

    job = flow.enqueue()
    drain(app, dsn)
    assert job.status() == "failed"
    with pytest.raises(JobFailed, match=r"StepFailed: step 2 .second. failed: RuntimeError: broken"):
        job.result(timeout=5)
    assert calls == ["first", "second", "second"]
    assert not job.cancel(), "it has ended"
    broken.clear()
    assert job.requeue()
    assert not job.requeue(), "it has not ended"
    drain(app, dsn)
    assert job.result(timeout=5) == 3
    assert calls == ["first", "second", "second", "second"]
    assert [a.kind for a in job.attempts()].count("requeue") == 1
    assert violations(conn) == []


def test_a_caught_error_stays_when_a_later_step_is_requeued(app: App, dsn: str, conn: Any, calls: list[Any]) -> None:
    """Deleting the last failed checkpoint, or all of them, would make the replay diverge."""
    broken = [True]

    @app.step(name="caught", retry=Retry(1))
    def caught() -> None:
        calls.append("caught")
        raise RuntimeError("expected")

    @app.step(name="fatal", retry=Retry(1))
    def fatal() -> int:
        calls.append("fatal")
        if broken:
            raise RuntimeError("fatal")
        return 3

    @app.workflow(name="flow")
    def flow() -> int:
        try:
            caught()
        except StepFailed:
            pass
        return fatal()

    job = flow.enqueue()
    drain(app, dsn)
    broken.clear()
    job.requeue()
    drain(app, dsn)
    assert job.result(timeout=5) == 3
    assert calls == ["caught", "fatal", "fatal"]


def test_an_error_that_was_caught_stays_when_another_step_failed_while_it_was_handled(
    app: App, dsn: str, conn: Any, calls: list[Any]
) -> None:
    """Python says that the second error came while the first was handled. It is the second that ended the job."""
    broken = [True]

    @app.step(name="plan_a", retry=Retry(1))
    def plan_a() -> int:
        calls.append("a")
        raise RuntimeError("expected")

    @app.step(name="plan_b", retry=Retry(1))
    def plan_b() -> int:
        calls.append("b")
        if broken:
            raise RuntimeError("broken")
        return 2

    @app.workflow(name="flow")
    def flow() -> int:
        try:
            return plan_a()
        except StepFailed:
            return plan_b()

    job = flow.enqueue()
    drain(app, dsn)
    broken.clear()
    assert job.requeue()
    drain(app, dsn)
    assert job.result(timeout=5) == 2
    assert calls == ["a", "b", "b"]


@pytest.mark.parametrize("how", ["requeue", "retry"])
def test_what_failed_runs_again_and_how_it_was_cleaned_up_stays(
    app: App, dsn: str, conn: Any, calls: list[Any], how: str
) -> None:
    """The one has no checkpoint any more, and the other has: nothing has changed in the code."""
    broken = [True]

    @app.step(name="work", retry=Retry(1))
    def work() -> int:
        calls.append("work")
        if broken:
            raise RuntimeError("broken")
        return 1

    @app.step(name="clean_up")
    def clean_up() -> None:
        calls.append("clean up")

    @app.workflow(name="flow", retry=Retry(2 if how == "retry" else 1, backoff=0.01))
    def flow() -> int:
        try:
            return work()
        finally:
            clean_up()

    job = flow.enqueue()
    hand = Hand(app, dsn)
    (claimed,) = hand.claim()
    settlement = hand.run(claimed)
    assert settlement is not None
    assert settlement.how == ("retry" if how == "retry" else "failed")
    hand.settle(settlement)
    hand.close()
    broken.clear()
    if how == "requeue":
        assert job.requeue()
    drain(app, dsn)
    assert job.result(timeout=5) == 1
    assert calls == ["work", "clean up", "work"]
    assert violations(conn) == []


def test_a_requeued_job_that_goes_another_way_says_what_to_do(app: App, dsn: str, conn: Any, calls: list[Any]) -> None:
    broken = [True]

    @app.step(name="work", retry=Retry(1))
    def work() -> int:
        if broken:
            raise RuntimeError("broken")
        return 1

    @app.step(name="undo")
    def undo() -> None:
        calls.append("undo")

    @app.workflow(name="flow")
    def flow() -> int:
        try:
            return work()
        except StepFailed:
            undo()
            raise

    job = flow.enqueue()
    drain(app, dsn)
    broken.clear()
    assert job.requeue()
    drain(app, dsn)
    with pytest.raises(JobFailed, match=r"NonDeterministic: .* rerun it from the step that failed"):
        job.result(timeout=5)
    again = job.rerun(from_step=1)
    drain(app, dsn)
    assert again.result(timeout=5) == 1
    assert calls == ["undo"]


def test_a_group_of_errors_is_requeued_with_all_of_its_steps(app: App, dsn: str, conn: Any, calls: list[Any]) -> None:
    broken = [True]

    @app.step(name="part", retry=Retry(1))
    def part(n: int) -> int:
        calls.append(n)
        if broken and n != 1:
            raise RuntimeError("broken")
        return n

    @app.workflow(name="flow")
    def flow() -> int:
        errors: list[Exception] = []
        done = 0
        for n in range(3):
            try:
                done += part(n)
            except StepFailed as error:
                errors.append(error)
        if errors:
            raise ExceptionGroup("some", errors)
        return done

    job = flow.enqueue()
    drain(app, dsn)
    assert calls == [0, 1, 2]
    broken.clear()
    assert job.requeue()
    drain(app, dsn)
    assert job.result(timeout=5) == 3
    assert calls == [0, 1, 2, 0, 2]


def test_whole_job_transaction_is_one_commit(app: App, dsn: str, conn: Any, calls: list[Any]) -> None:
    @app.transaction(name="write")
    def write(tx: psycopg.Connection[Any], what: str) -> str:
        mark(tx, what)
        conn.execute("SELECT 1")
        return what

    conn.execute("ALTER TABLE mark ADD COLUMN xid xid8 DEFAULT pg_current_xact_id()")
    job = write.enqueue("x")
    hand = Hand(app, dsn)
    [claimed] = hand.claim()
    assert hand.run(claimed) is None, "nothing is left to settle"
    assert job.result(timeout=5) == "x"
    row = conn.execute("SELECT m.xmin = o.xmin FROM mark m, pgqueue.outcome o").fetchone()
    assert row == (True,)
    assert job.steps() == []
    assert violations(conn) == []
    hand.close()


def test_failed_transaction_leaves_nothing(app: App, dsn: str, conn: Any, calls: list[Any]) -> None:
    @app.transaction(name="write", retry=Retry(2, backoff=0.01))
    def write(tx: psycopg.Connection[Any]) -> None:
        mark(tx, "x")
        raise ValueError("after the write")

    alone = write.enqueue()

    @app.workflow(name="flow")
    def flow() -> None:
        write()

    inside = flow.enqueue()
    drain(app, dsn)
    assert marks(conn) == []
    assert alone.status() == inside.status() == "failed"


@pytest.mark.parametrize("isolation", ["read committed", "repeatable read", "serializable"])
def test_conflicts_are_run_again_and_not_counted(app: App, dsn: str, conn: Any, calls: list[Any], isolation: Any) -> None:
    conn.execute("CREATE TABLE counter (n int); INSERT INTO counter VALUES (0)")

    @app.transaction(name="count", isolation=isolation)
    def count(tx: psycopg.Connection[Any]) -> int:
        seen = tx.execute("SELECT n FROM counter").fetchone()
        calls.append(seen)
        if len(calls) <= 2:
            with connect(dsn, "other") as other:
                other.execute("UPDATE counter SET n = n + 10")
        tx.execute("UPDATE counter SET n = n + 1")
        return 0

    @app.workflow(name="flow")
    def flow() -> int:
        return count()

    job = flow.enqueue()
    drain(app, dsn)
    assert job.result(timeout=5) == 0
    assert job.attempts() == []
    expected = (1 + 10,) if isolation == "read committed" else (1 + 20,)
    assert conn.execute("SELECT n FROM counter").fetchone() == expected
    assert len(calls) == (1 if isolation == "read committed" else 3)


MISUSES = [
    "tx.commit()", "tx.rollback()", "tx.close()", "tx.autocommit", "with tx", "COMMIT", "comment, COMMIT", "end", "ROLLBACK",
    "abort", "begin", "PREPARE TRANSACTION", "two statements", "executemany", "pipeline", "block",
]  # fmt: skip


def misuse(tx: psycopg.Connection[Any], how: str) -> None:
    match how:
        case "tx.commit()":
            tx.commit()
        case "tx.rollback()":
            tx.rollback()
        case "tx.close()":
            tx.close()
        case "tx.autocommit":
            tx.autocommit = False
        case "with tx":
            with tx:
                pass
        case "comment, COMMIT":
            tx.execute("/* x */ -- y\n ; commit")
        case "two statements":
            tx.execute("INSERT INTO mark VALUES ('y'); COMMIT")
        case "executemany":
            tx.cursor().executemany("COMMIT", [()])
        case "pipeline":
            with tx.pipeline():
                tx.execute("COMMIT")
        case "block":
            tx.execute("DO $$ BEGIN COMMIT; END $$")
        case statement:
            tx.execute(statement)


@pytest.mark.parametrize("swallow", [False, True])
def test_user_code_cannot_end_its_transaction(app: App, dsn: str, conn: Any, calls: list[Any], swallow: bool) -> None:
    @app.transaction(name="misused", retry=Retry(1))
    def misused(tx: psycopg.Connection[Any], how: str) -> int:
        mark(tx, how)
        try:
            misuse(tx, how)
        except Exception:
            if not swallow:
                raise
        return 1

    @app.workflow(name="flow")
    def flow(how: str) -> int:
        return misused(how)

    jobs = dict(zip(MISUSES, app.enqueue_many(flow.map(MISUSES)), strict=True))
    drain(app, dsn)
    # Where the misuse was refused before it reached the server, and swallowed, the step went on as if nothing had been.
    fine = [how for how, job in jobs.items() if job.status() == "succeeded"]
    assert set(fine) >= (set(MISUSES) - {"two statements", "block"} if swallow else set())
    assert swallow or fine == []
    assert marks(conn) == fine
    assert [how for how, job in jobs.items() if job.steps()[0].status == "succeeded"] == fine
    assert violations(conn) == []


def test_raw_commit_through_the_wire_is_noticed(app: App, dsn: str, conn: Any, calls: list[Any]) -> None:
    """Whoever digs under psycopg's surface can commit, and no fence can prevent it: the step then fails loudly."""

    @app.transaction(name="digger", retry=Retry(1))
    def digger(tx: psycopg.Connection[Any]) -> None:
        tx.pgconn.exec_(b"COMMIT")

    @app.workflow(name="flow")
    def flow() -> None:
        digger()

    job = flow.enqueue()
    drain(app, dsn)
    with pytest.raises(JobFailed, match="ended the transaction"):
        job.result(timeout=5)


def test_raw_commit_in_a_job_of_its_own_is_noticed(app: App, dsn: str, conn: Any, calls: list[Any]) -> None:
    @app.transaction(name="digger", retry=Retry(1))
    def digger(tx: psycopg.Connection[Any]) -> None:
        tx.pgconn.exec_(b"COMMIT")

    job = digger.enqueue()
    drain(app, dsn)
    assert violations(conn) == []
    with pytest.raises(JobFailed, match="ended the transaction"):
        job.result(timeout=5)


def test_a_swallowed_database_error_fails_the_step(app: App, dsn: str, conn: Any, calls: list[Any]) -> None:
    @app.transaction(name="swallow", retry=Retry(1))
    def swallow(tx: psycopg.Connection[Any]) -> None:
        mark(tx, "x")
        try:
            tx.execute("SELECT 1/0")
        except psycopg.Error:
            pass

    job = swallow.enqueue()
    drain(app, dsn)
    with pytest.raises(JobFailed, match="went on after a database error"):
        job.result(timeout=5)
    assert marks(conn) == []


def test_savepoints_row_factories_and_cursors_work(app: App, dsn: str, conn: Any, calls: list[Any]) -> None:
    @app.transaction(name="rich")
    def rich(tx: psycopg.Connection[Any]) -> Any:
        mark(tx, "kept")
        try:
            with tx.transaction():
                mark(tx, "gone")
                raise ValueError
        except ValueError:
            pass
        tx.row_factory = dict_row
        row = tx.execute("SELECT 1 AS one").fetchone()
        with tx.cursor() as cursor, cursor.copy("COPY mark FROM STDIN") as copy:
            copy.write_row(["copied"])
        with tx.pipeline():
            mark(tx, "piped")
        tx.execute("SAVEPOINT a")
        tx.execute("ROLLBACK TO a")
        return row

    @app.transaction(name="after")
    def after(tx: psycopg.Connection[Any]) -> Any:
        return list(tx.execute("SELECT 2").fetchone() or ())  # the row factory of the last one is gone

    first, second = rich.enqueue(), after.enqueue()
    drain(app, dsn)
    assert first.result(timeout=5) == {"one": 1}
    assert second.result(timeout=5) == [2]
    assert marks(conn) == ["kept", "copied", "piped"]


def test_a_deferred_constraint_that_fails_at_commit_is_a_step_failure(app: App, dsn: str, conn: Any, calls: list[Any]) -> None:
    conn.execute("""CREATE TABLE parent (id int PRIMARY KEY);
        CREATE TABLE child (id int REFERENCES parent DEFERRABLE INITIALLY DEFERRED)""")

    @app.transaction(name="orphan", retry=Retry(1))
    def orphan(tx: psycopg.Connection[Any]) -> None:
        tx.execute("INSERT INTO child VALUES (1)")

    @app.workflow(name="flow")
    def flow() -> str:
        try:
            orphan()
        except StepFailed as error:
            return error.type
        return "?"

    job, alone = flow.enqueue(), orphan.enqueue()
    drain(app, dsn)
    assert job.result(timeout=5) == "ForeignKeyViolation"
    assert alone.status() == "failed"
    assert conn.execute("SELECT count(*) FROM child").fetchone() == (0,)


def test_enqueue_inside_a_transaction_joins_it(app: App, dsn: str, conn: Any, calls: list[Any]) -> None:
    @app.step(name="child")
    def child(n: int) -> int:
        return n

    @app.transaction(name="parent", retry=Retry(1))
    def parent(tx: psycopg.Connection[Any], fail: bool) -> str:
        job = child.enqueue(1)
        if fail:
            raise ValueError("rolled back")
        return job.id

    good, bad = parent.enqueue(False), parent.enqueue(True)
    drain(app, dsn)
    assert app.job(good.result(timeout=5)).result(timeout=5) == 1
    assert bad.status() == "failed"
    assert states(conn) == {"succeeded": 2, "failed": 1}


def test_enqueue_from_the_body_of_a_workflow_happens_once(app: App, dsn: str, conn: Any, calls: list[Any]) -> None:
    @app.step(name="child")
    def child(n: int) -> int:
        return n

    @app.workflow(name="flow", retry=NO_WAIT)
    def flow() -> str:
        job = child.enqueue(7)
        calls.append(job.id)
        if len(calls) < 3:
            raise RuntimeError("again")
        return job.id

    job = flow.enqueue()
    drain(app, dsn)
    assert len(calls) == 3
    assert set(calls) == {job.result(timeout=5)}
    assert states(conn) == {"succeeded": 2}


def test_changed_code_is_noticed(app: App, dsn: str, conn: Any, calls: list[Any]) -> None:
    order = ["a", "b"]

    @app.step(name="a")
    def a() -> str:
        return "a"

    @app.step(name="b")
    def b() -> str:
        return "b"

    @app.workflow(name="flow", retry=Retry(1))
    def flow() -> None:
        for name in order:
            app.functions[name]()
        if not calls:
            calls.append(1)
            raise RuntimeError("stop here")

    jobs = []
    for changed in (["b", "a"], ["a"], ["a", "b", "b"]):
        order[:] = ["a", "b"]
        calls.clear()
        job = flow.enqueue()
        drain(app, dsn)
        order[:] = changed
        job.requeue()
        drain(app, dsn)
        jobs.append(job)
    for job in jobs[:2]:
        with pytest.raises(JobFailed, match="NonDeterministic"):
            job.result(timeout=5)
    assert jobs[2].status() == "succeeded", "more steps at the end are no contradiction"


def test_a_renamed_step_keeps_its_checkpoints(app: App, dsn: str, conn: Any, calls: list[Any]) -> None:
    @app.step(name="new_name", aliases=["old_name"])
    def step() -> int:
        return 1

    @app.workflow(name="flow")
    def flow() -> int:
        return step()

    job = flow.enqueue()
    conn.execute("INSERT INTO pgqueue.checkpoint VALUES (%s, 1, 'old_name', '42', NULL, 1, '3', clock_timestamp())", (job.id,))
    conn.execute("UPDATE pgqueue.ready SET lane = 10")  # it came back
    drain(app, dsn)
    assert job.result(timeout=5) == 42


def test_values_come_back_as_their_hints_say(app: App, dsn: str, conn: Any, calls: list[Any]) -> None:
    @app.step(name="typed")
    def typed(
        when: datetime, price: Decimal, pair: tuple[int, str], by_id: dict[int, str], raw: bytes
    ) -> tuple[datetime, Decimal]:
        calls.append((when, price, pair, by_id, raw))
        return when, price

    @app.workflow(name="flow")
    def flow(when: datetime) -> tuple[datetime, Decimal]:
        return typed(when, Decimal("1.10"), (1, "a"), {1: "x"}, b"\x00\xff")

    now = datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC)
    job = flow.enqueue(now)
    drain(app, dsn)
    assert job.result(timeout=5) == (now, Decimal("1.10"))
    assert calls == [(now, Decimal("1.10"), (1, "a"), {1: "x"}, b"\x00\xff")]


def test_a_result_that_would_change_fails_the_step(app: App, dsn: str, conn: Any, calls: list[Any]) -> None:
    """It has happened, so it is not tried again."""
    values = [(1, 2), {1: 2}, {1, 2}, b"x", float("nan"), float("inf"), object(), 1 + 2j, Decimal(1)]

    @app.step(name="odd", retry=Retry(3, backoff=0.001))
    def odd(i: int):  # type: ignore[no-untyped-def]
        calls.append(i)
        return values[i]

    jobs = app.enqueue_many(odd.map(range(len(values))))
    drain(app, dsn)
    for job in jobs:
        with pytest.raises(JobFailed, match="BadValue"):
            job.result(timeout=5)
    assert sorted(calls) == list(range(len(values)))


def test_nul_and_surrogates_never_break_results_or_errors(app: App, dsn: str, conn: Any, calls: list[Any]) -> None:
    @app.step(name="nul", retry=Retry(1))
    def nul(fail: bool) -> Any:
        if fail:
            raise ValueError("a\0b\ud800c\x1b[2J")
        return {"a\0": ["b\0", "\ud800"]}

    good, bad = nul.enqueue(False), nul.enqueue(True)
    drain(app, dsn)
    assert good.result(timeout=5) == {"a\ufffd": ["b\ufffd", "\ufffd"]}
    with pytest.raises(JobFailed, match="a\ufffdb\ufffdc"):
        bad.result(timeout=5)


def test_monstrous_values_fail_the_job_and_not_the_worker(app: App, dsn: str, conn: Any, calls: list[Any]) -> None:
    @app.step(name="echo", retry=Retry(1))
    def echo(x: Any) -> Any:
        return x

    inputs = ['{"x": ' + "9" * 5000 + "}", '{"x": ' + "[" * 5000 + "]" * 5000 + "}", "{}", '{"y": 1}']
    ids = [
        conn.execute("SELECT pgqueue.enqueue_workflow('echo', %s::json, queue => 'default')::text", (text,)).fetchone()[0]
        for text in inputs
    ]
    fine = echo.enqueue(1)
    drain(app, dsn)
    assert fine.status() == "succeeded"
    for job in ids:
        assert app.job(job).status() == "failed", job
        with pytest.raises(JobFailed, match="BadValue"):
            app.job(job).result(timeout=5)

    @app.step(name="deep", retry=Retry(1))
    def deep() -> Any:
        value: Any = []
        for _ in range(5000):
            value = [value]
        return value

    @app.step(name="large", retry=Retry(1))
    def large() -> str:
        return "x" * (2 << 20)

    jobs = [deep.enqueue(), large.enqueue()]
    drain(app, dsn)
    assert [job.status() for job in jobs] == ["failed", "failed"]


def test_exits_and_strange_exceptions_are_failures(app: App, dsn: str, conn: Any, calls: list[Any]) -> None:
    class Strange(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    errors = [SystemExit(3), KeyboardInterrupt(), RecursionError(), Strange(), psycopg.OperationalError("mine"),
              psycopg.errors.SerializationFailure("mine"), GeneratorExit()]  # fmt: skip

    @app.step(name="strange", retry=Retry(1))
    def strange(i: int) -> None:
        raise errors[i]

    @app.transaction(name="tx_strange", retry=Retry(1))
    def tx_strange(tx: psycopg.Connection[Any], i: int) -> None:
        raise errors[i]

    jobs = app.enqueue_many([*strange.map(range(len(errors))), *tx_strange.map(range(len(errors)))])
    drain(app, dsn)
    assert {job.status() for job in jobs} == {"failed"}
    assert violations(conn) == []


def test_cancel(app: App, dsn: str, conn: Any, calls: list[Any]) -> None:
    @app.step(name="one")
    def one() -> None:
        calls.append("one")
        app.job(current().job_id).cancel()

    @app.step(name="bad", retry=Retry(5, backoff=0.01))
    def bad() -> None:
        app.job(current().job_id).cancel()
        raise ValueError("and would be tried again")

    ready, scheduled, failing = one.enqueue(), one.options(delay="1h").enqueue(), bad.enqueue()
    assert ready.cancel()
    assert scheduled.cancel()
    assert ready.cancel(), "asking twice is no error"
    drain(app, dsn)
    run_call(conn, verbs.cancel_waiting())
    for job in (ready, scheduled, failing):
        assert job.status() == "cancelled"
        with pytest.raises(JobCancelled):
            job.result(timeout=5)
    assert calls == []
    assert not ready.cancel()
    assert conn.execute("SELECT count(*) FROM pgqueue.cancel_request").fetchone() == (0,)
    assert ready.requeue(), "a cancelled job can be requeued, and is not cancelled again"
    drain(app, dsn)
    assert ready.status() in ("succeeded",)
    assert violations(conn) == []


def test_raise_cancel(app: App, dsn: str, conn: Any) -> None:
    @app.step(name="give_up")
    def give_up() -> None:
        raise Cancel("bad address")

    @app.workflow(name="flow")
    def flow() -> str:
        try:
            give_up()
        except StepFailed as error:
            return error.message
        return "?"

    alone, inside = give_up.enqueue(), flow.enqueue()
    drain(app, dsn)
    assert alone.status() == "cancelled"
    assert inside.result(timeout=5) == "bad address"
    assert len(inside.attempts()) == 1


@both.def_only("who calls from outside awaits by himself: see test_async.py")
def test_calls_outside_of_jobs(app: App, dsn: str, conn: Any, calls: list[Any]) -> None:
    @app.step(name="plain")
    def plain(n: int) -> int:
        return n + 1

    @app.transaction(name="tx")
    def tx_step(tx: psycopg.Connection[Any], what: str) -> int:
        mark(tx, what)
        return 5

    assert plain(1) == 2
    with pytest.raises(OutsideJob, match="using"):
        tx_step("a")
    with psycopg.connect(dsn) as mine:
        assert tx_step.using(mine)("a") == 5
        mine.rollback()
        assert tx_step.using(mine)("b") == 5
    assert marks(conn) == ["b"]
    with pytest.raises(OutsideJob):
        _ = current().job_id


def test_nested_calls_are_part_of_the_step(app: App, dsn: str, conn: Any, calls: list[Any]) -> None:
    @app.step(name="inner")
    def inner() -> int:
        return 1

    @app.transaction(name="inner_tx")
    def inner_tx(tx: psycopg.Connection[Any]) -> int:
        mark(tx, "inner")
        return 2

    @app.transaction(name="outer_tx")
    def outer_tx(tx: psycopg.Connection[Any]) -> int:
        mark(tx, "outer")
        return inner() + inner_tx()

    @app.step(name="outer", retry=Retry(1))
    def outer(with_tx: bool) -> int:
        return inner() + (inner_tx() if with_tx else 0)

    @app.workflow(name="flow")
    def flow() -> list[Any]:
        results: list[Any] = [outer_tx(), outer(False)]
        try:
            outer(True)
        except StepFailed as error:
            results.append(error.type)
        return results

    job = flow.enqueue()
    drain(app, dsn)
    assert job.result(timeout=5) == [3, 1, "OutsideJob"]
    assert marks(conn) == ["outer", "inner"]
    assert [s.name for s in job.steps()] == ["outer_tx", "outer", "outer"]


def test_a_lost_claim_cannot_be_swallowed(app: App, dsn: str, conn: Any, calls: list[Any]) -> None:
    @app.step(name="one")
    def one() -> None:
        calls.append("one")
        conn.execute("UPDATE pgqueue.running SET claim = 1")  # somebody else has it now

    @app.transaction(name="two")
    def two(tx: psycopg.Connection[Any]) -> None:
        mark(tx, "two")

    @app.workflow(name="flow")
    def flow() -> str:
        for step in (one, two, two):
            try:
                step()
            except BaseException as error:
                calls.append(type(error))
        return "sailed on"

    flow.enqueue()
    hand = Hand(app, dsn)
    [job] = hand.claim()
    assert hand.run(job) is None
    assert calls == ["one", ClaimLost, ClaimLost, ClaimLost]
    assert marks(conn) == []
    assert conn.execute("SELECT count(*) FROM pgqueue.checkpoint").fetchone() == (0,)
    hand.close()


def test_connection_lost_in_a_step_replays(app: App, dsn: str, conn: Any, calls: list[Any]) -> None:
    @app.step(name="one")
    def one() -> int:
        calls.append("one")
        return 1

    @app.transaction(name="two")
    def two(tx: psycopg.Connection[Any]) -> int:
        mark(tx, "two")
        calls.append("two")
        if calls.count("two") == 1:
            pid = tx.info.backend_pid
            conn.execute("SELECT pg_terminate_backend(%s)", (pid,))
        tx.execute("SELECT 1")
        return 2

    @app.workflow(name="flow")
    def flow() -> int:
        return one() + two()

    jobs = [flow.enqueue(), two.enqueue()]
    drain(app, dsn)
    assert jobs[0].result(timeout=5) == 3
    assert calls[:3] == ["one", "two", "two"], "the checkpointed step did not run again"
    assert marks(conn) == ["two", "two"]
    assert jobs[0].attempts() == []
    assert violations(conn) == []


def test_silence_inside_a_transaction_is_ended_by_the_server(app: App, dsn: str, conn: Any, calls: list[Any]) -> None:
    ended = threading.Event()

    @app.transaction(name="silent", idle_timeout=0.2)
    def silent(tx: psycopg.Connection[Any]) -> str:
        mark(tx, "x")
        calls.append("x")
        if len(calls) == 1:
            ended.wait(5)  # longer than the server allows; nothing to wait for
            return "too late"
        return "in time"

    job = silent.enqueue()
    threading.Timer(1.0, ended.set).start()
    drain(app, dsn)
    assert job.result(timeout=5) == "in time"
    assert marks(conn) == ["x"]


def test_result_times_out_and_unknown_jobs_are_errors(app: App, dsn: str) -> None:
    @app.step(name="noop")
    def noop() -> None:
        pass

    with pytest.raises(ResultTimeout, match="goes on: it is ready"):
        noop.enqueue().result(timeout=0.05)
    with pytest.raises(PgQueueError, match="no job"):
        app.job("01920000-0000-7000-8000-000000000000").result()


def test_a_workflow_of_many_steps_replays_in_pages(app: App, dsn: str, conn: Any, calls: list[Any]) -> None:
    @app.step(name="tick")
    def tick(i: int) -> int:
        calls.append(i)
        return i

    @app.workflow(name="flow", retry=Retry(2, backoff=0.01))
    def flow() -> int:
        total = sum([tick(i) for i in range(1200)])
        if len(calls) == 1200:
            calls.append(-1)
            raise RuntimeError("once more")
        return total

    job = flow.enqueue()
    drain(app, dsn)
    assert job.result(timeout=5) == sum(range(1200))
    assert len(calls) == 1201


def test_decorators_say_what_is_wrong() -> None:
    app = App()
    with pytest.raises(ValueError, match="name="):

        @app.step
        def local() -> None: ...

    with pytest.raises(TypeError, match="stored by name"):

        @app.step(name="stars")
        def stars(*args: int) -> None: ...

    with pytest.raises(TypeError, match="connection as its first"):

        @app.transaction(name="nothing")  # type: ignore[arg-type]
        def nothing() -> None: ...

    with pytest.raises(ValueError, match="not declared"):

        @app.step(name="q", queue="nowhere")
        def q() -> None: ...

    with pytest.raises(TypeError, match="not a parameter"):

        @app.step(name="k", key="nope")
        def k() -> None: ...

    wrong: Any
    for wrong, message in [
        ({"retry": None}, "give a Retry"),  # would have failed in the worker, where the first step fails
        ({"priority": 1.5}, "a whole number"),
        ({"priority": 10}, "from 0 to 9"),
        ({"max_crashes": True}, "a whole number"),
        ({"max_crashes": 0}, "from 1 to"),
        ({"aliases": "old"}, "a list of names"),
    ]:
        with pytest.raises((TypeError, ValueError), match=message):
            app.workflow(name="wrong", **wrong)(lambda: None)

    @app.step(name="twice")
    def one() -> None: ...

    with pytest.raises(ValueError, match="two functions"):

        @app.step(name="twice")
        def two() -> None: ...

    with pytest.raises(BadValue):
        one.options(at=datetime(2030, 1, 1))  # noqa: DTZ001


def test_cancel_while_running_ends_before_the_next_step(app: App, dsn: str, conn: Any, calls: list[Any]) -> None:
    @app.step(name="plain")
    def plain(cancel: bool) -> None:
        calls.append("plain")
        if cancel:
            app.job(current().job_id).cancel()

    @app.transaction(name="tx")
    def tx_step(tx: psycopg.Connection[Any], cancel: bool) -> None:
        mark(tx, "tx")
        if cancel:
            app.job(current().job_id).cancel()

    @app.workflow(name="flow")
    def flow(first: bool, second: bool) -> None:
        plain(first)
        tx_step(second)
        plain(False)

    one, two = flow.enqueue(True, False), flow.enqueue(False, True)
    drain(app, dsn)
    assert one.status() == two.status() == "cancelled"
    assert calls == ["plain", "plain"]
    assert marks(conn) == ["tx"], "what was done stays done"
    assert len(one.steps()) == 1
    assert len(two.steps()) == 2
    assert conn.execute("SELECT count(*) FROM pgqueue.cancel_request").fetchone() == (0,)
    assert one.requeue()
    drain(app, dsn)
    assert one.status() == "succeeded"
    assert violations(conn) == []


def test_a_contradiction_cannot_be_caught_by_the_workflow(app: App, dsn: str, conn: Any, calls: list[Any]) -> None:
    @app.step(name="a")
    def a() -> str:
        return "a"

    @app.step(name="b")
    def b() -> str:
        return "b"

    @app.workflow(name="flow", retry=Retry(1))
    def flow() -> str:
        if not calls:
            a()
            calls.append(1)
            raise RuntimeError("stop here")
        try:
            b()
        except Exception:
            calls.append("caught")
        return "sailed on"

    job = flow.enqueue()
    drain(app, dsn)
    job.requeue()
    drain(app, dsn)
    with pytest.raises(JobFailed, match="NonDeterministic"):
        job.result(timeout=5)
    assert calls == [1]


@both.def_only("a thread cannot await")
def test_a_thread_of_the_users_may_enqueue_but_not_call_steps(app: App, dsn: str, conn: Any, calls: list[Any]) -> None:
    from pgqueue.context import process

    @app.step(name="other")
    def other() -> None: ...

    @app.step(name="threads", retry=Retry(1))
    def threads() -> None:
        def work() -> None:
            calls.append(other.enqueue().id)
            try:
                other()
            except OutsideJob as error:
                calls.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()

    job = threads.enqueue()
    process.is_worker = True
    try:
        drain(app, dsn)
    finally:
        process.is_worker = False
    assert job.status() == "succeeded"
    assert len(calls) == 2
