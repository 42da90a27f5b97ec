"""What has ended goes when its time is over: by outcome and queue, in small steps, by one host at a time, in nobody's way."""

from __future__ import annotations

import json
import math
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner

from pgqueue import protocol
from pgqueue.cli.commands import cli
from pgqueue.database import connect, run
from pgqueue.errors import BadValue, UnknownQueue
from tests.support import Workers, states, violations, wait_for

Conn = psycopg.Connection[Any]


def ended(conn: Conn, status: str, days: float, amount: int = 1, queue: str = "default", parent: str | None = None) -> list[str]:
    """Jobs that ended so long ago, all at the same moment, with a checkpoint and an attempt each."""
    rows = conn.execute(
        "WITH made AS (INSERT INTO pgqueue.job (id, name, queue, priority, input, parent, parent_seq, ordinal, created_at)"
        " SELECT gen_random_uuid(), 'x', %s, 5, '{}', %s, 1, n, clock_timestamp() FROM generate_series(1, %s) n RETURNING id),"
        " c AS (INSERT INTO pgqueue.checkpoint SELECT id, 1, 's', '1', NULL, 1, '5', clock_timestamp() FROM made),"
        " a AS (INSERT INTO pgqueue.attempt (job_id, kind, checkpoints, ended_at)"
        " SELECT id, 'error', 0, clock_timestamp() FROM made),"
        " o AS (INSERT INTO pgqueue.outcome (job_id, status, finished_at)"
        " SELECT id, %s, date_trunc('minute', clock_timestamp()) - make_interval(secs => %s) FROM made)"
        " SELECT id::text FROM made",
        (queue, parent, amount, status, days * 86400),
    ).fetchall()
    return [row[0] for row in rows]


def left(conn: Conn, jobs: list[str]) -> int:
    """How many of them are there, with all their facts."""
    found = conn.execute(
        "SELECT (SELECT count(*) FROM pgqueue.job WHERE id = ANY (%(ids)s)),"
        " (SELECT count(*) FROM pgqueue.outcome WHERE job_id = ANY (%(ids)s)),"
        " (SELECT count(*) FROM pgqueue.checkpoint WHERE job_id = ANY (%(ids)s)),"
        " (SELECT count(*) FROM pgqueue.attempt WHERE job_id = ANY (%(ids)s))",
        {"ids": jobs},
    ).fetchone()
    assert found is not None
    assert len(set(found)) == 1, found
    return int(found[0])


def walk(conn: Conn, amount: int = 100) -> int:
    """To the end, as the housekeepers do. How many steps it took."""
    conn.execute("UPDATE pgqueue.prune_walk SET look_at = '-infinity'")
    steps = 0
    while run(conn, protocol.prune_due(amount))[1] < 1:
        steps += 1
        assert steps < 1000
    return steps


def test_each_outcome_has_its_time(conn: Conn) -> None:
    kept = [*ended(conn, "succeeded", 6), *ended(conn, "failed", 29), *ended(conn, "cancelled", 6)]
    gone = [*ended(conn, "succeeded", 8, 250), *ended(conn, "failed", 31), *ended(conn, "cancelled", 8)]
    conn.execute("SELECT pgqueue.enqueue_workflow('x', queue => 'default')")
    walk(conn)
    assert (left(conn, kept), left(conn, gone)) == (3, 0)
    assert states(conn)["ready"] == 1
    run(conn, protocol.retain("", "failed", math.inf))
    run(conn, protocol.retain("", "succeeded", 60))
    walk(conn)
    assert left(conn, kept) == 2
    assert violations(conn) == []


def test_a_queue_may_keep_longer_or_shorter(conn: Conn) -> None:
    conn.execute(
        "INSERT INTO pgqueue.queue (name, created_at) VALUES ('payments', clock_timestamp()), ('ticks', clock_timestamp())"
    )
    run(conn, protocol.retain("payments", "succeeded", math.inf))
    run(conn, protocol.retain("ticks", "succeeded", 3600))
    long, short = ended(conn, "succeeded", 400, 3, "payments"), ended(conn, "succeeded", 0.1, 3, "ticks")
    usual = ended(conn, "succeeded", 1, 3)
    walk(conn)
    assert (left(conn, long), left(conn, short), left(conn, usual)) == (3, 0, 3)
    run(conn, protocol.retain("payments", "succeeded", None))
    walk(conn)
    assert left(conn, long) == 0


def test_a_retention_that_changes_counts_from_the_oldest(conn: Conn) -> None:
    """Wherever the walk was: it does not go on from there, and come to the others an hour later."""
    old = [job for days in (12, 11, 10, 9) for job in ended(conn, "succeeded", days, 8)]
    run(conn, protocol.retain("", "succeeded", math.inf))
    conn.execute("UPDATE pgqueue.prune_walk SET look_at = 'infinity' WHERE what <> 'jobs'")
    run(conn, protocol.prune_due(10))
    run(conn, protocol.retain("", "succeeded", 60))
    for _ in range(30):
        run(conn, protocol.prune_due(10))
    assert left(conn, old) == 0


