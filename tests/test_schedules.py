"""Schedules: which ticks there are, what becomes of each, and that it is done once, whoever ticks and whatever the clock does.

The clock of the database is replaced here by a sequence, which all sessions see at once.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
import pytest
from click.testing import CliRunner
from cronsim import CronSim
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from chaos.databases import COPY
from chaos.interleaver import Interleaver, Program
from pgqueue import App, Queue, Retry, current, protocol
from pgqueue.cli.commands import cli
from pgqueue.database import connect, errors_translated, run
from pgqueue.errors import BadValue, IdConflict, PgQueueError, UnknownSchedule
from pgqueue.housekeeper.ticks import tick_due
from pgqueue.schedules import MOST_TICKS, Every, Times, between, following, latest, plan, times_of
from tests.apps import striking, year
from tests.support import ROOT, Hand, Server, Work, Workers, database_of, kill, violations, wait_for
from tests.test_cli import pgqueue as command
from tests.test_doctor import found

Connection = psycopg.Connection[Any]
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
DAY, HOUR, MINUTE, SECOND = timedelta(days=1), timedelta(hours=1), timedelta(minutes=1), timedelta(seconds=1)
TRIGGERED = "00000000-0000-4000-8000-000000000007"
LONDON = "Europe/London"  # 2026-03-29 01:00 UTC: 01:00 becomes 02:00. 2026-10-25 01:00 UTC: 02:00 becomes 01:00


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def library(cron: str, zone: str, begin: datetime, end: datetime) -> list[datetime]:
    """The ticks behind ``begin`` up to ``end``, by one walk of the library."""
    found = []
    for local in CronSim(cron, begin.astimezone(ZoneInfo(zone))):
        tick = local.astimezone(UTC)
        if tick > end:
            return found
        if tick > begin:
            found.append(tick)
    return found


# ------------------------------------------------------------------------------------------------- times, without a database

SPRING, AUTUMN = utc("2026-03-28T23:30"), utc("2026-10-24T22:30")


@pytest.mark.parametrize(
    ("cron", "begin", "ticks"),
    [
        # A fixed time in the hour that does not exist: when that hour would have begun. Never left out, never twice.
        ("30 1 * * *", SPRING, ["03-29 01:00", "03-30 00:30"]),
        ("15,45 1 * * *", SPRING, ["03-29 01:00", "03-30 00:15"]),
        ("0 9 * * *", SPRING, ["03-29 08:00", "03-30 08:00"]),
        # In the hour that comes twice: the first time.
        ("30 1 * * *", AUTUMN, ["10-25 00:30", "10-26 01:30"]),
        ("0 9 * * *", AUTUMN, ["10-25 09:00", "10-26 09:00"]),
        # Every hour, every few minutes: as time goes by, 23 hours that day and 25.
        ("0 * * * *", SPRING, ["03-29 00:00", "03-29 01:00", "03-29 02:00"]),
        ("0 * * * *", AUTUMN, ["10-24 23:00", "10-25 00:00", "10-25 01:00", "10-25 02:00"]),
        ("*/30 * * * *", SPRING, ["03-29 00:00", "03-29 00:30", "03-29 01:00", "03-29 01:30"]),
        ("*/30 * * * *", AUTUMN, ["10-24 23:00", "10-24 23:30", "10-25 00:00", "10-25 00:30", "10-25 01:00", "10-25 01:30"]),
        # With seconds: what the clock on the wall shows. A missing hour is left out, a double one counts twice.
        ("0 30 1 * * *", SPRING, ["03-30 00:30", "03-31 00:30"]),
        ("0 30 1 * * *", AUTUMN, ["10-25 00:30", "10-25 01:30", "10-26 01:30"]),
    ],
)
def test_when_the_clocks_change(cron: str, begin: datetime, ticks: list[str]) -> None:
    found = times_of(cron, None, LONDON).after(begin)
    assert [next(found).strftime("%m-%d %H:%M") for _ in ticks] == ticks


def test_the_second_time_of_an_hour_does_not_bring_back_the_first() -> None:
    """01:15 for the second time: the tick of 01:30 was before the change."""
    times = times_of("30 1 * * *", None, LONDON)
    assert following(times, utc("2026-10-25T01:15")) == utc("2026-10-26T01:30")


def test_intervals_are_counted_from_1970() -> None:
    times = times_of(None, 7.5, "UTC")
    assert following(times, utc("1970-01-01T00:00")) == utc("1970-01-01T00:00:07.5")
    begin = BEGIN + timedelta(seconds=1.25)
    found = [tick for tick, _ in zip(times.after(begin), range(4), strict=False)]
    assert found == [BEGIN + timedelta(seconds=s) for s in (7.5, 15, 22.5, 30)]
    assert following(Every(366 * DAY), datetime(9999, 12, 1, tzinfo=UTC)) is None


CRON_FIELDS = (
    st.sampled_from(["0", "30", "*/7", "15,45", "*", "59", "5-50/15"]),
    st.sampled_from(["*", "1", "2", "0-3", "*/2", "3,9", "23", "0"]),
    st.sampled_from(["*", "1", "25-31", "L", "*/9", "29"]),
    st.sampled_from(["*", "3,10,11", "*/2", "4"]),
    st.sampled_from(["*", "mon-fri", "0", "sun#1", "5L", "7"]),
)
ZONES = [
    "UTC",
    LONDON,
    "America/New_York",
    "Australia/Lord_Howe",
    "America/Sao_Paulo",
    "Asia/Kolkata",
    "Africa/Cairo",
    "Asia/Gaza",
]
CRONS = st.tuples(*CRON_FIELDS).map(" ".join)
MOMENTS = st.integers(0, 3 * 366 * 86400 * 1000).map(lambda ms: utc("2016-06-01") + timedelta(milliseconds=ms))


@settings(max_examples=60, deadline=None)
@given(CRONS, st.sampled_from(ZONES), MOMENTS, st.integers(1, 40))
def test_ticks_are_the_library_s_in_one_order_wherever_one_begins(cron: str, zone: str, begin: datetime, hours: int) -> None:
    """Ours are found by beginning again behind each tick; those of the library in one walk."""
    try:
        times = times_of(cron, None, zone)
    except ValueError:
        return  # the 30th of February
    end = begin + timedelta(hours=hours)
    expected = library(cron, zone, begin, end)
    assert expected == sorted(set(expected))
    found = []
    moment = begin
    while (tick := following(times, moment)) is not None and tick <= end and len(found) < 200:
        found.append(tick)
        moment = tick
    assert found == expected[:200]
    if expected:
        assert latest(times, expected[0], end) == expected[-1]
        assert list(between(times, expected[0], expected[-1])) == expected


def test_the_latest_of_very_many_is_found_quickly() -> None:
    began = time.monotonic()
    for times in (times_of("*/2 * * * * *", None, LONDON), times_of(None, 2, "UTC")):
        assert latest(times, BEGIN, BEGIN + 3650 * DAY + 1.5 * SECOND) == BEGIN + 3650 * DAY
    assert time.monotonic() - began < 2


def model(due: list[datetime], now: datetime, misfire: str) -> tuple[list[datetime], datetime | None]:
    """What of the ticks that are due runs, and which missed one is noted."""
    in_time = [tick for tick in due if tick >= now - MINUTE]
    if in_time == due or misfire == "all":
        return due[:MOST_TICKS], None
    if misfire == "once":
        return due[-1:], None
    return in_time, [tick for tick in due if tick not in in_time][-1]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["skip", "once", "all"]), st.integers(1, 90), st.integers(0, 3 * 3600 * 1000), st.integers(0, 100_000))
@example("skip", 60, 60_000, 0)
@example("all", 1, 10_000_000, 0)
def test_what_becomes_of_late_ticks(misfire: Any, every: int, late: int, begin: int) -> None:
    times: Times = Every(timedelta(seconds=every))
    done = BEGIN + timedelta(seconds=begin)
    now = done + timedelta(milliseconds=late)
    due = list(between(times, done + timedelta(microseconds=1), now))
    planned = plan(times, done, now, misfire, 60)
    assert (planned.ticks, planned.missed) == model(due, now, misfire)
    handled = due[: len(planned.ticks)] if misfire == "all" else due
    assert planned.next == following(times, handled[-1] if handled else done)
    assert done <= planned.until < (planned.next or now)
    assert not [tick for tick in due if tick > planned.until and tick not in due[MOST_TICKS:]]
    if planned.since is not None:
        assert planned.since == due[0]


# ------------------------------------------------------------------------------------------------------------ at the door


def step(app: App, name: str = "f") -> Any:
    return app.step(name=name)(lambda: None)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"cron": "61 * * * *"}, "no cron expression: Bad minute"),
        ({"cron": "* * * *"}, "no cron expression: Wrong number of fields"),
        ({"cron": "* " * 200}, "no cron expression: longer than 256"),
        ({"cron": "* * */20 * 1L"}, "never comes"),
        ({"cron": "* * * * *", "timezone": "Europe/Lundon"}, "'Europe/Lundon' is no time zone"),
        ({"cron": "* * * * *", "timezone": "../../etc/passwd"}, "is no time zone"),
        ({"cron": "* * * * *", "timezone": "Europe"}, "is no time zone"),
        ({"cron": "* * * * *", "timezone": "localtime"}, "is no time zone"),
        ({}, "either a cron expression"),
        ({"cron": "* * * * *", "every": 1}, "either a cron expression"),
        ({"every": 0.5}, "from 1 second to 366 days"),
        ({"every": "400d"}, "from 1 second to 366 days"),
        ({"every": "soon"}, "not a duration"),
        ({"every": 60, "timezone": LONDON}, "an interval has no time zone"),
        ({"every": 60, "misfire": "twice"}, "use 'skip', 'once', 'all'"),
        ({"every": 60, "grace": 0}, "from 1 second"),
        ({"every": 60, "priority": 10}, "0 .first. to 9"),
        ({"every": 60, "queue": "mail"}, "queue 'mail' is not declared"),
        ({"every": 60, "name": "a b"}, "cannot be the name of a schedule"),
    ],
)
def test_what_cannot_be_is_said_when_the_app_is_imported(said: dict[str, Any], message: str) -> None:
    app = App()
    with pytest.raises(ValueError, match=message):
        app.schedule(**said)(step(app))
    assert app.schedules == {}


def test_the_decorator_stands_above_the_other() -> None:
    app = App()
    with pytest.raises(TypeError, match=r"put @app.schedule\(...\) above"):
        app.schedule(every=1)(lambda: None)  # type: ignore[type-var]
    with pytest.raises(TypeError, match="not registered with this App"):
        app.schedule(every=1)(step(App()))
    with pytest.raises(TypeError, match="no cron expression: give a text"):
        app.schedule(60)(step(app))  # type: ignore[arg-type]


def test_arguments_and_names() -> None:
    app = App()

    @app.step(name="greet")
    def greet(whom: str, how: str = "hello") -> None: ...

    with pytest.raises(TypeError, match=r"missing a required argument: 'whom': give the arguments with input="):
        app.schedule(every=1)(greet)
    with pytest.raises(TypeError, match="unexpected keyword argument 'who'"):
        app.schedule(every=1, input={"whom": "ann", "who": "ann"})(greet)
    with pytest.raises(BadValue):
        app.schedule(every=1, input={"whom": object()})(greet)
    assert app.schedule(every=1, input={"whom": "ann"})(greet) is greet
    with pytest.raises(ValueError, match="two schedules are called 'greet'"):
        app.schedule(every=2, input={"whom": "bob"})(greet)
    app.schedule(every=2, input={"whom": "bob"}, name="greet-bob")(greet)
    assert {s.name: s.input for s in app.schedules.values()} == {"greet": '{"whom":"ann"}', "greet-bob": '{"whom":"bob"}'}


# -------------------------------------------------------------------------------------------------- with a clock of our own


class Clock:
    """The clock of the database: a sequence. It stands still unless it is set."""

    def __init__(self, conn: Connection) -> None:
        self.conn = conn
        conn.execute("""
            CREATE SEQUENCE IF NOT EXISTS simulated MINVALUE 0;
            CREATE OR REPLACE FUNCTION pgqueue.clock() RETURNS timestamptz LANGUAGE sql VOLATILE
            AS 'SELECT to_timestamp(0) + last_value * interval ''1 microsecond'' FROM public.simulated';
            CREATE OR REPLACE FUNCTION pgqueue.clock_bound() RETURNS timestamptz LANGUAGE sql STABLE
            AS 'SELECT to_timestamp(0) + last_value * interval ''1 microsecond'' FROM public.simulated'""")
        self.set(BEGIN)

    def set(self, now: datetime) -> None:
        self.now = now
        microseconds = (now - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
        self.conn.execute("SELECT setval('simulated', %s)", (microseconds,))

    def forward(self, delta: timedelta) -> None:
        self.set(self.now + delta)


@pytest.fixture
def clock(conn: Connection) -> Clock:
    return Clock(conn)


def tick_all(conn: Connection) -> int:
    """As often as there is something to do. How many jobs were enqueued."""
    count = 0
    while True:
        enqueued, next_due = tick_due(conn)
        count += enqueued
        if next_due != 0:
            return count


def begin(conn: Connection, **said: Any) -> App:
    """An App with one schedule, registered, and looked at for the first time."""
    app = App(queues=[Queue("other")])
    app.schedule(**said)(step(app))
    run(conn, app.registration())
    assert tick_all(conn) == 0
    return app


def ticks(conn: Connection, name: str = "f", why: str | None = None) -> list[datetime]:
    """Those that have a job; or those of a kind."""
    rows = conn.execute("SELECT due_at, job_id, why FROM pgqueue.ticks WHERE schedule = %s ORDER BY due_at", (name,)).fetchall()
    return [due_at for due_at, job, kind in rows if (kind == why if why else job is not None)]


def check_jobs(conn: Connection, name: str = "f") -> None:
    """Each tick that has a job has its own, and each job has its tick."""
    rows = conn.execute(
        "SELECT v.id::text, v.policy -> 'meta' ->> 'schedule', v.policy -> 'meta' ->> 'due_at' FROM pgqueue.job_values v"
    ).fetchall()
    mine = {(id, datetime.fromisoformat(due)) for id, schedule, due in rows if schedule == name}
    said = conn.execute("SELECT job_id::text, due_at FROM pgqueue.ticks WHERE schedule = %s AND job_id IS NOT NULL", (name,))
    assert mine == set(said.fetchall())
    assert len({id for id, _ in mine}) == len(mine)
    assert violations(conn) == []


def test_each_tick_becomes_a_job_that_knows_its_tick(conn: Connection, dsn: str, clock: Clock) -> None:
    seen: list[dict[str, Any]] = []
    app = App(dsn, queues=[Queue("other")])

    @app.schedule("0 9 * * mon-fri", timezone=LONDON, input={"x": 7}, queue="other", priority=2)
    @app.workflow(name="report")
    def report(x: int) -> None:
        seen.append({**current().meta, "x": x})

    clock.set(utc("2026-03-27T08:59:59"))  # a Friday, and the last day of winter on which anybody works
    hand = Hand(app, dsn)
    assert tick_all(conn) == 0
    for moment in ("2026-03-27T09:00:00", "2026-03-27T09:00:01", "2026-03-29T12:00", "2026-03-30T08:00:00"):
        clock.set(utc(moment))
        tick_all(conn)
    jobs = conn.execute("SELECT queue, priority, state FROM pgqueue.jobs").fetchall()
    assert jobs == [("other", 2, "ready")] * 2
    hand.drain(due_now=False)
    assert seen == [
        {"schedule": "report", "due_at": "2026-03-27T09:00:00+00:00", "x": 7},
        {"schedule": "report", "due_at": "2026-03-30T08:00:00+00:00", "x": 7},
    ]
    check_jobs(conn, "report")
    hand.close()
    app.close()


def test_when_to_look_again(conn: Connection, clock: Clock) -> None:
    assert tick_due(conn) == (0, None)
    begin(conn, cron="0 * * * *")
    _, next_due = tick_due(conn)
    assert next_due == pytest.approx(3600, abs=1)
    clock.forward(HOUR - timedelta(milliseconds=1))  # a timer that is early
    enqueued, next_due = tick_due(conn)
    assert (enqueued, next_due) == (0, 0.01)
    clock.forward(timedelta(milliseconds=1))
    enqueued, next_due = tick_due(conn)
    assert enqueued == 1
    assert next_due == pytest.approx(3600, abs=1)


def test_an_idle_look_is_one_cheap_statement(conn: Connection, clock: Clock) -> None:
    begin(conn, cron="0 * * * *")
    statements: list[str] = []

    class Listening:
        def execute(self, sql: str, params: Any) -> Any:
            statements.append(sql)
            return conn.execute(sql, params)  # type: ignore[call-overload]

    tick_due(Listening())  # type: ignore[arg-type]
    assert len(statements) == 1


@pytest.mark.parametrize("misfire", ["skip", "once", "all"])
def test_misfires(conn: Connection, clock: Clock, misfire: str) -> None:
    """Nobody was there for an hour."""
    begin(conn, cron="*/10 * * * *", misfire=misfire)
    clock.forward(HOUR + 30 * SECOND)
    tick_all(conn)
    late = [BEGIN + n * 10 * MINUTE for n in range(1, 7)]  # the last of them only by 30 s
    assert ticks(conn) == {"skip": late[-1:], "once": late[-1:], "all": late}[misfire]
    noted = conn.execute("SELECT due_at, why, since FROM pgqueue.ticks WHERE why IN ('missed', 'late')").fetchall()
    assert noted == {"skip": [(late[-2], "missed", late[0])], "once": [(late[-1], "late", late[0])], "all": []}[misfire]
    clock.forward(10 * MINUTE)
    tick_all(conn)
    assert ticks(conn)[-1] == late[-1] + 10 * MINUTE
    clock.forward(15 * MINUTE)  # the tick of 5 minutes ago is too late, and the only one
    tick_all(conn)
    assert (ticks(conn)[-1] == late[-1] + 20 * MINUTE) == (misfire != "skip")
    assert tick_all(conn) == 0
    check_jobs(conn)


def test_slow_moments_are_no_misfires(conn: Connection, clock: Clock) -> None:
    """Up to the grace, each tick runs, whatever the policy."""
    begin(conn, every=10, misfire="once", grace=45)
    clock.forward(45 * SECOND)
    assert tick_all(conn) == 4
    clock.forward(100 * SECOND)
    assert tick_all(conn) == 1


def test_all_of_very_many_are_done_in_parts(conn: Connection, clock: Clock) -> None:
    begin(conn, every=1, misfire="all")
    clock.forward(timedelta(seconds=2500))
    assert tick_due(conn) == (1000, 0.0)
    assert tick_due(conn) == (1000, 0.0)
    enqueued, _ = tick_due(conn)
    assert enqueued == 500
    assert ticks(conn) == [BEGIN + timedelta(seconds=s + 1) for s in range(2500)]
    check_jobs(conn)


@pytest.mark.parametrize("misfire", ["skip", "once", "all"])
def test_a_clock_that_steps_back_brings_no_tick_again(conn: Connection, clock: Clock, misfire: str) -> None:
    begin(conn, cron="0 * * * *", misfire=misfire, grace="1d")
    clock.forward(5 * HOUR)
    assert tick_all(conn) == 5
    clock.forward(-3 * HOUR)
    assert tick_all(conn) == 0
    clock.forward(3 * HOUR)
    assert tick_all(conn) == 0
    clock.forward(HOUR)
    assert tick_all(conn) == 1
    assert ticks(conn) == [BEGIN + n * HOUR for n in range(1, 7)]


def test_without_overlap_a_tick_waits_for_nobody(conn: Connection, dsn: str, clock: Clock) -> None:
    app = begin(conn, every=60, overlap=False)
    hand = Hand(app, dsn)
    clock.forward(MINUTE)
    assert tick_all(conn) == 1
    held = hand.claim()
    clock.forward(2 * MINUTE)
    assert tick_all(conn) == 0
    assert ticks(conn, why="overlap") != []
    hand.run(held[0])
    settlement = hand.run(held[0])
    assert settlement is not None
    assert hand.settle(settlement) == {}
    clock.forward(MINUTE)
    assert tick_all(conn) == 1
    hand.drain(due_now=False)
    # A job that somebody has triggered counts as well.
    conn.execute("SELECT pgqueue.trigger_schedule('f')")
    clock.forward(MINUTE)
    assert tick_all(conn) == 0
    hand.drain(due_now=False)
    # Of several that are due at once, one runs.
    clock.forward(3 * MINUTE)
    conn.execute("UPDATE pgqueue.schedule SET grace = 3600")
    assert tick_all(conn) == 1
    hand.close()


def test_without_overlap_a_job_that_is_requeued_counts_again(conn: Connection, dsn: str, clock: Clock) -> None:
    """One of a tick, and one that was triggered: both have failed, and later ticks have run and ended. Not one of a backfill, nor
    what was enqueued because one had failed."""
    app = App()
    tidy = app.step(name="tidy")(lambda failure: None)
    app.schedule(every=60, overlap=False)(app.step(name="f", retry=Retry(attempts=1), on_failure=tidy)(lambda: 1 / 0))
    run(conn, app.registration())
    hand = Hand(app, dsn)
    assert tick_all(conn) == 0
    clock.forward(MINUTE)
    assert tick_all(conn) == 1
    run(conn, protocol.backfill_schedule("f", [BEGIN]))
    run(conn, protocol.trigger_schedule("f", TRIGGERED))
    hand.drain(due_now=False)
    [[ticked]] = conn.execute("SELECT job_id::text FROM pgqueue.ticks WHERE why = 'due'").fetchall()
    [[filled]] = conn.execute("SELECT job_id::text FROM pgqueue.ticks WHERE why = 'backfill'").fetchall()
    tidying = [id for (id,) in conn.execute("SELECT id::text FROM pgqueue.jobs WHERE name = 'tidy'")]
    assert len(tidying) == 3
    for requeued, counts in ([[ticked], True], [[TRIGGERED], True], [[filled], False], [tidying, False]):
        clock.forward(MINUTE)
        assert tick_all(conn) == 1
        hand.drain(due_now=False)
        conn.execute("UPDATE pgqueue.outcome SET status = 'failed' WHERE job_id = ANY (%s)", (tidying,))
        assert {answer for _, answer in run(conn, protocol.requeue(requeued))} == {"requeued"}
        clock.forward(MINUTE)
        assert tick_all(conn) == (0 if counts else 1)
        hand.drain(due_now=False)
    forged = json.dumps({"meta": {"schedule": "f", "due_at": "soon"}})  # a producer may say anything, and breaks nothing by it
    [[said]] = conn.execute("SELECT pgqueue.enqueue_workflow('f', options => %s)::text", (forged,)).fetchall()
    hand.drain(due_now=False)
    assert run(conn, protocol.requeue([said])) == [(said, "requeued")]
    assert violations(conn) == []
    hand.close()


def test_a_pause_is_the_operator_s(conn: Connection, clock: Clock) -> None:
    app = begin(conn, cron="0 * * * *", misfire="all")
    assert run(conn, protocol.pause_schedule("f", "ann")) is True
    assert run(conn, protocol.pause_schedule("f")) is False
    clock.forward(3 * HOUR)
    run(conn, app.registration())
    changed = App()
    changed.schedule("30 * * * *")(step(changed))
    run(conn, changed.registration())
    assert tick_all(conn) == 0
    rows = conn.execute("SELECT paused, paused_by, cron, next_at FROM pgqueue.schedules").fetchall()
    assert rows == [(True, "ann", "30 * * * *", None)]
    assert run(conn, protocol.resume_schedule("f")) is True
    assert run(conn, protocol.resume_schedule("f")) is False
    assert tick_all(conn) == 0  # what came due meanwhile is left out
    clock.forward(HOUR)
    assert tick_all(conn) == 1
    assert ticks(conn) == [BEGIN + 3 * HOUR + 30 * MINUTE]


def test_trigger(conn: Connection, clock: Clock) -> None:
    begin(conn, cron="0 * * * *")
    run(conn, protocol.pause_schedule("f"))
    id = "00000000-0000-4000-8000-000000000007"
    assert [run(conn, protocol.trigger_schedule("f", id)) for _ in range(2)] == [id, id]  # the answer to the first was lost
    conn.execute("SELECT pgqueue.trigger_schedule('f')")
    assert conn.execute("SELECT count(*) FROM pgqueue.jobs WHERE state = 'ready'").fetchone() == (2,)
    conn.execute("SELECT pgqueue.enqueue_workflow('f', '{\"x\": 1}', id => 'another')")
    [[another]] = conn.execute("SELECT id::text FROM pgqueue.job_values WHERE input = '{\"x\": 1}'").fetchall()
    with pytest.raises(IdConflict), errors_translated():
        run(conn, protocol.trigger_schedule("f", another))
    meta = conn.execute("SELECT policy -> 'meta' FROM pgqueue.job_values WHERE policy ? 'meta' LIMIT 1").fetchone()
    assert meta == ({"schedule": "f", "due_at": "2026-01-01T00:00:00+00:00"},)
    assert ticks(conn) == []  # it is beside the plan, and takes no tick's place
    run(conn, protocol.resume_schedule("f"))
    clock.forward(HOUR)
    tick_all(conn)
    assert ticks(conn) == [BEGIN + HOUR]


def test_backfill_runs_what_got_no_job_and_nothing_twice(conn: Connection, clock: Clock) -> None:
    begin(conn, cron="0 * * * *", misfire="skip")
    clock.forward(HOUR)
    tick_all(conn)
    clock.forward(4.5 * HOUR)
    tick_all(conn)  # the last four are missed, and the row of the last of them says so
    assert (len(ticks(conn)), len(ticks(conn, why="missed"))) == (1, 1)
    wanted = [BEGIN + n * HOUR for n in range(-3, 6)]
    assert run(conn, protocol.backfill_schedule("f", wanted)) == 8
    assert run(conn, protocol.backfill_schedule("f", wanted)) == 0
    assert run(conn, protocol.backfill_schedule("f", [*wanted[3:], wanted[0] - HOUR, wanted[0] - HOUR])) == 1
    assert ticks(conn) == [BEGIN + n * HOUR for n in range(-4, 6)]
    with errors_translated(), pytest.raises(psycopg.Error, match="ticks of the past"):
        run(conn, protocol.backfill_schedule("f", [BEGIN + 7 * HOUR]))
    for nonsense in ("NULL", "'{-infinity}'", "'{infinity}'"):
        with errors_translated(), pytest.raises(psycopg.Error, match="ticks of the past"):
            conn.execute(f"SELECT pgqueue.backfill_schedule('f', {nonsense}::timestamptz[])")
    # What is due, and was backfilled before anybody ticked, is not done again.
    clock.forward(HOUR)
    assert run(conn, protocol.backfill_schedule("f", [BEGIN + 6 * HOUR])) == 1
    clock.forward(5 * SECOND)
    assert tick_all(conn) == 0
    check_jobs(conn)


def test_a_backfill_repeats_nothing_that_was_pruned(
    conn: Connection, dsn: str, clock: Clock, pgqueue: Callable[..., str]
) -> None:
    """Of ticks whose jobs and rows are gone nobody can tell whether they ran: they run again only where somebody says so. Those
    before the first of them, and behind the last, have never run."""
    app = begin(conn, every=3600, misfire="skip")
    hand = Hand(app, dsn)
    first = [BEGIN + n * HOUR for n in range(-20, -17)]
    assert run(conn, protocol.backfill_schedule("f", first)) == 3
    clock.forward(HOUR)
    assert tick_all(conn) == 1
    hand.drain(due_now=False)
    clock.forward(10 * HOUR + 2 * MINUTE)
    assert tick_all(conn) == 0
    assert len(ticks(conn, why="missed")) == 1
    run(conn, protocol.prune(["succeeded"], HOUR.total_seconds(), 100))
    assert run(conn, protocol.prune_ticks(HOUR.total_seconds(), 100)) == 4
    for again in (first, [BEGIN + HOUR], [BEGIN - 30 * HOUR, BEGIN - 3 * HOUR]):
        with pytest.raises(PgQueueError, match=r"may have had jobs, which were pruned.*again => true"), errors_translated():
            run(conn, protocol.backfill_schedule("f", again))
    assert run(conn, protocol.backfill_schedule("f", [BEGIN - 21 * HOUR, *(BEGIN + n * HOUR for n in range(2, 12))])) == 11
    # Also where the schedule was dropped, and made again.
    run(conn, App().registration())
    conn.execute("SELECT pgqueue.drop_schedule('f')")
    run(conn, app.registration())
    pruned = ("schedules", "backfill", "f", "--from", "2025-12-31T04:00", "--to", "2025-12-31T06:00", "--yes")
    refusal = r"from 2025-12-31 04:00:00.* to 2025-12-31 06:00:00.* pruned"
    with pytest.raises(PgQueueError, match=refusal), errors_translated():
        pgqueue(*pruned)
    assert pgqueue(*pruned, "--again") == "3 ticks, 3 of them new\n"
    assert pgqueue(*pruned) == "3 ticks, 0 of them new\n"
    check_jobs(conn)
    hand.close()


def test_the_id_of_a_job_is_a_second_net(conn: Connection, clock: Clock) -> None:
    """Even where somebody has deleted the rows of the ticks."""
    begin(conn, cron="0 * * * *")
    clock.forward(HOUR)
    tick_all(conn)
    conn.execute("DELETE FROM pgqueue.tick")
    assert run(conn, protocol.backfill_schedule("f", [BEGIN + HOUR])) == 1
    assert conn.execute("SELECT count(*) FROM pgqueue.jobs").fetchone() == (1,)
    check_jobs(conn)


def test_unknown_schedules(conn: Connection) -> None:
    for verb in ("pause_schedule('x')", "resume_schedule('x')", "trigger_schedule('x')", "backfill_schedule('x', '{}')"):
        with pytest.raises(UnknownSchedule, match="there is no schedule 'x'"), errors_translated():
            conn.execute(f"SELECT pgqueue.{verb}")


# ------------------------------------------------------------------------------------------------------------ registration


def declared(conn: Connection) -> dict[str, bool]:
    return dict(conn.execute("SELECT name, declared FROM pgqueue.schedules").fetchall())


def test_a_schedule_that_the_app_has_no_more_stays_and_rests(conn: Connection, clock: Clock) -> None:
    app = begin(conn, cron="0 * * * *", misfire="all")
    other = App(name="another App")
    other.schedule(every=3600)(step(other, "g"))
    run(conn, other.registration())
    run(conn, App().registration())
    assert declared(conn) == {"f": False, "g": True}
    clock.forward(3 * HOUR)
    tick_all(conn)
    assert (ticks(conn), len(ticks(conn, "g"))) == ([], 1)
    with pytest.raises(PgQueueError, match="no longer declared"), errors_translated():
        run(conn, protocol.trigger_schedule("f", "00000000-0000-4000-8000-000000000007"))
    run(conn, app.registration())
    assert tick_all(conn) == 0  # what came due meanwhile is left out
    clock.forward(HOUR)
    tick_all(conn)
    assert ticks(conn) == [BEGIN + 4 * HOUR]
    conn.execute("SELECT pgqueue.register_app('[]', '[]')")  # says nothing of schedules
    assert declared(conn) == {"f": True, "g": True}


def test_registering_again_changes_nothing(conn: Connection, clock: Clock) -> None:
    app = begin(conn, cron="0 * * * *", misfire="all")
    before = conn.execute("SELECT * FROM pgqueue.schedule").fetchall()
    clock.forward(2 * HOUR)
    run(conn, app.registration())
    assert conn.execute("SELECT * FROM pgqueue.schedule").fetchall() == before
    assert tick_all(conn) == 2


def test_a_change_of_times_counts_from_now_on_and_another_one_does_not(conn: Connection, clock: Clock) -> None:
    begin(conn, cron="0 * * * *", misfire="once")
    clock.forward(2 * HOUR)
    app = App()
    app.schedule("0 * * * *", misfire="all", input={})(step(app))
    run(conn, app.registration())
    assert tick_all(conn) == 2
    clock.forward(2 * HOUR)
    app = App()
    app.schedule("30 * * * *", misfire="all")(step(app))
    run(conn, app.registration())
    assert tick_all(conn) == 0
    clock.forward(HOUR)
    assert tick_all(conn) == 1


def test_the_app_is_known_by_its_module_or_name() -> None:
    assert App().name == "tests.test_schedules"
    assert App(name="shop").name == "shop"


def test_schedules_of_operators(conn: Connection, clock: Clock) -> None:
    begin(conn, cron="0 * * * *")
    conn.execute("SELECT pgqueue.add_schedule('mine', 'f', cron => '*/30 * * * *', misfire => 'all')")
    run(conn, App().registration())
    assert declared(conn) == {"f": False, "mine": True}
    tick_all(conn)
    clock.forward(HOUR)
    tick_all(conn)
    assert len(ticks(conn, "mine")) == 2
    conn.execute("SELECT pgqueue.add_schedule('mine', 'f', every => '1 hour')")
    tick_all(conn)
    clock.forward(HOUR)
    tick_all(conn)
    assert len(ticks(conn, "mine")) == 3
    taken = App()
    taken.schedule(every=1, name="mine")(step(taken))
    run(conn, taken.registration())
    assert conn.execute("SELECT every, origin FROM pgqueue.schedules WHERE name = 'mine'").fetchone() == (3600, "operator")
    for refused, message in {
        "add_schedule('x', 'unknown', every => '1 hour')": "no workflow 'unknown' is registered",
        "add_schedule('x', 'f', every => '1 hour', queue => 'nowhere')": "there is no queue",
        "add_schedule('x', 'f')": "either a cron expression or an interval",
        "add_schedule('x', 'f', every => '0.5 s')": "cannot be as it was said",
        "add_schedule('x y', 'f', every => '1 hour')": "cannot be as it was said",
        "add_schedule(NULL, 'f', every => '1 hour')": "cannot be as it was said",
        "add_schedule('x', 'f', every => '1 hour', misfire => 'twice')": "cannot be as it was said",
        "add_schedule('x', 'f', every => '1 month')": "months and years .* Use a cron expression",
        "add_schedule('x', 'f', every => '1 year')": "months and years",
        "add_schedule('x', 'f', every => '1 hour', timezone => 'Europe/London')": "an interval has no time zone",
        "add_schedule('x', 'f', cron => 'not a cron')": "'not a cron' is no cron expression. It has five fields",
        "add_schedule('x', 'f', cron => '* * * *')": "is no cron expression",
        "add_schedule('x', 'f', cron => '')": "is no cron expression",
        "add_schedule('x', 'f', cron => '@daily')": "is no cron expression",
        "add_schedule('x', 'f', cron => '* * * * * * *')": "is no cron expression",
        "add_schedule('x', 'f', cron => '0 9 * * mon;fri')": "is no cron expression",
        "add_schedule('x', 'f', cron => repeat('*', 250) || ' * * * *')": "is no cron expression",
        "add_schedule('x', 'f', cron => '* * * * *', timezone => '')": "is no time zone",
        "add_schedule('x', 'f', cron => '* * * * *', timezone => repeat('x', 200))": "is no time zone",
    }.items():
        with pytest.raises(PgQueueError, match=message), errors_translated():
            conn.execute(f"SELECT pgqueue.{refused}")
    conn.execute(
        "SELECT pgqueue.add_schedule('nulls', 'f', cron => ' 0 0  L * MON#1,5L', timezone => NULL, misfire => NULL,"
        " grace => NULL, overlap => NULL, input => NULL, queue => NULL, priority => NULL)"
    )
    as_without = "SELECT timezone, misfire, grace, overlap, input FROM pgqueue.schedules WHERE name = 'nulls'"
    assert conn.execute(as_without).fetchone() == ("UTC", "once", 60, True, "{}")
    run(conn, App().registration())
    for name in ("mine", "f", "nulls"):
        conn.execute("SELECT pgqueue.drop_schedule(%s)", (name,))
    assert declared(conn) == {}


def test_declared_schedules_belong_to_their_app(conn: Connection, clock: Clock) -> None:
    begin(conn, every=3600)
    for refused in ("add_schedule('f', 'f', every => '1 hour')", "drop_schedule('f')"):
        with pytest.raises(PgQueueError, match=r"is declared by the App tests\.test_schedules"), errors_translated():
            conn.execute(f"SELECT pgqueue.{refused}")


def test_one_that_cannot_tick_does_not_keep_the_others(conn: Connection, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    begin(conn, every=60)
    conn.execute("SELECT pgqueue.add_schedule('bad', 'f', cron => '0 61 * * *')")
    conn.execute("SELECT pgqueue.add_schedule('zone', 'f', cron => '* * * * *', timezone => 'Mars/Phobos')")
    conn.execute("SELECT pgqueue.add_schedule('gone', 'f', every => '1 minute')")
    conn.execute("UPDATE pgqueue.schedule SET queue = 'gone' WHERE name = 'gone'")
    for _ in range(3):
        clock.forward(MINUTE)
        tick_all(conn)
    assert len(ticks(conn)) == 3
    problems = dict(conn.execute("SELECT name, problem FROM pgqueue.schedules").fetchall())
    assert problems["f"] is None
    assert "no cron expression" in problems["bad"]
    assert "no time zone" in problems["zone"]
    assert "there is no queue" in problems["gone"]
    late = dict(conn.execute("SELECT name, next_at FROM pgqueue.schedules WHERE problem IS NOT NULL").fetchall())
    assert late == dict.fromkeys(("bad", "zone", "gone"), BEGIN + MINUTE)  # not when it is tried again: the alert is about this
    metrics = conn.execute("SELECT labels[1], value FROM pgqueue.job_metrics() WHERE metric ~ 'schedule_next_run'").fetchall()
    assert {name: value for name, value in metrics if name != "f"} == {name: at.timestamp() for name, at in late.items()}
    said = [record.message for record in caplog.records if "cannot tick" in record.message]
    assert [message.split()[1] for message in said] == ["bad", "zone", "gone"]  # once, however often they are tried
    run(conn, protocol.pause_schedule("zone"))
    assert run(conn, protocol.resume_schedule("zone"))  # counts from now on
    conn.execute("SELECT pgqueue.add_schedule('bad', 'f', cron => '0 62 * * *')")
    tick_all(conn)
    resumed = conn.execute("SELECT next_at FROM pgqueue.schedules WHERE name = 'zone'").fetchone()
    assert resumed == (clock.now,)
    assert "cannot tick: '0 62 * * *' is no cron expression" in caplog.records[-1].message
    conn.execute("UPDATE pgqueue.schedule SET queue = NULL, grace = 3600 WHERE name = 'gone'")
    clock.forward(20 * SECOND)
    tick_all(conn)
    assert len(ticks(conn, "gone")) == 3  # nothing was lost
    assert conn.execute("SELECT problem FROM pgqueue.schedules WHERE name = 'gone'").fetchone() == (None,)


def test_a_host_that_cannot_read_a_schedule_leaves_it_to_the_others(
    conn: Connection, clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One has no tz database, looks first every time, and keeps nobody from a tick."""
    begin(conn, cron="* * * * *", timezone=LONDON, misfire="skip", grace=1)

    def tick_without_zones() -> int:
        with monkeypatch.context() as patch:
            patch.setattr("pgqueue.schedules.zone_of", lambda name: times_of(None, 1, name))  # ValueError
            return tick_all(conn)

    for _ in range(3):
        clock.forward(MINUTE)
        assert [tick_without_zones(), tick_all(conn)] == [0, 1]
    assert caplog.records == []
    # It says so where there is no other.
    clock.forward(MINUTE + 6 * SECOND)
    assert tick_without_zones() == 0
    [problem] = conn.execute("SELECT problem FROM pgqueue.schedules").fetchall()
    assert LONDON in problem[0]
    assert len(caplog.records) == 1


