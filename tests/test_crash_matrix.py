"""``crash_matrix``: a user's workflow is killed at each boundary. Bugs are found, and only bugs; the picture explains them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgqueue import App, Job, Retry, current, gather, sleep, wait_event
from pgqueue.functions import Function
from pgqueue.testing import databases
from pgqueue.testing.boundaries import PLACES
from pgqueue.testing.fixture import PgQueueFixture

app = App()


def outside(line: str) -> None:
    """An effect that no transaction holds."""
    with open(os.environ["OUTSIDE"], "a") as file:
        file.write(line + "\n")


@app.transaction(name="credit")
def credit(tx: psycopg.Connection[Any], amount: int) -> int:
    tx.execute("INSERT INTO credit VALUES (%s)", (amount,))
    return amount


@app.transaction(name="credit_async")
async def credit_async(tx: psycopg.AsyncConnection[Any], amount: int) -> int:
    await tx.execute("INSERT INTO credit VALUES (%s)", (amount,))
    return amount


@app.transaction(name="refuses", retry=Retry(1))
def refuses(tx: psycopg.Connection[Any], amount: int) -> None:
    tx.execute("INSERT INTO credit VALUES (%s)", (amount,))
    raise ValueError("no")


@app.transaction(name="careless")
def careless(tx: psycopg.Connection[Any], amount: int) -> None:
    tx.execute("INSERT INTO credit VALUES (%s)", (amount,))
    outside("asked the bank")


@app.step(name="tell")
async def tell(what: str) -> str:
    outside(current().step_key.partition(":")[2])
    return f"told {what}"


@app.workflow(name="pays")
def pays(amount: int) -> None:
    careless(amount)


@app.workflow(name="child")
def child(amount: int) -> int:
    return credit(amount)


@app.workflow(name="everything")
async def everything() -> list[Any]:
    """Both colours, steps at once, a child, a wait for a time and one for an event."""
    await sleep.aio("3d")
    got: list[Any] = await gather.aio(tell.call("a"), child.call(1))
    return [*got, await wait_event.aio("packed")]


@app.workflow(name="waits")
def waits() -> None:
    wait_event("nobody sends it")


@app.workflow(name="says")
def says(what: str) -> str:
    outside("body")
    return what


@pytest.fixture(scope="module")
def quick_server() -> Iterator[str]:
    with databases.server(os.environ.get("PGQUEUE_TEST_DSN")) as dsn:
        yield dsn


@pytest.fixture(scope="module")
def quick_template(quick_server: str) -> Iterator[str]:
    with databases.template(quick_server) as dsn:
        with psycopg.connect(dsn) as conn:
            conn.execute("CREATE TABLE credit (amount int)")  # nothing unique: doubles must show
        yield dsn


@pytest.fixture
def fixture(quick_server: str, quick_template: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PgQueueFixture]:
    monkeypatch.setenv("OUTSIDE", str(tmp_path / "outside"))
    with databases.copied(quick_server, quick_template) as dsn, PgQueueFixture(app, dsn, quick_server) as fixture:
        yield fixture


def lines() -> list[str]:
    path = Path(os.environ["OUTSIDE"])
    return path.read_text().splitlines() if path.exists() else []


def forget() -> None:
    Path(os.environ["OUTSIDE"]).unlink(missing_ok=True)


def test_an_effect_outside_of_the_transaction_is_found_and_explained(fixture: PgQueueFixture) -> None:
    def check(job: Job[Any]) -> None:
        assert job.result() is None
        assert fixture.connect().execute("SELECT amount FROM credit").fetchall() == [(7,)], "credited once"
        assert lines() == ["asked the bank"], "asked once"

    with pytest.raises(AssertionError) as error:
        fixture.crash_matrix(pays, 7, check=check, setup=forget)
    picture = str(error.value).splitlines()
    assert picture[0] == "pays(7): killed at each of 9 boundaries, and resumed. 2 broke the check."
    step = picture.index("  pays, step 1: careless (transaction)")
    assert [line[:50].rstrip() for line in picture[step + 1 : step + 8] if not line.startswith("      " * 2)] == [
        "      ok     before its code",
        "-->   BROKE  after its code, before COMMIT",
        "-->   BROKE  inside COMMIT",
        "      ok     after COMMIT, before the answer",
        "      ok     after it",
    ]
    explained = picture[picture.index("Killed in pays, step 1: careless (transaction), after its code, before COMMIT:") :]
    assert "asked once" in explained[2]
    assert "test_crash_matrix.py" in explained[1]
    assert "careless was rolled back, and its code ran again." in explained[4]


@pytest.mark.parametrize("job", [credit, credit_async], ids=["def", "async def"])
def test_a_job_that_is_one_transaction(fixture: PgQueueFixture, job: Function[Any, Any]) -> None:
    """Its COMMIT is its end: none comes when it leaves its worker."""

    def check(job: Job[Any]) -> None:
        assert job.result() == 7
        assert fixture.connect().execute("SELECT amount FROM credit").fetchall() == [(7,)], "once"

    found = fixture.crash_matrix(job, 7, check=check)
    assert found.broken == 0
    assert [boundary.words for boundary, _ in found.boundaries] == [
        "before its first line",
        "before its code",
        "after its code, before COMMIT",
        "inside COMMIT",
        "after COMMIT, before the answer",
        "after it",
    ]


def test_one_transaction_that_fails(fixture: PgQueueFixture) -> None:
    """It is rolled back, and the COMMIT of its failure comes when it leaves its worker."""

    def check(job: Job[Any]) -> None:
        assert job.status() == "failed"
        assert fixture.connect().execute("SELECT amount FROM credit").fetchall() == []

    found = fixture.crash_matrix(refuses, 7, check=check)
    assert [boundary.how for boundary, _ in found.boundaries][-3:] == ["kill", "lost", "durable"]


@pytest.mark.slow
def test_what_is_right_survives_every_kill(fixture: PgQueueFixture) -> None:
    """Both colours, transactions, steps at once, children and waits."""
    before = fixture.connect()
    before.execute("INSERT INTO credit VALUES (0)")
    before.close()

    def check(job: Job[Any]) -> None:
        assert job.result() == ["told a", 1, "yes"]
        credits = fixture.connect().execute("SELECT amount FROM credit ORDER BY 1").fetchall()
        assert credits == [(0,), (1,)], "what the test has written before is there, and no credit twice"
        assert set(lines()) == {"3"}
        assert len(lines()) <= 2, "a kill repeats the step that it hits, once"

    found = fixture.crash_matrix(everything, check=check, setup=forget, meanwhile=lambda job: app.send_event("packed", "yes"))
    assert found.broken == 0
    hit = {boundary.name for boundary, _ in found.boundaries}
    assert hit == set(PLACES) - {"failure.before_recorded", "failure.recorded"}
    assert {boundary.job for boundary, _ in found.boundaries} == {"everything", "child"}
    assert {boundary.how for boundary, _ in found.boundaries} == {"kill", "lost", "durable"}
    assert "The check held each time." in str(found)
    assert fixture.connect().execute("SELECT amount FROM credit").fetchall() == [(0,)], "the test's own database is as it was"


def test_what_the_check_says_without_a_kill_comes_out_as_it_is(fixture: PgQueueFixture) -> None:
    def check(job: Job[Any]) -> None:
        raise LookupError("it is the check that is wrong")

    with pytest.raises(LookupError, match="the check that is wrong"):
        fixture.crash_matrix(says, "hello", check=check)
    with pytest.raises(AssertionError, match="check returned False"):
        fixture.crash_matrix(says, "hello", check=lambda job: job.result() == "goodbye")


def test_the_body_of_a_workflow_runs_again(fixture: PgQueueFixture) -> None:
    """What it does there happens again, also after a COMMIT of which it never heard."""
    with pytest.raises(AssertionError, match=r"(?s)BROKE.*What its body\s+does outside of steps happens each time"):
        fixture.crash_matrix(says, "hello", check=lambda job: lines() == ["body"], setup=forget)


def test_a_wait_that_nothing_ends_is_said(fixture: PgQueueFixture) -> None:
    with pytest.raises(AssertionError, match=r"the job waits \(event nobody sends it\): let crash_matrix\(meanwhile="):
        fixture.crash_matrix(waits, check=lambda job: None)


def test_a_connection_that_is_open_would_see_the_wrong_database(fixture: PgQueueFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    fixture.connect()
    with pytest.raises(RuntimeError, match="a connection to it is open: close it before"):
        fixture.crash_matrix(says, "hello", check=lambda job: None)
