"""Isolation levels: conflicts between transactions are run again and nobody's failure, and pgqueue itself is never the cause."""

from __future__ import annotations

import os
import random
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from chaos.controller import Controller
from chaos.oracles import all_wrong, claim_history
from chaos.waiting import wait_for
from chaos.workloads import bank
from tests.support import Hand

ACCOUNTS = 5
WORKERS = 8
TRANSFERS = 60


@pytest.fixture
def chaos(dsn: str, tmp_path: Path) -> Iterator[Controller]:
    with Controller(dsn, tmp_path, "chaos.workloads.bank:app", {"BANK_FILE": str(tmp_path / "outside.txt")}) as chaos:
        bank.install(chaos.conn)
        claim_history.install(chaos.conn)
        yield chaos


def wait_for_the_end(chaos: Controller) -> None:
    active = "SELECT 1 FROM pgqueue.job_values WHERE status = 'active' LIMIT 1"
    wait_for(lambda: not chaos.query(active), chaos.story, seconds=120)


@pytest.mark.parametrize("isolation", ["read committed", "repeatable read", "serializable"])
def test_conflicts_count_as_nothing(chaos: Controller, tmp_path: Path, isolation: str) -> None:
    """Eight workers on five accounts, locked in any order: deadlocks, and serialization failures at the higher levels."""
    conn = chaos.conn
    conn.execute(f"ALTER DATABASE {conn.info.dbname} SET deadlock_timeout = '20ms'")  # type: ignore[call-overload]
    pick = random.Random(2026)
    pairs = [pick.sample(range(1, ACCOUNTS + 1), 2) for _ in range(TRANSFERS)]
    bank.app.enqueue_many([bank.transfer.call(source, target, 5, isolation) for source, target in pairs], conn=conn)
    host = chaos.start("-w", str(WORKERS))
    wait_for_the_end(chaos)
    assert host.drain() == 0, chaos.story()
    assert all_wrong(conn, tmp_path, faults=0) == [], chaos.story()
    assert chaos.query("SELECT state, count(*) FROM pgqueue.jobs GROUP BY 1") == [("succeeded", TRANSFERS)]
    assert chaos.query("SELECT kind FROM pgqueue.attempts") == []
    bodies = Counter(line.split()[1] for line in (tmp_path / "outside.txt").read_text().splitlines() if line.startswith("body"))
    assert len(bodies) == 2 * TRANSFERS
    assert sum(bodies.values()) > len(bodies), "nothing was ever in anybody's way: this test has tested nothing"


def test_serializable_producers_beside_busy_workers(chaos: Controller, tmp_path: Path, dsn: str) -> None:
    """Nothing that workers do to pgqueue's tables makes a producer's transaction fail, nor do other producers."""
    host = chaos.start("-w", "2")
    failures: list[str] = []

    def produce(first: int) -> None:
        with psycopg.connect(dsn) as conn:
            conn.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
            for number in range(first, first + 100):
                try:
                    with conn.transaction():
                        conn.execute("INSERT INTO purchase VALUES (%s)", (number,))
                        bank.order.using(conn).enqueue(number)
                except psycopg.errors.SerializationFailure as error:
                    failures.append(str(error))

    producers = [threading.Thread(target=produce, args=(1000 * i,)) for i in range(4)]
    for producer in producers:
        producer.start()
    for producer in producers:
        producer.join()
    wait_for_the_end(chaos)
    assert host.drain() == 0, chaos.story()
    assert failures == []
    assert chaos.query("SELECT count(*) FROM effect") == [(400,)]
    assert chaos.query("SELECT kind FROM pgqueue.attempts") == []


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_a_database_with_another_default(chaos: Controller, dsn: str, monkeypatch: pytest.MonkeyPatch, level: str) -> None:
    """What an application sets for its database or role is for its own transactions. Verbs bring their own level."""
    conn = chaos.conn
    conn.execute(f"ALTER DATABASE {conn.info.dbname} SET default_transaction_isolation = '{level}'")  # type: ignore[call-overload]
    monkeypatch.setenv("BANK_FILE", os.devnull)
    bank.enqueue(conn, 1, 1, 1)
    hand = Hand(bank.app, dsn)
    try:
        hand.drain()
    finally:
        hand.close()
    assert chaos.query("SELECT DISTINCT state FROM pgqueue.jobs") == [("succeeded",)]