def test_ticks_are_pruned_when_their_jobs_are_gone(conn: Connection, dsn: str, clock: Clock) -> None:
    app = begin(conn, every=60, misfire="all")
    clock.forward(3 * MINUTE)
    tick_all(conn)
    hand = Hand(app, dsn)
    [job, *_] = hand.claim()
    settlement = hand.run(job)
    assert settlement is not None
    hand.settle(settlement)
    clock.forward(DAY)
    run(conn, protocol.pause_schedule("f"))
    assert run(conn, protocol.prune_ticks(3600, 100)) == 0
    run(conn, protocol.prune(["succeeded"], 3600, 100))
    assert run(conn, protocol.prune_ticks(3600, 100)) == 1
    hand.close()


# ------------------------------------------------------------------------------------------------------------- several at once


@pytest.fixture(scope="module")
def simulated(server: Server, template: str) -> Iterator[tuple[Clock, str]]:
    """A database with a clock of its own, in which nobody waits for the disk, because nobody here crashes the server."""
    name = f"pgqueue_ticks_{os.getpid()}"
    with psycopg.connect(server.dsn, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name} TEMPLATE {template} {COPY}")
        admin.execute(f"ALTER DATABASE {name} SET synchronous_commit = off")
    dsn = database_of(server.dsn, name)
    with connect(dsn, "tests") as conn:
        conn.execute("CREATE OR REPLACE FUNCTION pgqueue.durable_commit() RETURNS void LANGUAGE sql AS ''")
        yield Clock(conn), dsn
    with psycopg.connect(server.dsn, autocommit=True) as admin:
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="module")
def three(simulated: tuple[Clock, str]) -> Iterator[list[Connection]]:
    conns = [connect(simulated[1], "ticker") for _ in range(3)]
    yield conns
    for conn in conns:
        conn.close()


