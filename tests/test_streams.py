"""What running jobs say of themselves: progress, and streams of values. In both colours: see both.py."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgqueue import App, Retry, UnknownJob, current, protocol, stream
from pgqueue.database import run
from pgqueue.errors import BadValue, OutsideJob, ValueTooLarge
from pgqueue.runtime import reports
from tests import both
from tests.apps import bank
from tests.support import Hand, Workers, drain, violations, wait_for

colour, pytest_generate_tests = both.colour, both.pytest_generate_tests


def test_a_stream_is_exactly_once_in_a_transaction_and_in_the_body(app: App, dsn: str, conn: psycopg.Connection[Any]) -> None:
    tries: list[int] = []

    @app.transaction(name="tx", retry=Retry(2, backoff=0.001))
    def in_tx(tx: psycopg.Connection[Any]) -> None:
        stream.write("tx")
        tries.append(1)
        if len(tries) < 2:
            raise ValueError("once more")

    @app.step(name="step", retry=Retry(2, backoff=0.001))
    def in_step() -> None:
        stream.write("step")
        stream.write({"n": 1}, name="other")
        tries.append(1)
        if len(tries) < 4:
            raise ValueError("once more")

    @app.workflow(name="flow")
    def flow() -> None:
        stream.write("begin")
        in_tx()
        in_step()
        stream.write("end")

    job = flow.enqueue()
    drain(app, dsn)
    assert job.status() == "succeeded"
    assert list(job.stream()) == ["begin", "tx", "step", "step", "end"], "a step that is tried again says it again"
    assert list(job.stream("other")) == [{"n": 1}] * 2
    assert list(job.stream(after=3)) == ["step", "end"]
    assert list(job.stream("none", follow=False)) == []
    assert [s.name for s in job.steps()] == ["pgqueue.stream", "tx", "step", "pgqueue.stream"]
    assert violations(conn) == []


def test_many_values_in_order_and_a_checkpoint_never_before_them(
    app: App, dsn: str, conn: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reports, "EVERY", 1000.0)  # then only the end of the step sends, and a full buffer

    @app.step(name="counts")
    def counts(n: int) -> int:
        for i in range(n):
            stream.write(i)
        current().progress(1, "all of them")
        return n

    few, many = counts.enqueue(3), counts.enqueue(2 * reports.MOST + 5)
    drain(app, dsn)
    assert list(few.stream()) == [0, 1, 2]
    assert list(many.stream()) == list(range(2 * reports.MOST + 5))
    said = many.progress()
    assert said is not None
    assert (said.fraction, said.note) == (1.0, "all of them")


def test_they_are_read_while_the_job_runs(bank_db: psycopg.Connection[Any], workers: Workers, bank_file: Path) -> None:
    job = bank.talks.enqueue(20, 0.1)
    assert job.progress() is None
    workers.start("tests.apps.bank:app", "-w", "1")
    seen = []
    for value in job.stream():
        seen.append(value)
        if value == 3:
            assert job.status() == "running"
            wait_for(lambda: (said := job.progress()) is not None and said.fraction is not None and said.fraction > 0.1)
            assert job.status() == "running"
    assert seen == list(range(20))
    assert job.status() == "succeeded"
    said = job.progress()
    assert said is not None
    assert (said.fraction, said.note) == (1.0, "20 of 20")

    async def twin() -> list[Any]:
        other = bank.app.async_client.job(job.id)
        assert await other.progress() == said
        values = [value async for value in other.stream(after=5)]
        await bank.app.aclose()
        return values

    assert asyncio.run(twin()) == list(range(5, 20))


def test_a_note_with_half_a_character_is_stored_nevertheless(app: App, dsn: str, conn: psycopg.Connection[Any]) -> None:
    """The step has done its work: to say so must not fail it."""

    @app.step(name="step")
    def step() -> None:
        current().progress(0.5, "a\ud800b")

    job = step.enqueue()
    hand = Hand(app, dsn)
    hand.drain()
    hand.close()
    assert job.status() == "succeeded"
    said = job.progress()
    assert said is not None
    assert said.note == "a\ufffdb"


def test_a_run_that_has_lost_its_job_says_nothing_more(app: App, dsn: str, conn: psycopg.Connection[Any]) -> None:
    @app.step(name="step")
    def step() -> None: ...

    job = step.enqueue()
    hand = Hand(app, dsn)
    [held] = hand.claim()
    assert run(conn, protocol.write_stream(job.id, held.token, "s", ['"1"']))
    run(conn, protocol.report([(job.id, held.token, 0.5, None)]))
    hand.settle(hand.run(held))  # type: ignore[arg-type]
    assert not run(conn, protocol.write_stream(job.id, held.token, "s", ['"2"']))
    run(conn, protocol.report([(job.id, held.token, 0.9, "zombie")]))
    hand.close()
    assert list(job.stream("s")) == ["1"]
    said = job.progress()
    assert said is not None
    assert (said.fraction, said.note) == (0.5, None)


def test_a_reader_misses_nothing_that_is_committed_late(app: App, direct_dsn: str, conn: psycopg.Connection[Any]) -> None:
    """Two transactions write to one stream: the second waits for the first, so positions become visible in order."""

    @app.step(name="step")
    def step() -> None: ...

    job = step.enqueue()
    with psycopg.connect(direct_dsn) as one, psycopg.connect(direct_dsn, autocommit=True) as two:
        run(one, protocol.write_stream(job.id, None, "s", ["1", "2"]))
        thread = threading.Thread(target=run, args=(two, protocol.write_stream(job.id, None, "s", ["3"])))
        thread.start()
        wait_for(
            lambda: conn.execute("SELECT cardinality(pg_blocking_pids(%s)) > 0", (two.info.backend_pid,)).fetchone() == (True,)
        )
        assert list(job.stream("s", follow=False)) == []
        one.commit()
        thread.join(20)
    assert list(job.stream("s", follow=False)) == [1, 2, 3]


def test_what_cannot_be_said(app: App, dsn: str, conn: psycopg.Connection[Any]) -> None:
    with pytest.raises(OutsideJob):
        stream.write(1)
    with pytest.raises(OutsideJob):
        current().progress(0.5)
    run(conn, app.registration())
    with pytest.raises(UnknownJob):
        app.job("00000000-0000-0000-0000-000000000001").progress()
    with pytest.raises(UnknownJob):
        list(app.job("00000000-0000-0000-0000-000000000001").stream())

    @app.step(name="step")
    def step() -> list[str]:
        caught = []
        for wrong in (1.5, -0.1, float("nan")):
            try:
                current().progress(wrong)
            except ValueError as error:
                caught.append(str(error))
        try:
            stream.write(object())
        except BadValue as error:
            caught.append(str(error))
        try:
            stream.write("x" * 1_048_575)  # and two quotes
        except ValueTooLarge as error:
            caught.append(str(error))
        try:
            stream.write(1, name="")
        except BadValue as error:
            caught.append(str(error))
        return caught

    job = step.enqueue()
    drain(app, dsn)
    assert len(job.result(timeout=5)) == 6


def test_pruning_takes_all_of_it(app: App, dsn: str, conn: psycopg.Connection[Any]) -> None:
    @app.step(name="step")
    def step() -> None:
        current().progress(0.5)
        stream.write(1)

    step.enqueue()
    drain(app, dsn)
    run(conn, protocol.prune(["succeeded"], 0.0, 10))
    for table in ("progress", "stream", "stream_end"):
        assert conn.execute(f"SELECT count(*) FROM pgqueue.{table}").fetchone() == (0,), table
