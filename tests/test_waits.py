"""Workflows that wait: for a time, an event, a message, another job. In both colours: see both.py."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from pgqueue import (
    App,
    Cancel,
    JobFailed,
    NonDeterministic,
    Retry,
    Snooze,
    WaitTimeout,
    current,
    patched,
    protocol,
    receive,
    sleep,
    sleep_until,
    wait_event,
)
from pgqueue.database import run
from pgqueue.errors import BadValue, OutsideJob
from pgqueue.runtime import history
from tests import both
from tests.support import Hand, violations

colour, pytest_generate_tests = both.colour, both.pytest_generate_tests
DAY = timedelta(days=1)


def state(conn: psycopg.Connection[Any], job: Any) -> tuple[str, str | None, str | None]:
    row = conn.execute("SELECT state, waiting_for, waiting_key FROM pgqueue.jobs WHERE id = %s", (job.id,)).fetchone()
    assert row is not None
    return row


# --------------------------------------------------------------------------------------------------------- time


def test_a_sleeping_job_holds_nothing_and_goes_on_when_it_is_due(app: App, conn: psycopg.Connection[Any], hand: Any) -> None:
    log: list[str] = []

    @app.step(name="note")
    def note(what: str) -> None:
        log.append(what)

    @app.workflow(name="sleepy")
    def sleepy() -> str:
        note("before")
        sleep(DAY)
        note("after")
        return "rested"

    job = sleepy.enqueue()
    worker = hand()
    assert worker.drain(due_now=False) == 1
    assert state(conn, job)[0] == "scheduled"
    assert conn.execute("SELECT count(*) FROM pgqueue.running").fetchone() == (0,)
    left = conn.execute("SELECT run_at - clock_timestamp() FROM pgqueue.jobs").fetchone()
    assert left is not None
    assert DAY - timedelta(minutes=1) < left[0] <= DAY
    assert worker.drain(due_now=False) == 0
    conn.execute("UPDATE pgqueue.scheduled SET run_at = clock_timestamp()")
    conn.execute("UPDATE pgqueue.wait SET until = clock_timestamp()")
    assert worker.drain() == 1
    assert job.result(timeout=5) == "rested"
    assert log == ["before", "after"]
    assert [s.name for s in job.steps()] == ["note", "pgqueue.sleep", "note"]
    assert job.attempts() == []


def test_a_job_that_comes_back_too_early_sleeps_on(app: App, conn: psycopg.Connection[Any], hand: Any) -> None:
    """A requeue, say, or a clock that was set back: the wait keeps its end, which was fixed when it began."""

    @app.workflow(name="sleepy")
    def sleepy() -> None:
        sleep("1h")

    job = sleepy.enqueue()
    worker = hand()
    worker.drain(due_now=False)
    until = conn.execute("SELECT until FROM pgqueue.wait").fetchone()
    conn.execute("UPDATE pgqueue.scheduled SET run_at = clock_timestamp()")
    run(conn, protocol.promote(10))
    assert worker.drain(due_now=False) == 1
    assert state(conn, job)[0] == "scheduled"
    assert conn.execute("SELECT run_at FROM pgqueue.scheduled").fetchone() == until


def test_short_and_past_sleeps_stay_in_the_worker(app: App, conn: psycopg.Connection[Any], hand: Any) -> None:
    @app.workflow(name="nap")
    def nap() -> str:
        sleep(0.02)
        sleep_until(datetime.now(UTC) - DAY)
        return "awake"

    job = nap.enqueue()
    assert hand().drain(due_now=False) == 1
    assert job.result(timeout=5) == "awake"
    assert [s.name for s in job.steps()] == ["pgqueue.sleep"] * 2


def test_what_is_no_time_is_refused(app: App, conn: psycopg.Connection[Any], hand: Any) -> None:
    with pytest.raises(OutsideJob, match="outside of a running job"):
        sleep(1)

    @app.workflow(name="wrong")
    def wrong(what: str) -> None:
        if what == "until":
            sleep_until(datetime(9999, 1, 1, tzinfo=UTC))
        if what == "naive":
            sleep_until(datetime(2030, 1, 1))  # noqa: DTZ001 -- that is what is wrong with it
        sleep(what)

    jobs = app.enqueue_many(wrong.map(["until", "naive", "soon"]))
    hand().drain()
    for job, message in zip(jobs, ["before the year", "time zone", "not a duration"], strict=True):
        with pytest.raises(JobFailed, match=message):
            job.result(timeout=1)


def test_no_waiting_inside_a_step(app: App, conn: psycopg.Connection[Any], hand: Any) -> None:
    @app.step(name="step", retry=Retry(1))
    def step() -> None:
        sleep(10)

    job = step.enqueue()
    hand().drain()
    with pytest.raises(JobFailed, match="inside a step"):
        job.result(timeout=1)


def test_snooze_is_no_failure(app: App, conn: psycopg.Connection[Any], hand: Any) -> None:
    tries: list[int] = []

    @app.step(name="busy", retry=Retry(1))
    def busy() -> str:
        tries.append(1)
        if len(tries) < 4:
            raise Snooze("1m")
        return "done"

    @app.workflow(name="flow")
    def flow() -> str:
        return busy()

    jobs = [flow.enqueue(), busy.enqueue()]
    worker = hand()
    worker.drain(due_now=False)
    assert {job.status() for job in jobs} == {"scheduled"}
    worker.drain()
    assert [job.result(timeout=1) for job in jobs] == ["done", "done"]
    assert jobs[0].attempts() == jobs[1].attempts() == []


# ------------------------------------------------------------------------------------------------------- events


def test_an_event_before_and_after_and_for_many(app: App, conn: psycopg.Connection[Any], hand: Any) -> None:
    @app.workflow(name="waits")
    def waits(key: str) -> Any:
        return wait_event(key)

    app.send_event("early", {"n": 1})
    early, late = waits.enqueue("early"), [waits.enqueue("late") for _ in range(5)]
    worker = hand()
    worker.drain()
    assert early.result(timeout=1) == {"n": 1}
    assert {state(conn, job) for job in late} == {("waiting", "event", "late")}
    assert app.send_event("late", [1.0, 1e16, "\u00e9"]) is True
    assert app.send_event("late", "another") is False
    assert conn.execute("SELECT pgqueue.send_event('late', '3')").fetchone() == (False,)
    worker.drain()
    assert [job.result(timeout=1) for job in late] == [[1.0, 1e16, "\u00e9"]] * 5
    assert conn.execute("SELECT count(*) FROM pgqueue.wakeup").fetchone() == (0,)


def test_an_event_is_part_of_its_senders_transaction(app: App, conn: psycopg.Connection[Any], hand: Any, dsn: str) -> None:
    @app.workflow(name="waits")
    def waits(key: str) -> Any:
        return wait_event(key)

    @app.transaction(name="sends", retry=Retry(1))
    def sends(tx: psycopg.Connection[Any], key: str, fails: bool) -> None:
        app.send_event(key, "sent")
        if fails:
            raise Cancel("no")

    @app.workflow(name="flow")
    def flow() -> bool:
        return app.send_event("flow", "sent")

    keys = ["rolled back", "committed", "failed job", "job", "flow"]
    jobs = {key: waits.enqueue(key) for key in keys}
    worker = hand()
    worker.drain()
    with psycopg.connect(dsn) as caller:
        app.send_event("rolled back", "sent", conn=caller)
        caller.rollback()
        app.send_event("committed", "sent", conn=caller)
    sends.enqueue("failed job", True)
    sends.enqueue("job", False)
    first = flow.enqueue()
    worker.drain()
    done = {key for key, job in jobs.items() if job.status() == "succeeded"}
    assert done == {"committed", "job", "flow"}
    assert first.result(timeout=1) is True
    assert [s.name for s in first.steps()] == ["pgqueue.send_event"]


def test_an_event_that_does_not_come(app: App, conn: psycopg.Connection[Any], hand: Any) -> None:
    @app.workflow(name="waits")
    def waits() -> str:
        try:
            wait_event("never", timeout="1h")
        except WaitTimeout as error:
            sleep("1h")
            return str(error)
        return "came"

    job = waits.enqueue()
    worker = hand()
    worker.drain(due_now=False)
    assert state(conn, job) == ("waiting", "event", "never")
    conn.execute("UPDATE pgqueue.wait SET until = clock_timestamp()")
    conn.execute("UPDATE pgqueue.waiting SET until = clock_timestamp()")
    worker.drain(due_now=False)
    assert state(conn, job)[0] == "scheduled"
    app.send_event("never", "too late")  # the replay must not see it
    conn.execute("UPDATE pgqueue.wait SET until = clock_timestamp()")
    worker.drain()
    assert job.result(timeout=1) == "wait_event('never') did not come within 3600 s"


@pytest.mark.parametrize("sent", ["in time", "too late"])
def test_what_is_sent_when_the_time_is_over_comes_too_late_whoever_looks_when(
    app: App, conn: psycopg.Connection[Any], hand: Any, sent: str
) -> None:
    @app.workflow(name="waits")
    def waits(what: str) -> Any:
        try:
            return wait_event("e", timeout="1h") if what == "event" else receive("t", timeout="1h")
        except WaitTimeout:
            return "timeout"

    @app.workflow(name="later")
    def later() -> Any:
        return [receive("t"), wait_event("e")]

    jobs = app.enqueue_many(waits.map(["event", "message"]))
    worker = hand()
    worker.drain(due_now=False)
    app.send_event("e", 1)
    assert jobs[1].send("t", 1)
    ago = "clock_timestamp() - interval '1 minute'"
    conn.execute(f"UPDATE pgqueue.wait SET until = {ago}")
    conn.execute(f"UPDATE pgqueue.waiting SET until = {ago}")
    if sent == "in time":
        conn.execute(f"UPDATE pgqueue.event SET sent_at = {ago} - interval '1 second'")
        conn.execute(f"UPDATE pgqueue.message SET sent_at = {ago} - interval '1 second'")
    worker.drain(due_now=False)
    assert [job.result(timeout=1) for job in jobs] == ([1, 1] if sent == "in time" else ["timeout", "timeout"])
    other = later.enqueue()  # what came too late for one wait is there for another
    worker.drain(due_now=False)
    other.send("t", 2)
    worker.drain(due_now=False)
    assert other.result(timeout=1) == [2, 1]


def test_sleep_until_goes_by_the_clock_of_the_database(app: App, conn: psycopg.Connection[Any], hand: Any) -> None:
    moment = datetime.now(UTC) + timedelta(hours=2)

    @app.workflow(name="sleepy")
    def sleepy() -> None:
        sleep_until(moment)

    conn.execute("""
        CREATE OR REPLACE FUNCTION pgqueue.clock() RETURNS timestamptz LANGUAGE sql VOLATILE
            AS $$ SELECT clock_timestamp() + interval '1 hour' $$
    """)
    job, worker = sleepy.enqueue(), hand()
    worker.drain(due_now=False)
    assert conn.execute("SELECT run_at FROM pgqueue.scheduled").fetchone() == (moment,)
    conn.execute("""
        CREATE OR REPLACE FUNCTION pgqueue.clock() RETURNS timestamptz LANGUAGE sql VOLATILE
            AS $$ SELECT clock_timestamp() + interval '3 hours' $$
    """)
    conn.execute("UPDATE pgqueue.scheduled SET run_at = clock_timestamp()")
    run(conn, protocol.promote(10))
    worker.drain(due_now=False)
    assert job.status() == "succeeded"


@both.def_only("the handle of async code is another one")
def test_a_job_that_asks_for_its_own_result(app: App, conn: psycopg.Connection[Any], hand: Any) -> None:
    @app.workflow(name="selfish")
    def selfish() -> Any:
        return app.job(current().job_id).result()

    job = selfish.enqueue()
    hand().drain()
    with pytest.raises(JobFailed, match="asks for its own result"):
        job.result(timeout=1)


@pytest.mark.parametrize(
    ("value", "message"),
    [("1e999", "no double"), ("-1e400", "no double"), ("1" * 400, "no double"), ("[" * 600 + "]" * 600, "500 deep"),
     ("[1e99]", None), ('["1e999", "' + "[" * 600 + '"]', None), ("[" * 400 + "]" * 400, None)],
)  # fmt: skip
def test_sql_sends_what_can_be_read(app: App, conn: psycopg.Connection[Any], hand: Any, value: str, message: str | None) -> None:
    @app.workflow(name="waits")
    def waits() -> int:
        wait_event("e")
        receive("t")
        return 1

    job = waits.enqueue()
    for send in ("send_event('e', %s::json)", f"send_message('{job.id}', 't', %s::json)"):
        if message is None:
            conn.execute(f"SELECT pgqueue.{send}", (value,))  # type: ignore[arg-type]
        else:
            with pytest.raises(psycopg.Error, match=message):
                conn.execute(f"SELECT pgqueue.{send}", (value,))  # type: ignore[arg-type]
    if message is None:
        hand().drain()
        assert job.result(timeout=1) == 1


def test_what_somebody_wrote_into_the_table_and_cannot_be_read(app: App, conn: psycopg.Connection[Any], hand: Any) -> None:
    @app.workflow(name="waits")
    def waits() -> Any:
        return wait_event("e")

    conn.execute("INSERT INTO pgqueue.event VALUES ('e', repeat('[', 5000) || repeat(']', 5000), now())")
    job = waits.enqueue()
    hand().drain()
    with pytest.raises(JobFailed, match=r"what came for wait_event.'e'. cannot be read"):
        job.result(timeout=1)


def test_keys_and_topics_are_texts(app: App, conn: psycopg.Connection[Any], hand: Any) -> None:
    @app.workflow(name="idle")
    def idle() -> None: ...

    job = idle.enqueue()
    for key in (7, 1.5, "", "a\0b", "a\ud800", "x" * 513):
        with pytest.raises(BadValue, match="has to be a text of 1 to 512 bytes"):
            app.client.send_event(key)  # type: ignore[arg-type]
        with pytest.raises(BadValue, match="has to be a text of 1 to 512 bytes"):
            job.send(key, 1)  # type: ignore[arg-type]
    with pytest.raises(BadValue, match="the name of a stream 7 has to be a text"):
        list(job.stream(7, follow=False))  # type: ignore[arg-type]
    for options in ({"key": 7}, {"id": 7}, {"priority": 1.5}, {"cost": True}, {"max_crashes": "x"}):
        with pytest.raises(TypeError, match=next(iter(options))):
            idle.options(**options)  # type: ignore[arg-type]
    with pytest.raises(BadValue, match="at least a millisecond"):
        idle.options(timeout=0)
    with pytest.raises(ValueError, match="at least a millisecond"):
        app.step(name="s", timeout=0)(lambda: None)


def test_what_cannot_be_a_key_or_a_value(app: App, conn: psycopg.Connection[Any]) -> None:
    for key, value in [("", 1), ("x" * 600, 1), ("a", float("nan")), ("a", "\0"), ("a", "x" * (1 << 21))]:
        with pytest.raises(BadValue):
            app.send_event(key, value)
    assert conn.execute("SELECT count(*) FROM pgqueue.event").fetchone() == (0,)


def test_a_wait_that_sees_nothing_while_the_event_commits_is_woken(
    app: App, conn: psycopg.Connection[Any], hand: Any, dsn: str
) -> None:
    """The event is sent, but not committed, when the job looks and is suspended."""

    @app.workflow(name="waits")
    def waits() -> Any:
        return wait_event("open")

    job = waits.enqueue()
    worker = hand()
    with psycopg.connect(dsn) as sender:
        app.send_event("open", 1, conn=sender)
        worker.drain()
        assert state(conn, job)[0] == "waiting"
        worker.wake()
    worker.drain()
    assert job.result(timeout=1) == 1


# ----------------------------------------------------------------------------------------------------- messages


def test_messages_come_once_and_in_order(app: App, conn: psycopg.Connection[Any], hand: Any) -> None:
    @app.workflow(name="cart")
    def cart() -> list[Any]:
        items: list[Any] = []
        while (item := receive("items")) != "pay":
            items.append(item)
        return items

    job, other = cart.enqueue(), cart.enqueue()
    assert job.send("items", 1)
    worker = hand()
    worker.drain()
    assert state(conn, job) == ("waiting", "message", "items")
    for value in (2, {"a": [3]}, "pay"):
        job.send("items", value)
    job.send("other", "never read")
    worker.drain()
    assert job.result(timeout=1) == [1, 2, {"a": [3]}]
    assert state(conn, other)[0] == "waiting"
    assert job.send("items", 5) is False
    assert conn.execute("SELECT count(*) FROM pgqueue.message WHERE topic = 'items'").fetchone() == (0,)
    other.cancel()
    worker.drain()
    assert other.status() == "cancelled"
    run(conn, protocol.prune(["succeeded", "cancelled"], 0, 100))
    assert conn.execute("SELECT count(*) FROM pgqueue.message").fetchone() == (0,)
    assert conn.execute("SELECT count(*) FROM pgqueue.wait").fetchone() == (0,)


def test_a_message_to_nobody(app: App, conn: psycopg.Connection[Any]) -> None:
    with pytest.raises(Exception, match="there is no job"):
        app.job("01920000-0000-7000-8000-000000000000").send("topic", 1)


# ------------------------------------------------------------------------------------------------------ results


def test_a_workflow_waits_for_the_result_of_another_job(app: App, conn: psycopg.Connection[Any], hand: Any) -> None:
    @app.step(name="adds")
    def adds(a: int, b: int) -> int:
        return a + b

    @app.step(name="fails", retry=Retry(1))
    def fails() -> None:
        raise ValueError("no")

    @app.workflow(name="flow")
    def flow() -> list[Any]:
        good, bad = adds.enqueue(1, 2), fails.enqueue()
        try:
            bad.result()
        except JobFailed as error:
            return [good.result(), error.type]
        return []

    job = flow.enqueue()
    hand().drain()
    assert job.result(timeout=1) == [3, "ValueError"]


def test_a_job_that_is_cancelled_while_it_waits(app: App, conn: psycopg.Connection[Any], hand: Any) -> None:
    @app.workflow(name="waits")
    def waits(how: str) -> None:
        if how == "sleep":
            sleep("1d")
        elif how == "event":
            wait_event("x")
        else:
            receive("x")

    jobs = app.enqueue_many(waits.map(["sleep", "event", "message"]))
    worker = hand()
    worker.drain(due_now=False)
    assert {job.cancel() for job in jobs} == {True}
    worker.wake()
    assert {job.status() for job in jobs} == {"cancelled"}
    assert violations(conn) == []


# --------------------------------------------------------------------------------------------- changes of the code


def test_patched_branches_old_and_new(app: App, dsn: str, conn: psycopg.Connection[Any], hand: Any) -> None:
    def build(new: bool) -> App:
        app = App(dsn)

        @app.step(name="old")
        def old() -> str:
            return "old"

        @app.step(name="new")
        def new_step() -> str:
            return "new"

        @app.workflow(name="flow")
        def flow(early: bool) -> str:
            if early:
                wait_event("go")
            result = (new_step() if patched("change") else old()) if new else old()
            wait_event("end")
            return result

        return app

    before, after = build(False), build(True)
    beyond, not_yet = before.enqueue_many([before.functions["flow"].call(False), before.functions["flow"].call(True)])
    first = Hand(before, dsn)
    first.drain()
    first.close()
    app.send_event("go")
    fresh = after.functions["flow"].enqueue(False)
    app.send_event("end")
    second = Hand(after, dsn)
    second.drain()
    second.drain()
    second.close()
    assert [job.result(timeout=1) for job in (beyond, not_yet, fresh)] == ["old", "new", "new"]
    assert [s.name for s in fresh.steps()] == ["pgqueue.patched:change", "new", "pgqueue.event"]
    before.close()
    after.close()


def test_a_wait_that_became_another_step_is_noticed(app: App, dsn: str, conn: psycopg.Connection[Any]) -> None:
    """It has no checkpoint yet, but it was begun."""

    def build(new: bool) -> App:
        app = App(dsn)

        @app.step(name="step")
        def step() -> None: ...

        @app.workflow(name="flow")
        def flow() -> None:
            if new:
                step()
            wait_event("go")

        return app

    before, after = build(False), build(True)
    job = before.functions["flow"].enqueue()
    for one in (before, after):
        hand = Hand(one, dsn)
        hand.drain()
        hand.close()
        app.send_event("go")
    with pytest.raises(
        JobFailed, match=r"step 1 was pgqueue.event when it ran, and is step now.*Stored: 1 pgqueue.event. Called: 1 step"
    ) as e:
        job.result(timeout=1)
    assert e.value.type == NonDeterministic.__name__
    before.close()
    after.close()


@both.def_only("one clock is enough")
def test_many_sleepers_and_waiters_all_wake(app: App, conn: psycopg.Connection[Any], hand: Any) -> None:
    @app.workflow(name="waits")
    def waits(n: int) -> Any:
        if n % 2:
            sleep("1d")
            return n
        return wait_event(f"key {n % 20}")

    jobs = app.enqueue_many(waits.map(range(400)))
    worker = hand()
    worker.drain(due_now=False)
    senders = [threading.Thread(target=app.send_event, args=(f"key {n}", n)) for n in range(0, 20, 2)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    conn.execute("UPDATE pgqueue.wait SET until = clock_timestamp() WHERE kind = 'sleep'")
    deadline = time.monotonic() + 60
    while {job.status() for job in jobs[:20]} != {"succeeded"} and time.monotonic() < deadline:
        worker.drain()
    assert [job.result(timeout=1) for job in jobs] == [n if n % 2 else n % 20 for n in range(400)]
    assert violations(conn) == []


@both.def_only("it is about SQL")
def test_an_event_is_pruned_when_nobody_waits_for_it(app: App, conn: psycopg.Connection[Any], hand: Any) -> None:
    """A job that was woken and has not read the value yet still waits for it."""

    @app.workflow(name="waits")
    def waits() -> Any:
        return wait_event("wanted")

    job = waits.enqueue()
    worker = hand()
    worker.drain()
    app.send_event("wanted", 1)
    app.send_event("unwanted", 2)
    assert run(conn, protocol.prune_events(3600.0, 100)) == 0
    assert run(conn, protocol.prune_events(0.0, 100)) == 1
    worker.wake()
    assert state(conn, job)[0] == "ready"
    assert run(conn, protocol.prune_events(0.0, 100)) == 0
    worker.drain()
    assert job.result(timeout=5) == 1
    assert run(conn, protocol.prune_events(0.0, 100)) == 1
    assert app.send_event("wanted", 3), "it is the first again"


def test_a_workflow_has_so_many_steps_and_no_more(
    app: App, conn: psycopg.Connection[Any], hand: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one too many is an error where it is called, and not in the settlement, which the worker's other jobs share."""
    monkeypatch.setattr(history, "MOST_STEPS", 3)

    @app.workflow(name="long")
    def long() -> None:
        for _ in range(5):
            sleep("1h")

    job = long.enqueue()
    hand().drain()
    with pytest.raises(JobFailed, match="at most 3 steps"):
        job.result(timeout=5)


def test_what_is_said_before_a_wait_is_stored(app: App, conn: psycopg.Connection[Any], hand: Any) -> None:
    @app.workflow(name="says")
    def says() -> None:
        current().progress(0.5, "half")
        wait_event("go")

    job = says.enqueue()
    hand().drain()
    said = job.progress()
    assert said is not None
    assert (said.fraction, said.note) == (0.5, "half")


def test_a_burst_waits_for_those_that_are_about_to_be_woken(app: App, conn: psycopg.Connection[Any], hand: Any) -> None:
    @app.workflow(name="waits")
    def waits() -> Any:
        return wait_event("go")

    waits.enqueue()
    worker = hand()
    worker.drain()
    assert run(conn, protocol.remaining(["default"])) == 0
    app.send_event("go")
    assert run(conn, protocol.remaining(["default"])) > 0
    worker.drain()
    assert run(conn, protocol.remaining(["default"])) == 0


def test_a_snooze_that_is_no_duration_is_an_error_where_it_is_written() -> None:
    with pytest.raises(ValueError, match="not a duration"):
        Snooze("soon")
