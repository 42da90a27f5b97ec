"""Several queues per worker: shares by weights, strict order, and nobody idle while there is work."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import psycopg
import pytest

from pgqueue import protocol
from pgqueue.config import levels
from pgqueue.database import run
from pgqueue.worker.turns import Turns
from tests.apps import shares
from tests.support import Workers


def simulate(turns: Turns, backlog: dict[str, int], rounds: int, amount: int = 1) -> Counter[str]:
    """What so many claims bring, where each queue has so many jobs."""
    taken: Counter[str] = Counter()
    for _ in range(rounds):
        order, found = turns.next(list(backlog)), []
        for queue in order:
            found += [queue] * min(amount - len(found), backlog[queue])
        turns.learn(order, found, amount)
        for queue in found:
            backlog[queue] -= 1
        taken.update(found)
    return taken


def test_shares() -> None:
    turns = Turns([{"critical": 5, "default": 2, "low": 1}])
    taken = simulate(turns, dict.fromkeys(("critical", "default", "low"), 10_000), 800)
    assert all(abs(taken[queue] - expected) <= 2 for queue, expected in (("critical", 500), ("default", 200), ("low", 100))), (
        taken
    )
    taken = simulate(Turns([{"a": 3, "b": 1}]), {"a": 100_000, "b": 100_000}, 400, amount=50)
    assert abs(taken["a"] - 15_000) <= 100


def test_no_claim_is_empty_while_there_is_work() -> None:
    turns = Turns([{"critical": 5, "low": 1}])
    assert simulate(turns, {"critical": 0, "low": 100}, 100) == {"low": 100}
    taken = simulate(turns, {"critical": 100, "low": 100}, 60)
    assert abs(taken["critical"] - 50) <= 2, "what it did not use before it does not get now"


def test_levels_are_strict() -> None:
    turns = Turns(levels("critical>default=3,low"))
    backlog = {"critical": 50, "default": 1000, "low": 1000}
    assert simulate(turns, backlog, 50) == {"critical": 50}
    assert abs(simulate(turns, backlog, 100)["default"] - 75) <= 2
    backlog["critical"] += 5
    assert simulate(turns, backlog, 5) == {"critical": 5}
    assert [turns.next(["low", "critical"]) for _ in range(3)] == [["critical", "low"]] * 3, "some may have no room"


def test_what_can_be_said() -> None:
    assert levels("") == []
    assert levels("a, b=2") == [{"a": 1, "b": 2}]
    assert levels("a > b=3,c > d") == [{"a": 1}, {"b": 3, "c": 1}, {"d": 1}]
    for wrong in ("a,a", "a>a", "a=0", "a=x", "a=", "a>", ">a", "a=1001", "a=-1"):
        with pytest.raises(ValueError, match=r"once|weight"):
            levels(wrong)


@pytest.mark.parametrize(("how", "expected"), [("critical=5,default=2,low", (40, 16, 8)), ("low>default>critical", (0, 4, 60))])
def test_a_worker_shares_itself(
    workers: Workers, conn: psycopg.Connection[Any], how: str, expected: tuple[int, int, int]
) -> None:
    """From the history: of the first 64 jobs that ended, so many were of each queue."""
    run(conn, shares.app.registration())
    for function in (shares.critical, shares.usual, shares.low):
        jobs = [{"name": function.name, "input": {"n": n}} for n in range(60)]
        run(conn, protocol.enqueue_workflows(json.dumps(jobs)))
    workers.burst("tests.apps.shares:app", "-w", "1", "-q", how)
    rows = conn.execute(
        "SELECT queue, count(*) FROM (SELECT j.queue FROM pgqueue.outcome o JOIN pgqueue.job j ON j.id = o.job_id"
        " ORDER BY o.finished_at LIMIT 64) first GROUP BY 1"
    ).fetchall()
    got = dict(rows)
    for queue, share in zip(("critical", "default", "low"), expected, strict=True):
        assert abs(got.get(queue, 0) - share) <= 8, got