def at_once(conns: list[Connection], work: Callable[[Connection], object]) -> None:
    errors: list[BaseException] = []

    def one(conn: Connection) -> None:
        try:
            work(conn)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=one, args=(conn,)) for conn in conns]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


STEPS = st.lists(st.sampled_from([-3600, -60, 0, 1, 59, 600, 3600, 7200, 86_400, 5 * 86_400]), min_size=1, max_size=10)
COUNT = iter(range(10**6))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(CRONS, st.sampled_from(ZONES), MOMENTS, STEPS)
@example("30 1 * * *", LONDON, utc("2026-10-24T12:00"), [86_400, -3600, -3600, 3600, 3600, 86_400])
@example("*/7 * * * *", LONDON, utc("2026-03-28T23:00"), [7200, -3600, 7200])
def test_however_the_clock_steps_and_whoever_ticks(
    simulated: tuple[Clock, str], three: list[Connection], cron: str, zone: str, begin: datetime, steps: list[int]
) -> None:
    """The ticks are those of the library, each once, with one job of its own."""
    try:
        times_of(cron, None, zone)
    except ValueError:
        return
    clock, _ = simulated
    name = f"s{next(COUNT)}"
    clock.set(begin)
    app = App(name=name)
    app.schedule(cron, timezone=zone, name=name, misfire="all")(step(app, "w"))
    run(clock.conn, app.registration())
    at_once(three, tick_all)
    latest_seen = begin
    for seconds in steps:
        clock.forward(timedelta(seconds=seconds))
        latest_seen = max(latest_seen, clock.now)
        at_once(three, tick_all)
    tick_all(clock.conn)
    assert ticks(clock.conn, name) == library(cron, zone, begin, latest_seen)
    check_jobs(clock.conn, name)
    clock.conn.execute("DELETE FROM pgqueue.schedule; TRUNCATE pgqueue.job, pgqueue.ready, pgqueue.tick")


