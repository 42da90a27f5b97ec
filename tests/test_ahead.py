"""A job that is one transaction begins in the same round trip in which the last one commits. Nothing may depend on that."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from pgqueue import App, protocol
from pgqueue.colour import blocking
from pgqueue.database import run
from pgqueue.model import ClaimedJob, Settlement
from pgqueue.runtime.run import JobRun
from pgqueue.runtime.session import Begin, Session
from pgqueue.runtime.transact import beginning
from tests.support import Hand, states, violations


@pytest.fixture
def app(dsn: str, conn: psycopg.Connection[Any]) -> Iterator[App]:
    conn.execute("CREATE TABLE mark (what int)")
    conn.execute("CREATE TABLE strict (what int, CONSTRAINT once UNIQUE (what) DEFERRABLE INITIALLY DEFERRED)")
    app = App(dsn)

    @app.transaction(name="mark")
    def mark(tx: psycopg.Connection[Any], what: int) -> None:
        tx.execute("INSERT INTO mark VALUES (%s)", (what,))

    @app.transaction(name="strict")
    def strict(tx: psycopg.Connection[Any], what: int) -> None:
        tx.execute("INSERT INTO strict VALUES (%s)", (what,))

    yield app
    app.close()


@pytest.fixture
def hand(app: App, dsn: str) -> Iterator[Hand]:
    hand = Hand(app, dsn)
    yield hand
    hand.close()


def three(app: App, hand: Hand) -> list[ClaimedJob]:
    app.enqueue_many([app.functions["mark"].call(n) for n in range(3)])
    return hand.claim()


def run_before(hand: Hand, job: ClaimedJob, following: ClaimedJob | None) -> Settlement | None:
    """Run a job, and promise that the other one is next."""

    def upcoming() -> Begin | None:
        return following and beginning(hand.app.functions[following.name], following)

    return blocking(JobRun(hand.app, job, hand.ground, 1 << 20, upcoming).execute())


def only_session(hand: Hand) -> Session:
    assert len(hand.ground.sessions._free) == 1
    return hand.ground.sessions._free[0]


def marks(conn: psycopg.Connection[Any]) -> list[int]:
    return [row[0] for row in conn.execute("SELECT what FROM mark ORDER BY what")]


def transactions(conn: psycopg.Connection[Any]) -> list[str]:
    return [row[0] for row in conn.execute("SELECT state FROM pg_stat_activity WHERE application_name LIKE '%:step:%'")]


def test_the_next_one_begins_with_the_commit(app: App, hand: Hand, conn: psycopg.Connection[Any]) -> None:
    first, second, third = three(app, hand)
    assert run_before(hand, first, second) is None
    assert (marks(conn), transactions(conn)) == ([0], ["idle in transaction"])
    assert run_before(hand, second, third) is None
    assert run_before(hand, third, None) is None
    assert (marks(conn), transactions(conn)) == ([0, 1, 2], ["idle"])
    assert states(conn) == {"succeeded": 3}
    assert violations(conn) == []


def test_another_one_than_promised(app: App, hand: Hand, conn: psycopg.Connection[Any]) -> None:
    first, second, third = three(app, hand)
    run_before(hand, first, second)
    run_before(hand, third, None)
    run_before(hand, second, None)
    assert (marks(conn), states(conn), violations(conn)) == ([0, 1, 2], {"succeeded": 3}, [])


def test_none_after_all(app: App, hand: Hand, conn: psycopg.Connection[Any]) -> None:
    """It is given back: nothing holds it any more."""
    first, second, third = three(app, hand)
    run_before(hand, first, second)
    assert hand.settle(Settlement(second, "release")) == {second.id: "busy"}
    blocking(hand.ground.sessions.abandon())
    assert transactions(conn) == ["idle"]
    assert hand.settle(Settlement(second, "release"), Settlement(third, "release")) == {}
    assert states(conn) == {"succeeded": 1, "ready": 2}
    hand.drain()
    assert (marks(conn), violations(conn)) == ([0, 1, 2], [])


def test_a_verb_in_between(app: App, hand: Hand, conn: psycopg.Connection[Any]) -> None:
    """What other statement comes on that connection is not in the transaction of that job."""
    first, second, third = three(app, hand)
    run_before(hand, first, second)
    assert blocking(hand.ground.sessions.run(protocol.attempts(third.id, None))) == 0
    assert transactions(conn) == ["idle"]
    for job in (second, third):
        run_before(hand, job, None)
    assert (marks(conn), violations(conn)) == ([0, 1, 2], [])


def test_the_claim_of_the_next_one_is_lost(app: App, hand: Hand, conn: psycopg.Connection[Any]) -> None:
    first, second, third = three(app, hand)
    run(conn, protocol.settle([Settlement(second, "release")]))
    run_before(hand, first, second)
    assert run_before(hand, second, third) is None
    assert marks(conn) == [0]
    hand.drain()
    run_before(hand, third, None)
    assert (marks(conn), states(conn), violations(conn)) == ([0, 1, 2], {"succeeded": 3}, [])


def test_a_commit_that_fails_begins_nothing(app: App, hand: Hand, conn: psycopg.Connection[Any]) -> None:
    """A deferred constraint fails in COMMIT: this job fails, and the next one begins by itself."""
    conn.execute("INSERT INTO strict VALUES (7)")
    app.functions["strict"].enqueue(7)
    failing = hand.claim()[0]
    following = three(app, hand)[0]
    settlement = run_before(hand, failing, following)
    assert settlement is not None
    assert settlement.how == "retry"
    assert transactions(conn) == ["idle"]
    run_before(hand, following, None)
    assert marks(conn) == [0]


def test_the_connection_is_lost_between_two(app: App, hand: Hand, conn: psycopg.Connection[Any]) -> None:
    first, second, third = three(app, hand)
    run_before(hand, first, second)
    conn.execute("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name LIKE '%:step:%'")
    run_before(hand, second, third)
    run_before(hand, third, None)
    assert (marks(conn), states(conn), violations(conn)) == ([0, 1, 2], {"succeeded": 3}, [])


def test_the_next_one_cannot_begin(app: App, hand: Hand, conn: psycopg.Connection[Any]) -> None:
    """Its fence is an error of the server: the job before it has committed all the same."""
    first, second, _ = three(app, hand)

    def broken() -> Begin:
        return Begin("read committed", protocol.Call("SELECT 1/%s", (0,), lambda rows: rows))

    assert blocking(JobRun(app, first, hand.ground, 1 << 20, broken).execute()) is None
    assert (marks(conn), transactions(conn)) == ([0], ["idle"])
    run_before(hand, second, None)
    assert marks(conn) == [0, 1]
    assert only_session(hand).status.name == "IDLE"