def test_children_of_living_parents_stay_until_the_walk_after(conn: Conn) -> None:
    """Also those of one that has failed, as long as it may be requeued."""
    parent = str(conn.execute("SELECT pgqueue.enqueue_workflow('p', queue => 'default')").fetchone()[0])  # type: ignore[index]
    children = ended(conn, "succeeded", 90, 20, parent=parent)
    [failed] = ended(conn, "failed", 20, 1)
    its = ended(conn, "succeeded", 21, 20, parent=failed)
    walk(conn)
    assert (left(conn, children), left(conn, its)) == (20, 20)
    conn.execute("UPDATE pgqueue.outcome SET finished_at = finished_at - interval '20 days' WHERE job_id = %s", (failed,))
    walk(conn)
    walk(conn)
    assert (left(conn, [failed]), left(conn, its)) == (0, 0)
    conn.execute("WITH r AS (DELETE FROM pgqueue.ready RETURNING job_id) INSERT INTO pgqueue.outcome"
                 " (job_id, status, finished_at) SELECT job_id, 'succeeded', clock_timestamp() FROM r")  # fmt: skip
    walk(conn)
    assert left(conn, children) == 0
    assert states(conn) == {"succeeded": 1}, f"{parent} is young"


def test_a_family_that_is_pruned_by_hand_goes_from_the_top_to_the_bottom(conn: Conn) -> None:
    """In one call, as far as it may: whoever calls again while it is full comes to the end of them all."""
    [top] = ended(conn, "failed", 40, 1)
    [middle] = ended(conn, "failed", 41, 1, parent=top)
    below = ended(conn, "succeeded", 42, 20, parent=middle)
    assert [run(conn, protocol.prune(["failed", "succeeded"], 1, 10)) for _ in range(4)] == [10, 10, 2, 0]
    assert left(conn, [top, middle, *below]) == 0


def test_steps_are_small_however_much_is_kept(conn: Conn) -> None:
    """Many that stay, all of one moment, in front of what goes: no step looks at more than it was told to."""
    conn.execute("INSERT INTO pgqueue.queue (name, created_at) VALUES ('payments', clock_timestamp())")
    run(conn, protocol.retain("payments", "succeeded", math.inf))
    kept = ended(conn, "succeeded", 400, 1000, "payments") + ended(conn, "succeeded", 300, 1000, "payments")
    gone = ended(conn, "succeeded", 200, 1000)
    assert 10 <= walk(conn, 100) < 30
    assert (left(conn, kept), left(conn, gone)) == (2000, 0)


def test_one_host_at_a_time_and_nobody_waits(conn: Conn, dsn: str) -> None:
    gone = ended(conn, "succeeded", 8, 300)
    with connect(dsn, "tests") as one, connect(dsn, "tests") as other:
        other.execute("SET statement_timeout = '10s'")
        with one.transaction():
            assert run(one, protocol.prune_due(100)) == (100, 0)
            for _ in range(4):  # the other walks of the row are for whoever comes; this one is taken
                pruned, next_look = run(other, protocol.prune_due(100))
                assert pruned == 0
            assert next_look >= 1
        assert run(other, protocol.prune_due(100)) == (100, 0)
    walk(conn)
    assert left(conn, gone) == 0


def test_what_somebody_has_in_hand_stays_and_nobody_waits_for_it(conn: Conn, dsn: str) -> None:
    gone = ended(conn, "failed", 40, 3)
    with psycopg.connect(dsn) as busy, connect(dsn, "tests") as housekeeper:
        housekeeper.execute("SET statement_timeout = '10s'")
        busy.execute("SELECT pgqueue.send_message(%s, 't', '1')", (gone[0],))  # an application in the middle of a transaction
        busy.execute("SELECT pgqueue.requeue(ARRAY[%s::uuid])", (gone[1],))
        walk(housekeeper)
        assert left(conn, gone[2:]) == 0
        busy.commit()
    walk(conn)
    assert left(conn, gone[:1]) == 0
    assert states(conn) == {"ready": 1}
    assert violations(conn) == []


def test_housekeepers_do_it_by_themselves(conn: Conn, workers: Workers) -> None:
    conn.execute("INSERT INTO pgqueue.event (key, value, sent_at) VALUES ('old', '1', clock_timestamp() - interval '31 days'),"
                 " ('new', '1', clock_timestamp())")  # fmt: skip
    gone, kept = ended(conn, "succeeded", 8, 2500), ended(conn, "succeeded", 6, 10)
    works = [workers.start("tests.apps.bank:app", "-w", "1") for _ in range(2)]
    wait_for(lambda: left(conn, gone) == 0, what="the old jobs to go")
    wait_for(lambda: conn.execute("SELECT key FROM pgqueue.event").fetchall() == [("new",)], what="the old event to go")
    assert left(conn, kept) == 10
    assert all(work.process.poll() is None for work in works)


def test_the_command(conn: Conn, direct_dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGQUEUE_DSN", direct_dsn)

    def said(*arguments: str) -> str:
        result = CliRunner().invoke(cli, ["retention", *arguments], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    assert [line.split() for line in said().splitlines()] == [
        ["queue", "succeeded", "failed", "cancelled", "events", "ticks"],
        ["(all)", "7d", "30d", "7d", "30d", "30d"],
    ]
    said("--failed", "90d", "--events", "forever")
    said("-q", "default", "--succeeded", "1h")
    assert json.loads(said("--json")) == [
        {"queue": None, "cancelled": 604800, "events": "forever", "failed": 7776000, "succeeded": 604800, "ticks": 2592000},
        {"queue": "default", "succeeded": 3600},
    ]
    said("-q", "default", "--succeeded", "default")
    assert len(json.loads(said("--json"))) == 1
    for wrong, error in (
        (("-q", "nowhere", "--failed", "1d"), UnknownQueue),
        (("-q", "default", "--events", "1d"), BadValue),
        (("--failed", "default"), BadValue),
    ):
        result = CliRunner().invoke(cli, ["retention", *wrong])
        assert isinstance(result.exception, psycopg.Error), result
        assert error.__name__