YEAR = {
    "fixed": ("30 1 * * *", LONDON),
    "hourly": ("0 * * * *", LONDON),
    "gap": ("30 2 * * *", "America/New_York"),
    "working days": ("0 9 * * mon-fri", "America/New_York"),
    "half": ("*/30 1-3 * * *", "Australia/Lord_Howe"),
    "seconds": ("30 15 1 * * *", LONDON),
}
FAILPOINTS = ("tick.before", "tick.planned", "tick.committed")


class Tickers:
    """Processes that tick. One that was killed is replaced."""

    def __init__(self, dsn: str, dice: random.Random) -> None:
        self._dsn = dsn
        self._dice = dice
        self._processes: list[tuple[subprocess.Popen[bytes], str]] = []
        self.killed: Counter[str] = Counter()

    def start(self, deadly: bool = True) -> None:
        place = self._dice.choice((*FAILPOINTS, "anywhere"))
        environment = {**os.environ}
        if deadly and place != "anywhere":
            environment["PGQUEUE_FAILPOINTS"] = f"{place}=kill9@{self._dice.randint(1, 30)}"
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.apps.ticker", self._dsn], cwd=ROOT, env=environment, stdin=subprocess.PIPE
        )
        self._processes.append((process, place if deadly else "nowhere"))

    def replace_the_dead(self) -> None:
        for process, place in list(self._processes):
            if place == "anywhere" and self._dice.random() < 0.02:
                process.kill()
            if process.poll() is not None:
                assert process.returncode == -signal.SIGKILL
                process.communicate()
                self._processes.remove((process, place))
                self.killed[place] += 1
                self.start()

    def stop(self) -> None:
        for process, _ in self._processes:
            process.kill()
        for process, _ in self._processes:
            process.communicate()
        self._processes.clear()


