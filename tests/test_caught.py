"""What only a wrong pgqueue does, and no other test would notice: see chaos/mutations.py."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from chaos.oracles import claim_history
from pgqueue import App, protocol
from pgqueue.database import run
from pgqueue.housekeeper import recovery
from pgqueue.ids import digest
from pgqueue.model import Settlement
from pgqueue.slots import Slot, Slots
from tests.apps import bank
from tests.support import ROOT, Hand, Workers


@pytest.fixture
def at_work(bank_db: psycopg.Connection[Any], dsn: str) -> Iterator[tuple[Hand, Slot]]:
    """A worker by hand, and the memory that it shares with its housekeeper."""
    hand, slot = Hand(bank.app, dsn), Slots(1)[0]
    slot.assign(hand.id)
    slot.set_registered()
    yield hand, slot
    hand.close()


@pytest.mark.parametrize("how", ["restarted", "taken away"])
def test_no_token_comes_twice(dsn: str, conn: psycopg.Connection[Any], how: str) -> None:
    """Whatever a crash takes back, and also where a job is claimed again that has not failed."""
    if how == "restarted":
        code = "from pgqueue.ids import new_token; print(*[new_token() for _ in range(100)])"
        said = [
            subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True) for _ in range(2)
        ]
        tokens = [token for process in said for token in process.stdout.split()]
    else:
        app = App(dsn)
        app.step(name="nothing")(lambda: None).enqueue()
        hand = Hand(app, dsn)
        tokens = []
        for _ in range(3):
            [job] = hand.claim()
            tokens.append(str(job.token))
            assert hand.settle(Settlement(job, "release")) == {}
        hand.close()
        app.close()
    again = [token for token, times in Counter(tokens).items() if times > 1]
    assert again == [], f"{len(again)} tokens came twice"


def test_a_job_whose_checkpoint_is_gone_is_not_settled(dsn: str, conn: psycopg.Connection[Any]) -> None:
    """A failover has lost the last step that its run saw acknowledged, and with it the effect. The claim is still there."""
    app = App(dsn)
    job = app.step(name="nothing")(lambda: None).enqueue()
    hand = Hand(app, dsn)
    [claimed] = hand.claim()
    assert run(hand.conn, protocol.store(job.id, claimed.token, 0, 1, "step", "1", None)) == "stored"
    conn.execute("DELETE FROM pgqueue.checkpoint")
    answers = hand.settle(Settlement(claimed, "succeeded", "1", 1))
    assert answers == {job.id: "lost"}, "settled without the effect of its last step"
    assert job.status() == "running"
    hand.close()
    app.close()


def test_a_claim_that_its_worker_does_not_know_is_given_back(
    bank_db: psycopg.Connection[Any], at_work: tuple[Hand, Slot]
) -> None:
    """The reply was lost."""
    hand, slot = at_work
    job = bank.noop.enqueue()
    hand.claim()
    recovery.release_unknown(bank_db, [slot])
    assert job.status() == "ready", "nobody runs it, and nobody gives it back"


def test_a_claim_that_arrives_between_the_two_looks_is_kept(
    bank_db: psycopg.Connection[Any], at_work: tuple[Hand, Slot], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The housekeeper stands still between the table and the memory, and meanwhile the worker claims."""
    hand, slot = at_work
    job = bank.noop.enqueue()

    def claim_meanwhile(name: str) -> None:
        for place, claimed in enumerate(hand.claim()):
            slot.hold(place, digest(claimed.id, claimed.token))

    monkeypatch.setattr(recovery, "failpoint", claim_meanwhile)
    recovery.release_unknown(bank_db, [slot])
    assert job.status() == "running", "a live job was taken away from its worker"


def test_settle_and_claim_never_share_a_transaction(bank_db: psycopg.Connection[Any], workers: Workers, tmp_path: Path) -> None:
    """They share a message. In one transaction, the asynchronous commit of the claim would cover the results."""
    claim_history.install(bank_db)
    bank.app.enqueue_many([bank.noop.call() for _ in range(300)])
    workers.burst("tests.apps.bank:app", "-w", "1")
    both = bank_db.execute("""
        SELECT xid FROM claim_history GROUP BY xid
        HAVING bool_or(event LIKE '%claimed') AND bool_or(event LIKE '%ended the job')""").fetchall()
    assert both == [], "one transaction settled and claimed"


def test_time_goes_on_inside_a_transaction(conn: psycopg.Connection[Any]) -> None:
    """now() is when the transaction began: what a user's long transaction enqueues or stores would be dated back."""
    with conn.transaction():
        first = run(conn, protocol.now())
        conn.execute("SELECT pg_sleep(0.01)")
        assert run(conn, protocol.now()) > first, "the clock stood still"
