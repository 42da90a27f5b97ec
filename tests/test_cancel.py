"""Ending jobs early: before they begin, between two steps, while they wait, and at once."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgqueue import ResultTimeout
from pgqueue.database import run
from tests.apps import aio, bank
from tests.support import Workers, states, violations, wait_for


@pytest.fixture(autouse=True)
def operator(bank_db: psycopg.Connection[Any], dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who cancels has the rights of a worker."""
    monkeypatch.setenv("PGQUEUE_DSN", dsn)


def test_whether_it_took_effect(bank_db: psycopg.Connection[Any], workers: Workers, bank_file: Path) -> None:
    """Asked before it begins, between two of its steps, while it waits, in its last step, and when all is over."""
    before = bank.noop.options(delay="1h").enqueue()
    between, last, over = bank.slow.enqueue(1.5), bank.nap.enqueue(1.5), bank.noop.enqueue()
    waiting = bank.takes_for_ever.options(timeout="1h").enqueue("waits")
    with pytest.raises(ResultTimeout, match="goes on"):
        before.cancel(timeout=0.01)  # nobody is there to do it
    workers.start("tests.apps.bank:app", "-w", "4")
    wait_for(lambda: (between.status(), last.status(), waiting.status()) == ("running", "running", "waiting"))
    assert waiting.cancel(timeout=60)
    assert before.cancel(timeout=60) or before.status() == "cancelled"
    assert between.cancel(timeout=60)
    assert not last.cancel(timeout=60), "it was in its last step, and has succeeded"
    assert not over.cancel(timeout=60)
    assert {job.status() for job in (before, between, waiting)} == {"cancelled"}
    assert (last.status(), over.status()) == ("succeeded", "succeeded")
    assert violations(bank_db) == []


def test_at_once(bank_db: psycopg.Connection[Any], workers: Workers, bank_file: Path) -> None:
    """Its worker is killed, with the transaction that it is in; the neighbours are given back, and nobody is charged."""
    stuck = [bank.nap.enqueue(600.0), bank.slow_credit.enqueue(1, 5, 600.0)]
    workers.start("tests.apps.bank:app", "-w", "2")
    wait_for(lambda: [job.status() for job in stuck] == ["running"] * 2)
    fine = bank.app.enqueue_many([bank.noop.call()] * 20)
    assert [job.cancel() for job in stuck] == [True, True], "which is not enough"
    assert [job.cancel(hard=True, timeout=60) for job in stuck] == [True, True]
    wait_for(lambda: states(bank_db) == {"cancelled": 2, "succeeded": 20})
    assert [job.attempts() for job in (*stuck, *fine)] == [[]] * 22
    assert bank_db.execute("SELECT max(balance) FROM account").fetchone() == (0,)
    assert violations(bank_db) == []


def test_at_once_with_its_children(bank_db: psycopg.Connection[Any], workers: Workers, bank_file: Path) -> None:
    parent = bank.family.enqueue()
    workers.start("tests.apps.bank:app", "-w", "2")
    wait_for(lambda: states(bank_db) == {"waiting": 1, "running": 2})
    assert parent.cancel(hard=True, timeout=60)
    wait_for(lambda: states(bank_db) == {"cancelled": 3})
    assert violations(bank_db) == []


def test_async_at_once(bank_db: psycopg.Connection[Any], workers: Workers, bank_file: Path) -> None:
    run(bank_db, aio.app.registration())

    async def body() -> None:
        stuck, neighbour = await aio.wait.aenqueue(600.0), await aio.wait.aenqueue(3.0)
        workers.start("tests.apps.aio:app", "-w", "1")
        while [await stuck.status(), await neighbour.status()] != ["running"] * 2:
            await asyncio.sleep(0.01)
        assert await stuck.cancel(hard=True, timeout=60)
        assert (await neighbour.result(timeout=60)).startswith("tenant")
        assert await neighbour.attempts() == []
        await aio.app.aclose()

    asyncio.run(body())
    assert violations(bank_db) == []