@pytest.mark.slow
def test_a_year_with_three_tickers_that_are_killed_and_a_clock_that_steps(simulated: tuple[Clock, str]) -> None:
    """Over both changes of the clocks of three countries."""
    clock, dsn = simulated
    dice = random.Random(os.environ.get("SEED", "2026"))
    clock.set(BEGIN)
    app = App(name="year")
    function = step(app, "w")
    for name, (cron, zone) in YEAR.items():
        app.schedule(cron, timezone=zone, name=name.replace(" ", "-"), misfire="all")(function)
    run(clock.conn, app.registration())
    tickers = Tickers(dsn, dice)
    end = BEGIN + 365 * DAY
    try:
        for _ in range(3):
            tickers.start()
        while clock.now < end or min(tickers.killed[place] for place in (*FAILPOINTS, "anywhere")) < 2:
            back = dice.random() < 0.2
            clock.forward(-dice.uniform(0, 3) * HOUR if back else dice.choice([0.2, 2, 4, 12, 48]) * dice.uniform(0.5, 1) * HOUR)
            tickers.replace_the_dead()
            time.sleep(0.006)
        reached = clock.now + DAY
        clock.set(reached)
    finally:
        tickers.stop()
    others = "SELECT FROM pg_stat_activity WHERE application_name = 'ticker' AND datname = current_database() AND state <> 'idle'"
    wait_for(lambda: not clock.conn.execute(others).fetchall(), what="the sessions of the dead to end")
    tick_all(clock.conn)
    for name, (cron, zone) in YEAR.items():
        assert ticks(clock.conn, name.replace(" ", "-")) == library(cron, zone, BEGIN, reached), name
        check_jobs(clock.conn, name.replace(" ", "-"))
    clock.conn.execute("DELETE FROM pgqueue.schedule; TRUNCATE pgqueue.job, pgqueue.ready, pgqueue.tick")


# ------------------------------------------------------------------------------------------------------------------- races


def ticking(_: object) -> Program:
    """As tick_due() does it, with turns of others between the look, the verb and its commit."""
    due, now, _next = yield protocol.due_schedules(10)
    made = []
    for schedule in due:
        planned = plan(schedule.times, schedule.done_until, now, schedule.misfire, schedule.grace)
        yield "BEGIN"
        made.append((yield protocol.tick(schedule, planned)))
        yield "COMMIT"
    return made


def inside(call: protocol.Call[Any]) -> Callable[[object], Program]:
    def program(_: object) -> Program:
        yield "BEGIN"
        answer = yield call
        yield "COMMIT"
        return answer

    return program


@pytest.fixture
def racing(simulated: tuple[Clock, str]) -> Iterator[Callable[..., None]]:
    """A schedule with two ticks that are due, and what some sessions make of it in every order."""
    clock, dsn = simulated

    def setup(conn: Connection, overlap: bool, failed: str | None) -> None:
        conn.execute("DELETE FROM pgqueue.schedule")
        for table in ("job", "ready", "tick", "attempt"):
            conn.execute(f"DELETE FROM pgqueue.{table}")
        clock.set(BEGIN)
        app = App()
        app.schedule("0 * * * *", misfire="all", overlap=overlap)(step(app))
        run(conn, app.registration())
        assert tick_all(conn) == 0
        if failed is not None:  # a job that was triggered, and has ended since
            run(conn, protocol.trigger_schedule("f", failed))
            conn.execute("DELETE FROM pgqueue.ready")
            conn.execute("INSERT INTO pgqueue.outcome (job_id, status, finished_at) VALUES (%s, 'failed', %s)", (failed, BEGIN))
        clock.set(BEGIN + 2 * HOUR)

    with Interleaver(dsn) as interleaver:

        def race(
            check: Any, orders: int, overlap: bool = True, failed: str | None = None, **sessions: Callable[[object], Program]
        ) -> None:
            def after(conn: Connection, _: None, results: dict[str, Any]) -> None:
                assert not [result for result in results.values() if isinstance(result, BaseException)], results
                check(conn, results)
                check_jobs(conn)

            def always(conn: Connection) -> None:
                assert violations(conn) == []

            assert len(interleaver.run(sessions, lambda conn: setup(conn, overlap, failed), after, always)) >= orders

        yield race
    clock.conn.execute("DELETE FROM pgqueue.schedule; TRUNCATE pgqueue.job, pgqueue.ready, pgqueue.tick")


BOTH = [BEGIN + HOUR, BEGIN + 2 * HOUR]


def test_race_of_two_that_tick(racing: Any) -> None:
    def check(conn: Connection, results: dict[str, Any]) -> None:
        assert sorted([*results["a"], *results["b"]], key=str) in ([2], [2, None])
        assert ticks(conn) == BOTH

    racing(check, 6, a=ticking, b=ticking)


def test_race_of_a_tick_and_a_pause(racing: Any) -> None:
    def check(conn: Connection, results: dict[str, Any]) -> None:
        assert results["pause"] is True
        assert ticks(conn) == (BOTH if results["tick"] == [2] else [])
        assert tick_all(conn) == 0

    racing(check, 6, tick=ticking, pause=inside(protocol.pause_schedule("f")))


def test_race_of_a_tick_and_a_backfill(racing: Any) -> None:
    def check(conn: Connection, results: dict[str, Any]) -> None:
        tick_all(conn)
        assert ticks(conn) == [BEGIN, *BOTH]
        assert results["backfill"] + (sum(filter(None, results["tick"]))) <= 3

    racing(check, 6, tick=ticking, backfill=inside(protocol.backfill_schedule("f", [BEGIN, *BOTH])))


def test_race_of_a_tick_and_registrations(racing: Any) -> None:
    changed = App()
    changed.schedule("30 * * * *", misfire="all")(step(changed))

    def check(conn: Connection, results: dict[str, Any]) -> None:
        assert ticks(conn) in ([], BOTH)
        assert tick_all(conn) == 0
        [cron] = conn.execute("SELECT cron FROM pgqueue.schedules").fetchall()
        assert cron == ("30 * * * *",)

    racing(check, 6, tick=ticking, register=inside(changed.registration()))


def one_of_two(conn: Connection, results: dict[str, Any]) -> None:
    """A tick runs unless the job beside the plan was there before it."""
    ran = results["tick"] == [1]
    tick_all(conn)
    assert ticks(conn) == (BOTH[:1] if ran else [])
    assert ticks(conn, why="overlap") == (BOTH[1:] if ran else BOTH)
    conn.execute("DELETE FROM pgqueue.job WHERE id = %s", (TRIGGERED,))
    conn.execute("DELETE FROM pgqueue.ready WHERE job_id = %s", (TRIGGERED,))


def test_race_of_a_tick_and_a_trigger_without_overlap(racing: Any) -> None:
    racing(one_of_two, 6, overlap=False, tick=ticking, trigger=inside(protocol.trigger_schedule("f", TRIGGERED)))


def test_race_of_a_tick_and_a_requeue_without_overlap(racing: Any) -> None:
    racing(one_of_two, 6, overlap=False, failed=TRIGGERED, tick=ticking, requeue=inside(protocol.requeue([TRIGGERED])))


# --------------------------------------------------------------------------------------------------------- command line


@pytest.fixture
def pgqueue(dsn: str) -> Callable[..., str]:
    def call(*arguments: str, code: int = 0, zone: str = "UTC") -> str:
        """``zone``: where the command runs."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TZ", zone)
            time.tzset()
            result = CliRunner(env={"PGQUEUE_DSN": dsn}).invoke(cli, arguments, standalone_mode=False)
        time.tzset()
        if result.exception is not None:
            raise result.exception
        assert (result.return_value or 0) == code
        return result.output

    return call


def test_commands(conn: Connection, clock: Clock, pgqueue: Callable[..., str]) -> None:
    begin(conn, cron="0 9 * * mon-fri", timezone=LONDON, overlap=False)
    conn.execute("SELECT pgqueue.add_schedule('mine', 'f', every => '90 s')")
    tick_all(conn)
    head, *lines = pgqueue("schedules").splitlines()
    assert " ".join(head.split()) == "name workflow times timezone next last state misfire overlap origin problem"
    assert " ".join(lines[0].split()) == "f f 0 9 * * mon-fri Europe/London 2026-01-01T09:00:00+00:00 on once no app"
    assert " ".join(lines[1].split()) == "mine f every 90s UTC 2026-01-01T00:01:30+00:00 on once yes operator"
    assert "paused" in pgqueue("schedules", "pause", "f")
    assert pgqueue("schedules", "pause", "f") == "it was paused\n"
    [f, mine] = json.loads(pgqueue("schedules", "--json"))
    assert (f["paused"], f["cron"], f["timezone"], f["input"], f["origin"]) == (True, "0 9 * * mon-fri", LONDON, {}, "app")
    assert "(pgqueue schedules pause)" in f["paused_by"]
    assert (mine["every"], mine["cron"], mine["overlap"]) == (90, None, True)
    assert pgqueue("schedules", "resume", "f") == "resumed\n"
    assert pgqueue("schedules", "resume", "f") == "it was not paused\n"
    id = pgqueue("schedules", "trigger", "f").strip()
    assert conn.execute("SELECT name FROM pgqueue.jobs WHERE id = %s", (id,)).fetchone() == ("f",)
    with pytest.raises(UnknownSchedule):
        pgqueue("schedules", "backfill", "nobody", "--from", "2026-01-01")


def test_backfill_command(conn: Connection, clock: Clock, pgqueue: Callable[..., str]) -> None:
    begin(conn, cron="30 0 * * *", timezone=LONDON)
    clock.set(utc("2026-04-02T12:00"))
    backfill = ("schedules", "backfill", "f")
    march = ("--from", "2026-03-28", "--to", "2026-03-31")  # local days: the 28th to the beginning of the 31st
    listed = pgqueue(*backfill, *march, "--dry-run").split("\n")[1:-1]
    assert listed == ["2026-03-28T00:30:00+00:00", "2026-03-29T00:30:00+00:00", "2026-03-30T00:30:00+01:00"]
    assert pgqueue(*backfill, "--from", listed[0], "--to", listed[-1], "--dry-run", zone="Asia/Tokyo").split("\n")[1:-1] == listed
    assert pgqueue(*backfill, *march, "--yes") == "3 ticks, 3 of them new\n"
    assert pgqueue(*backfill, *march, "--yes") == "3 ticks, 0 of them new\n"
    assert pgqueue(*backfill, "--from", "2026-03-28", "--yes") == "6 ticks, 3 of them new\n"
    assert ticks(conn)[:3] == [utc("2026-03-28T00:30"), utc("2026-03-29T00:30"), utc("2026-03-29T23:30")]
    assert pgqueue(*backfill, "--from", "2026-04-02T00:30+01:00", "--yes") == "1 ticks, 0 of them new\n"
    for arguments, message in {
        ("--from", "yesterday"): "'yesterday' is no time",
        ("--from", "2026-01-01", "--to", "2027-01-01"): "--to is in the future",
        ("--from", "2026-03-31", "--to", "2026-03-28", "--yes"): r"--from .2026-03-31. is later than --to .2026-03-28.",
        ("--from", "2027-01-01", "--dry-run"): "is later than --to .now.",
        ("--from", "0001-01-01", "--dry-run"): "from the year 1900 on",
        ("--from", "2026-01-01", "--to", "9999-12-31T23:59:59-14:00"): "from the year 1900 on",
    }.items():
        with pytest.raises(BadValue, match=message):
            pgqueue(*backfill, *arguments)
    conn.execute("SELECT pgqueue.add_schedule('often', 'f', every => '1 s')")
    with pytest.raises(BadValue, match="more than 100,000 ticks"):
        pgqueue("schedules", "backfill", "often", "--from", "2026-01-01")


def test_whose_a_schedule_is_where_two_want_it(conn: Connection, dsn: str) -> None:
    """Whoever is registered last has it, but an operator's stays his. Who deploys or starts the one that loses, and who asks the
    doctor, is told."""
    name, target = "tests.apps.striking.strike", "tests.apps.striking:app"
    other = App(name="other")
    other.schedule(every=5, name=name)(step(other))
    run(conn, other.registration())
    said = command("migrate", target, dsn=dsn)
    assert said.returncode == 0
    assert f"warning: schedule {name} is declared by the App other too" in said.stderr
    assert command("migrate", target, dsn=dsn).stderr == ""
    run(conn, other.registration())
    assert found(dsn, "schedules", "error", f"schedule {name} is declared by the App other too", app=striking.app)
    run(conn, App(name="other").registration())
    assert found(dsn, "schedules", "warning", f"schedule {name}, which this App declares, is not registered", app=striking.app)
    conn.execute("SELECT pgqueue.drop_schedule(%s)", (name,))
    conn.execute("SELECT pgqueue.add_schedule(%s, 'f', every => '1 hour')", (name,))
    ignored = f"schedule {name} is one that an operator has made: what this App declares under that name is ignored"
    assert f"warning: {ignored}; give that of the App another name" in command("migrate", target, dsn=dsn).stderr
    assert f"{ignored}; give that of the App another name" in command("work", "--check", target, dsn=dsn).stderr
    assert found(dsn, "schedules", "error", ignored, app=striking.app)
    assert conn.execute("SELECT workflow, every FROM pgqueue.schedules").fetchall() == [("f", 3600)]


# ------------------------------------------------------------------------------------------------------- real processes


def test_three_supervisors_one_of_which_is_killed(dsn: str, conn: Connection, workers: Workers) -> None:
    """A schedule of every second: each second has its one effect, whoever dies."""
    conn.execute(striking.TABLES)
    hosts = [workers.start("tests.apps.striking:app", "-w", "1", "--lease", "1s") for _ in range(3)]
    struck = "SELECT count(*) FROM struck"

    def so_many(count: int) -> Callable[[], bool]:
        return lambda: (conn.execute(struck).fetchone() or (0,))[0] >= count

    wait_for(so_many(2), what="the first strokes")
    for pid in hosts[0].children():
        kill(pid)
    hosts[0].kill()
    for pid in hosts[1].children():  # its housekeeper and its worker; the supervisor starts others
        kill(pid)
    wait_for(so_many(7), what="more strokes")
    for host in hosts[1:]:
        host.signal(signal.SIGTERM)
        assert host.wait() == 0
    times = [row[0] for row in conn.execute("SELECT due_at FROM struck ORDER BY 1")]
    due = ticks(conn, "tests.apps.striking.strike")
    assert due == [due[0] + n * SECOND for n in range(len(due))]
    assert times == sorted(set(times))
    active = conn.execute("SELECT count(*) FROM pgqueue.jobs WHERE state <> 'succeeded'").fetchone()
    assert len(times) + (active or (0,))[0] == len(due)
    assert set(times) <= set(due)
    check_jobs(conn, "tests.apps.striking.strike")


def test_nobody_is_there_for_several_ticks_and_then_a_supervisor_starts(
    dsn: str, conn: Connection, clock: Clock, workers: Workers
) -> None:
    """What the three kinds of misfire make of an outage: five hourly ticks (all: one of every third hour), the last 30 s late."""
    conn.execute(year.TABLES)
    run(conn, year.app.registration())

    def done() -> bool:
        due = conn.execute("SELECT FROM pgqueue.schedules WHERE next_at IS NULL OR next_at <= pgqueue.clock()").fetchall()
        return not due and not conn.execute("SELECT FROM pgqueue.job_values WHERE status = 'active'").fetchall()

    host = workers.start("tests.apps.year:app", "-w", "1", "--lease", "1s")
    wait_for(done, what="the first look")
    clock.forward(HOUR)
    wait_for(lambda: ticks(conn, "skipped") == ticks(conn, "once") == [BEGIN + HOUR] and done(), what="the ticks of one o'clock")
    host.kill()
    clock.forward(5 * HOUR + 30 * SECOND)
    workers.start("tests.apps.year:app", "-w", "1", "--lease", "1s")
    wait_for(done, what="what came due")
    for name, hours in {"skipped": (1, 6), "once": (1, 6), "hours": (3, 6)}.items():
        struck = conn.execute("SELECT due_at FROM struck WHERE schedule = %s ORDER BY 1", (name,)).fetchall()
        assert [due_at for (due_at,) in struck] == ticks(conn, name) == [BEGIN + n * HOUR for n in hours], name
        check_jobs(conn, name)
    noted = conn.execute("SELECT schedule, why, since, due_at FROM pgqueue.ticks WHERE since IS NOT NULL AND schedule <> 'fixed'")
    assert set(noted.fetchall()) == {
        ("skipped", "missed", BEGIN + 2 * HOUR, BEGIN + 5 * HOUR),
        ("once", "late", BEGIN + 2 * HOUR, BEGIN + 6 * HOUR),
    }


@pytest.mark.slow
@pytest.mark.parametrize("days", [24, pytest.param(2, marks=[pytest.mark.limits, pytest.mark.timeout(1800)])])
def test_three_supervisors_for_a_year_with_kills_and_a_clock_that_steps(
    dsn: str, conn: Connection, clock: Clock, workers: Workers, days: int
) -> None:
    """Over all changes of the clocks, in steps of up to so many days. Each host's housekeepers die at another failpoint of the
    tick, again and again, and the supervisors in turn. Each tick has one job, or none where its schedule says so, and each job
    its one effect."""
    dice = random.Random(os.environ.get("SEED", "2026"))
    conn.execute(year.TABLES)  # type: ignore[call-overload]
    conn.execute("UPDATE pgqueue.retention SET seconds = 'infinity'")  # a year is to be seen, not a week
    run(conn, year.app.registration())

    def start(place: str) -> Any:
        environment = {"PGQUEUE_FAILPOINTS": f"{place}=kill9@{dice.randint(2, 5)}"} if place else {}
        started.append(workers.start("tests.apps.year:app", "-w", "1", "--lease", "1s", env=environment))
        return started[-1]

    def all_ticked() -> bool:
        return not conn.execute("SELECT FROM pgqueue.schedules WHERE next_at <= pgqueue.clock()").fetchall()

    started: list[Work] = []
    hosts = {place: start(place) for place in FAILPOINTS}
    killed = 0
    while clock.now < BEGIN + 365 * DAY:
        clock.forward(-dice.uniform(0, 6) * HOUR if dice.random() < 0.2 else dice.uniform(days / 24, days) * DAY)
        if dice.random() < 0.25:  # here some ticks are seen in time
            wait_for(all_ticked, what="all ticks before")
            clock.set(clock.now.replace(minute=0, second=dice.randint(0, 50)) + HOUR)
        time.sleep(dice.uniform(0.2, 0.6))
        place = FAILPOINTS[killed % 3]
        if dice.random() < 0.2 or hosts[place].process.poll() is not None:
            hosts[place].kill()
            hosts[place] = start(place)
            killed += 1
    reached = clock.now
    start("")  # dies of nothing
    wait_for(all_ticked, what="all ticks")
    wait_for(
        lambda: not conn.execute("SELECT FROM pgqueue.job_values WHERE status = 'active' LIMIT 1").fetchall(), what="all jobs"
    )
    assert killed >= 3
    deaths = sum(host.log().count("the housekeeper ended") for host in started)
    assert deaths >= 3
    print(f"\n{killed} supervisors and {deaths} housekeepers were killed; {dict(outcomes(conn))}")
    for name, (cron, zone, misfire) in year.SCHEDULES.items():
        expected = library(cron, zone, BEGIN, reached)
        assert accounted_for(conn, name) == expected, name
        if misfire == "all":
            assert ticks(conn, name) == expected, name
        struck = conn.execute("SELECT due_at FROM struck WHERE schedule = %s ORDER BY 1", (name,)).fetchall()
        assert [row[0] for row in struck] == ticks(conn, name), name
        check_jobs(conn, name)
    seen = outcomes(conn)
    assert seen["skipped", "missed"]
    assert seen["skipped", "due"]
    assert seen["once", "late"]
    assert seen["once", "due"]
    assert {why for name, why in seen if name not in ("skipped", "once")} == {"due"}


def outcomes(conn: Connection) -> Counter[tuple[str, str]]:
    """What became of how many ticks of which schedule."""
    return Counter(conn.execute("SELECT schedule, why FROM pgqueue.ticks").fetchall())


def accounted_for(conn: Connection, name: str) -> list[datetime]:
    """The ticks of a schedule for which a row stands: its own, or one that says since when it stands for all."""
    cron, zone, _ = year.SCHEDULES[name]
    rows = conn.execute(
        "SELECT coalesce(since, due_at), due_at FROM pgqueue.ticks WHERE schedule = %s ORDER BY 1", (name,)
    ).fetchall()
    return [tick for since, due_at in rows for tick in library(cron, zone, since - SECOND, due_at)]
