"""Limits of queues and keys, and whose turn it is: what a claim gives out, and what it leaves."""

from __future__ import annotations

import asyncio
import json
import statistics
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from pgqueue import App, Queue, Rate, Retry, protocol, sleep
from pgqueue.database import connect, run
from pgqueue.errors import BadValue, UnknownQueue
from pgqueue.ids import Process, new_job_id, new_token
from pgqueue.model import ClaimedJob, Settlement
from tests.support import Hand, states, violations, wait_for
from tests.test_plans import buffers

Make = Callable[..., Hand]


@pytest.fixture
def make(dsn: str, conn: psycopg.Connection[Any]) -> Iterator[Make]:
    """A worker of an App with one limited queue, and a job that does nothing."""
    hands: list[Hand] = []

    def make(**limits: Any) -> Hand:
        app = App(dsn, queues=[Queue("limited", **limits)])

        @app.step(name="job", queue="limited", key="key", retry=Retry(3, backoff=1))
        def job(n: int, key: str = "", who: str = "") -> int:
            return n

        @app.workflow(name="naps", queue="limited", key="key")
        def naps(key: str = "", who: str = "") -> None:
            sleep("1h")

        hands.append(Hand(app, dsn))
        return hands[-1]

    yield make
    for hand in hands:
        hand.close()
        hand.app.close()


def enqueue(hand: Hand, *jobs: Any, **options: Any) -> list[Any]:
    job = hand.app.functions["job"]
    return hand.app.enqueue_many([job.options(**options).call(*args) if options else job.call(*args) for args in jobs])


def claim(hand: Hand, amount: int = 100, at_once: int = 100, backwards: bool = False) -> list[ClaimedJob]:
    call = protocol.claim(hand.id, new_token(), ["limited"], list(hand.app.functions), amount, [0] * 20, backwards, at_once)
    return [job for job, _ in run(hand.conn, call)]


def numbers(jobs: list[ClaimedJob]) -> list[int]:
    return [json.loads(job.input)["n"] for job in jobs]


def wake(conn: psycopg.Connection[Any]) -> None:
    """As a housekeeper does, without its look at all others that wait."""
    run(conn, protocol.wake(1000, "ffffffff-ffff-ffff-ffff-ffffffffffff"))


def done(hand: Hand, *jobs: ClaimedJob) -> None:
    assert hand.settle(*[Settlement(job, "succeeded", "1") for job in jobs]) == {}


# --------------------------------------------------------------------------------------------------- concurrency


def test_no_more_run_at_once_than_may(make: Make, conn: psycopg.Connection[Any]) -> None:
    hand = make(concurrency=3)
    enqueue(hand, *[(n,) for n in range(10)])
    first = claim(hand)
    assert numbers(first) == [0, 1, 2]
    assert claim(hand) == []
    done(hand, first[1])
    assert numbers(claim(hand)) == [3]
    assert claim(hand) == []
    run(conn, protocol.fence_worker(hand.id, None, "died"))
    assert run(conn, protocol.reap(hand.id, [], "crash", None))[0] == 3
    other = Hand(hand.app, hand.dsn)
    assert sorted(numbers(claim(other))) == [0, 2, 3], "what came back is first"
    assert claim(other) == []
    other.close()
    assert violations(conn) == []


def test_a_worker_gets_what_it_can_begin_and_more_only_where_there_is_plenty(make: Make) -> None:
    hand = make(concurrency=40)
    enqueue(hand, *[(n,) for n in range(100)])
    assert len(claim(hand, 100, at_once=1)) == 10
    assert len(claim(hand, 100, at_once=1)) == 7
    for _ in range(100):
        claim(hand, 100, at_once=1)
    assert len(run(hand.conn, protocol.held_claims([hand.id]))) == 40


def test_who_can_begin_nothing_uses_no_limit(make: Make) -> None:
    """Its job would wait behind another one, in the place of one that could run elsewhere."""
    hand = make(concurrency=3)
    enqueue(hand, *[(n,) for n in range(10)])
    assert claim(hand, 100, at_once=0) == []
    assert len(claim(hand, 100, at_once=2)) == 2


def test_limited_queues_in_which_nothing_is_ready_are_in_nobodys_way(make: Make, dsn: str) -> None:
    """Two that serve them too do not wait for each other."""
    hand = make(concurrency=3)
    with connect(dsn, "other") as other, other.transaction():
        lock = "SELECT pg_advisory_xact_lock_shared(pgqueue.queue_lock('limited'))"
        other.execute(lock)
        hand.conn.execute("SET statement_timeout = '5s'")
        assert claim(hand) == []
    enqueue(hand, (1,))
    with connect(dsn, "other") as other, other.transaction():
        other.execute(lock)
        with pytest.raises(psycopg.errors.QueryCanceled):
            claim(hand)


def test_who_leaves_a_queue_with_a_limit_says_so(make: Make, dsn: str) -> None:
    """It has settled its last job and claims no more: nobody would come soon for what it kept from others."""
    hand = make(concurrency=1)
    enqueue(hand, (1,), (2,))
    done(hand, *claim(hand))
    with connect(dsn, "other") as other:
        other.execute("LISTEN pgqueue")
        run(other, protocol.look(["limited"], 60))
        run(other, protocol.fence_worker(hand.id, None, "ended"))
        run(other, protocol.reap(hand.id, [], "crash", None))
        assert list(other.notifies(timeout=10, stop_after=1))


def test_nobody_claims_behind_a_pause(make: Make, dsn: str) -> None:
    """It waits for claims that are under way: from its commit on nothing is claimed."""
    hand = make(concurrency=3)
    enqueue(hand, (1,))
    with connect(dsn, "other") as other:
        other.execute("SET statement_timeout = '1s'")
        with hand.conn.transaction():
            assert claim(hand)
            with pytest.raises(psycopg.errors.QueryCanceled):
                run(other, protocol.pause("limited"))
        run(other, protocol.pause("limited"))
    assert claim(hand) == []


@pytest.mark.parametrize("limits", [{"concurrency": 3}, {}])
def test_a_job_that_was_put_aside_by_strangers_is_for_who_knows_it(make: Make, dsn: str, limits: dict[str, Any]) -> None:
    """In one claim, so that no stranger meets it again before; and who is idle is told."""
    hand = make(**limits)
    enqueue(hand, (1,))
    with connect(dsn, "other") as other:
        other.execute("LISTEN pgqueue")
        assert not run(hand.conn, protocol.claim(hand.id, new_token(), ["limited"], ["other"], 10, [0] * 20))
        assert list(other.notifies(timeout=10, stop_after=1))
    assert numbers(claim(hand)) == [1]


def test_costs_are_summed_up(make: Make) -> None:
    hand = make(concurrency=10)
    enqueue(hand, (1,), cost=4)
    enqueue(hand, (2,), cost=5)
    enqueue(hand, (3,), cost=2)
    enqueue(hand, (4,), cost=1)
    first = claim(hand)
    assert numbers(first) == [1, 2], "the next one in line waits for its room; nobody overtakes it"
    done(hand, first[0])
    assert numbers(claim(hand)) == [3, 4]
    enqueue(hand, (5,), cost=50)
    done(hand, first[1])
    assert claim(hand) == []


def test_a_job_that_costs_more_than_there_is_runs_alone(make: Make) -> None:
    hand = make(concurrency=2)
    enqueue(hand, (1,), cost=5)
    enqueue(hand, (2,))
    [job] = claim(hand)
    assert claim(hand) == []
    done(hand, job)
    assert numbers(claim(hand)) == [2]


def test_a_job_that_waits_holds_nothing(make: Make, conn: psycopg.Connection[Any]) -> None:
    hand = make(concurrency=1, per_key=1)
    for _ in range(3):
        hand.app.functions["naps"].enqueue("k")
    hand.drain(due_now=False)
    assert states(conn) == {"scheduled": 3}


# ----------------------------------------------------------------------------------------------------- per key


def test_jobs_of_a_key_run_one_after_the_other_and_in_order(make: Make, conn: psycopg.Connection[Any]) -> None:
    hand = make(per_key=1)
    enqueue(hand, *[(n, key) for n in range(6) for key in "ab"])
    order: dict[str, list[int]] = {"a": [], "b": []}
    while held := claim(hand):
        assert len(held) == 2, "one of each key"
        enqueue(hand, *[(len(order["a"]) + 100, key) for key in "ab" if len(order["a"]) < 3])
        for job in held:
            order[json.loads(job.input)["key"]].append(json.loads(job.input)["n"])
        assert claim(hand) == []
        done(hand, *held)
    assert order == {key: [0, 1, 2, 3, 4, 5, 100, 101, 102] for key in "ab"}
    assert states(conn) == {"succeeded": 18}
    assert violations(conn) == []


def test_a_busy_key_at_the_head_is_in_nobodys_way(make: Make, conn: psycopg.Connection[Any]) -> None:
    hand = make(per_key=1)
    enqueue(hand, *[(n, "hot") for n in range(5000)])
    enqueue(hand, *[(n, f"key {n}") for n in range(10)])
    got = Counter(json.loads(job.input)["key"] for _ in range(4) for job in claim(hand))
    assert got["hot"] == 1
    assert len(got) == 11
    assert states(conn)["waiting"] == 4999


def test_those_that_come_while_their_key_is_busy_are_never_in_front(make: Make, conn: psycopg.Connection[Any]) -> None:
    """They go straight to where they wait for their turn: no claim meets them, and nobody pays for them but their producer."""
    hand = make(per_key=2)
    enqueue(hand, *[(n, "hot") for n in range(5)])
    assert states(conn) == {"ready": 2, "waiting": 3}
    enqueue(hand, (5, "hot"), (0, "another"))
    enqueue(hand, (6, "hot"))
    assert states(conn) == {"ready": 3, "waiting": 5}
    order: list[int] = []
    while held := claim(hand):
        order += [n for job, n in zip(held, numbers(held), strict=True) if json.loads(job.input)["key"] == "hot"]
        done(hand, *held)
    assert order == [0, 1, 2, 3, 4, 5, 6]
    assert violations(conn) == []


def test_what_is_put_aside_never_overtakes_what_is_ready(make: Make, conn: psycopg.Connection[Any]) -> None:
    """Of one key: whoever looks after those that wait does not know that one which came before them has not begun."""
    hand = make(per_key=1)
    enqueue(hand, *[(n, "k") for n in range(3)])
    order: list[int] = []
    for _ in range(3):
        hand.wake()
        held = claim(hand)
        assert len(held) == 1
        hand.wake()
        order += numbers(held)
        done(hand, *held)
    assert order == [0, 1, 2]
    assert violations(conn) == []


def test_nobody_waits_for_a_turn_that_was_free_before_the_commit(make: Make, dsn: str, conn: psycopg.Connection[Any]) -> None:
    """A producer saw that jobs of this key wait. When he commits, they have all ended."""
    hand = make(per_key=1)
    enqueue(hand, (0, "k"), (1, "k"))
    with connect(dsn, "producer") as slow, slow.transaction():
        hand.app.using(slow).enqueue_many([hand.app.functions["job"].call(2, "k")])
        for n in range(2):
            held = claim(hand)
            assert numbers(held) == [n]
            done(hand, *held)
        hand.wake()
    assert claim(hand) == []
    wake(conn)
    assert numbers(claim(hand)) == [2]


def test_a_limit_that_ends_while_a_job_is_enqueued_loses_nobody(make: Make, dsn: str, conn: psycopg.Connection[Any]) -> None:
    """The producer knew of the limit of keys, waited for another with the same id, and then there is no such limit any more."""
    hand = make(per_key=1)
    job = hand.app.functions["job"].options(id=new_job_id())
    blocked = "SELECT FROM pg_stat_activity WHERE application_name = 'second' AND wait_event_type = 'Lock'"
    with connect(dsn, "first") as first, connect(dsn, "second") as second, ThreadPoolExecutor() as pool:
        first.execute("BEGIN")
        job.using(first).enqueue(7, "k")
        sent = pool.submit(lambda: job.using(second).enqueue(7, "k"))
        wait_for(lambda: conn.execute(blocked).fetchone() is not None, what="the second to wait for the first")
        hand.app.limit("limited", per_key=0)
        first.execute("ROLLBACK")
        sent.result(60)
    assert violations(conn) == []
    assert numbers(claim(hand)) == [7]


def test_serializable_producers_of_one_key_never_fail_each_other(make: Make, dsn: str, conn: psycopg.Connection[Any]) -> None:
    hand = make(per_key=1)
    enqueue(hand, (0, "k"), (1, "k"))
    others = [connect(dsn, "producer") for _ in range(2)]
    for n, other in enumerate(others):
        other.execute("BEGIN ISOLATION LEVEL SERIALIZABLE")
        hand.app.using(other).enqueue_many([hand.app.functions["job"].call(n, "k"), hand.app.functions["job"].call(n + 10, "k")])
    for other in others:
        other.execute("COMMIT")
        other.close()
    assert sum(states(conn).values()) == 6


@pytest.mark.parametrize("how", ["expired", "late", "unknown", "cancelled"])
def test_a_job_that_never_begins_lets_those_behind_it_go_on(make: Make, conn: psycopg.Connection[Any], how: str) -> None:
    """Though it ends, or is put aside, without having run: nobody waits for a look at all that wait."""
    hand = make(per_key=1)
    enqueue(hand, (0, "k"))
    options = {"expired": {"expires": 60}, "late": {"timeout": 60}}.get(how, {})
    if how == "unknown":
        run(conn, protocol.enqueue_workflows(json.dumps([{"name": "unknown", "queue": "limited", "key": "k"}] * 5)))
    else:
        gone = enqueue(hand, *[(n, "k") for n in range(1, 6)], **options)
    enqueue(hand, (9, "k"))
    done(hand, *claim(hand))
    if how in ("expired", "late"):
        set_clock(conn, "clock_timestamp() + '2 min'")
    if how == "cancelled":
        run(conn, protocol.cancel([job.id for job in gone]))
    for _ in range(8):
        if numbers(claim(hand)) == [9]:
            break
        wake(conn)
    else:
        raise AssertionError("the last one never began")


@pytest.mark.parametrize("how", ["succeeded", "failed", "cancelled", "retry", "release", "reaped", "finished"])
def test_whatever_ends_a_run_lets_the_next_one_begin(make: Make, conn: psycopg.Connection[Any], how: str) -> None:
    hand = make(per_key=1)
    enqueue(hand, (1, "k"), (2, "k"), (3, "k"))
    [job] = claim(hand)
    assert claim(hand) == []
    if how == "reaped":
        run(conn, protocol.fence_worker(hand.id, None, "died"))
        run(conn, protocol.reap(hand.id, [], "crash", None))
        run(conn, protocol.register_worker(hand.id, Process.of(1)))
    elif how == "finished":
        with conn.transaction():
            xid = run(conn, protocol.fence(job.id, job.token, 0, 0.0))
            run(conn, protocol.finish(job.id, job.token, "1", xid))
    else:
        detail = '{"delay": 60, "errors": []}' if how == "retry" else None if how in ("succeeded", "release") else "{}"
        assert hand.settle(Settlement(job, how, "1", 0, detail)) == {}  # type: ignore[arg-type]
    assert len(claim(hand)) == 1
    assert claim(hand) == []


@pytest.mark.parametrize("how", ["release", "reaped", "retry"])
def test_a_job_that_comes_back_at_once_is_still_the_first_of_its_key(make: Make, conn: psycopg.Connection[Any], how: str) -> None:
    """Its worker was killed or drained, say, and it may not even have begun: those behind it wait on."""
    hand = make(per_key=1)
    enqueue(hand, *[(n, "k") for n in range(4)])
    [job] = claim(hand)
    assert claim(hand) == []
    if how == "reaped":
        run(conn, protocol.fence_worker(hand.id, None, "died"))
        run(conn, protocol.reap(hand.id, [job.id], "crash", "killed"))
        run(conn, protocol.register_worker(hand.id, Process.of(1)))
    else:
        detail = None if how == "release" else '{"delay": 0, "errors": [], "failed_seqs": []}'
        assert hand.settle(Settlement(job, how, None, 0, detail)) == {}  # type: ignore[arg-type]
    hand.wake()
    order = []
    while held := claim(hand):
        order += numbers(held)
        done(hand, *held)
        hand.wake()
    assert order == [0, 1, 2, 3]
    assert violations(conn) == []


def test_priorities_read_backwards_leave_the_order_of_a_key(make: Make, conn: psycopg.Connection[Any]) -> None:
    """Every 16th claim of a worker begins with the last priority, so that it does not starve in a limited queue either."""
    hand = make(per_key=1, concurrency=100)
    enqueue(hand, (0, "k"), (1, "k"))
    [job] = claim(hand, 1)
    assert hand.settle(Settlement(job, "release")) == {}
    again = claim(hand, backwards=True)
    assert numbers(again) == [0], "what was given back is still the first of its key"
    assert claim(hand) == []
    done(hand, *again)
    hand.wake()
    enqueue(hand, (2, "k"))
    second = claim(hand, backwards=True)
    assert numbers(second) == [1], "and so is what waited for its turn"
    enqueue(hand, (9, "other"), priority=9)
    enqueue(hand, (3, "another"))
    assert numbers(claim(hand, 1, backwards=True)) == [9]
    done(hand, *second)
    hand.wake()
    assert sorted(numbers(claim(hand))) == [2, 3]
    assert violations(conn) == []


def test_priorities_that_age_leave_the_order_of_a_key(make: Make, conn: psycopg.Connection[Any]) -> None:
    """The first job of a lane speaks for it: those that come back may be behind the fresh ones."""
    hand = make(per_key=1, aging=60.0)
    enqueue(hand, (0, "a"), (1, "a"), (2, "b"))
    first = claim(hand)
    assert numbers(first) == [0, 2]  # 1 waits for its turn
    enqueue(hand, (3, "c"), (4, "a"))  # 4 is fresh, and behind 1
    done(hand, first[0])  # 1 is back
    conn.execute("UPDATE pgqueue.job SET created_at = created_at + interval '1 h' WHERE input::json ->> 'n' = '1'")
    taken = numbers(claim(hand, 1)) + numbers(claim(hand))
    if 1 not in taken:
        hand.wake()
        taken += numbers(claim(hand))
    assert sorted(taken) == [1, 3]


def test_two_of_a_key_and_no_more(make: Make) -> None:
    hand = make(per_key=2)
    enqueue(hand, *[(n, "k") for n in range(7)])
    seen = []
    while held := claim(hand):
        assert len(held) <= 2
        seen += numbers(held)
        done(hand, held[0])
        more = claim(hand)
        assert len(more) <= 1
        seen += numbers(more)
        done(hand, *held[1:], *more)
    assert sorted(seen) == list(range(7))


# -------------------------------------------------------------------------------------------------------- rates


def stamps(conn: psycopg.Connection[Any]) -> list[float]:
    rows = conn.execute("SELECT extract(epoch FROM started_at)::float8 FROM pgqueue.running ORDER BY started_at").fetchall()
    return [row[0] for row in rows]


def set_clock(conn: psycopg.Connection[Any], moment: str) -> None:
    conn.execute(f"CREATE OR REPLACE FUNCTION pgqueue.clock() RETURNS timestamptz LANGUAGE sql VOLATILE AS $$ SELECT {moment} $$")


def test_starts_are_spaced_or_come_in_a_burst(make: Make, conn: psycopg.Connection[Any]) -> None:
    for burst, expected in ((1, [0.0, 0.02, 0.04]), (3, [0.0, 0.0, 0.0, 0.02, 0.04])):
        hand = make(rate=Rate(50, per=1, burst=burst))
        conn.execute(
            "DELETE FROM pgqueue.rate_register; DELETE FROM pgqueue.running; DELETE FROM pgqueue.ready; DELETE FROM pgqueue.job"
        )
        set_clock(conn, "'2026-01-01 00:00:00Z'::timestamptz")
        enqueue(hand, *[(n,) for n in range(20)])
        claim(hand)
        first = stamps(conn)[0]
        assert [round(stamp - first, 3) for stamp in stamps(conn)] == expected
        assert claim(hand) == []
        set_clock(conn, "'2026-01-01 00:00:00Z'::timestamptz + '10 s'")
        claim(hand)
        assert len(stamps(conn)) == 2 * len(expected)


def test_a_clock_that_goes_back_gives_no_more(make: Make, conn: psycopg.Connection[Any]) -> None:
    hand = make(rate=Rate(10, per=1))
    enqueue(hand, *[(n,) for n in range(20)])
    set_clock(conn, "'2026-01-01 00:00:05Z'::timestamptz")
    assert len(claim(hand)) == 1
    set_clock(conn, "'2026-01-01 00:00:00Z'::timestamptz")
    assert claim(hand) == []


def test_a_rate_of_each_key(make: Make, conn: psycopg.Connection[Any]) -> None:
    hand = make(rate_per_key=Rate(1, per=10))
    set_clock(conn, "'2026-01-01 00:00:00Z'::timestamptz")
    conn.execute(
        "CREATE OR REPLACE FUNCTION pgqueue.clock_bound() RETURNS timestamptz LANGUAGE sql STABLE AS 'SELECT pgqueue.clock()'"
    )
    enqueue(hand, *[(n, key) for n in range(3) for key in "abc"])
    assert numbers(claim(hand)) == [0, 0, 0]
    assert claim(hand) == []
    assert states(conn) == {"running": 3, "waiting": 6}
    for second in range(1, 40):
        set_clock(conn, f"'2026-01-01 00:00:00Z'::timestamptz + '{second} s'")
        hand.wake()
        got = numbers(claim(hand))
        assert got == ([second // 10] * 3 if second in (10, 20) else []), second
    assert violations(conn) == []


def test_a_rate_that_is_changed_is_in_force_at_once(make: Make, conn: psycopg.Connection[Any]) -> None:
    """What has begun counts by the new rate; nobody waits for a moment of the old one."""

    def at(second: float) -> None:
        set_clock(conn, f"'2026-01-01 00:00:00Z'::timestamptz + '{second} s'")

    hand = make(rate=Rate(1, per="1h"))
    enqueue(hand, *[(n,) for n in range(50)])
    at(0)
    assert len(claim(hand)) == 1
    at(1)
    assert claim(hand) == []
    hand.app.limit("limited", rate=Rate(10, per="1s"))
    assert len(claim(hand)) == 0  # that job began now, as it were
    at(1.1)
    assert len(claim(hand)) == 1
    hand.app.limit("limited", rate=Rate(1, per="1h"))
    at(3600)
    assert claim(hand) == []
    hand.app.limit("limited", rate=0)
    hand.app.limit("limited", rate=Rate(1, per="1h"))
    assert len(claim(hand)) == 1


def test_a_rate_of_each_key_that_is_changed_is_in_force_at_once(make: Make, conn: psycopg.Connection[Any]) -> None:
    hand = make(rate_per_key=Rate(1, per="1h"))
    enqueue(hand, *[(n, "k") for n in range(20)])
    assert numbers(claim(hand)) == [0]
    assert claim(hand) == []
    hand.app.limit("limited", rate_per_key=Rate(50, per="1s", burst=50))
    wait_for(lambda: (wake(conn), claim(hand))[1], 10, "others of the key")
    assert violations(conn) == []


# ------------------------------------------------------------------------------------------------------ fairness


def test_everybody_gets_as_much(make: Make, conn: psycopg.Connection[Any]) -> None:
    hand = make(fair_by="who")
    enqueue(hand, *[(n, "", "large") for n in range(300)])
    enqueue(hand, *[(n, "", "middle") for n in range(50)])
    enqueue(hand, *[(n, "", "small") for n in range(5)])
    seen: list[str] = []
    while held := claim(hand, 9):
        seen += [json.loads(job.input)["who"] for job in held]
        done(hand, *held)
    assert len(seen) == 355
    assert Counter(seen[:9]) == {"large": 3, "middle": 3, "small": 3}
    assert Counter(seen[:18])["small"] == 5
    assert Counter(seen[:108])["middle"] == 50
    assert violations(conn) == []


def test_whoever_comes_is_a_few_turns_ahead(make: Make) -> None:
    """So that who has little need not wait until all others have got as much; and no more, so that nobody starves."""
    hand = make(fair_by="who")
    enqueue(hand, *[(n, "", "large") for n in range(900)])

    def turns(amount: int) -> Counter[str]:
        held = claim(hand, amount)
        done(hand, *held)
        return Counter(json.loads(job.input)["who"] for job in held)

    for _ in range(10):
        assert turns(30) == {"large": 30}
    enqueue(hand, *[(n, "", "small") for n in range(10)])
    assert turns(8) == {"small": 8}
    assert turns(8) == {"small": 2, "large": 6}
    enqueue(hand, *[(n, "", "large too") for n in range(400)])
    got = sum((turns(10) for _ in range(20)), Counter[str]())
    assert 100 <= got["large too"] <= 115
    for n in range(30):
        enqueue(hand, (n, "", f"another {n}"))
    assert turns(30)["large"] == 0
    assert turns(10)["large"] >= 4


def test_very_many_tenants_all_have_their_turns(make: Make) -> None:
    """More than are compared at once."""
    hand = make(fair_by="who")
    enqueue(hand, *[(n, "", f"{who:03}") for who in range(450) for n in range(2)])
    seen: list[str] = []
    while held := claim(hand, 50):
        seen += [json.loads(job.input)["who"] for job in held]
        done(hand, *held)
    assert set(Counter(seen).values()) == {2}
    assert len(set(seen[:450])) > 220


@pytest.mark.parametrize("limits", [{"concurrency": 1}, {"rate": Rate(20, per="1s")}, {"concurrency": 1, "per_key": 1}])
def test_only_who_begins_has_had_a_turn(make: Make, conn: psycopg.Connection[Any], limits: dict[str, Any]) -> None:
    """However many jobs the worker has room for, and another limit lets begin; also where they were put aside meanwhile."""
    hand = make(fair_by="who", **limits)
    enqueue(hand, *[(n, "large", "large") for n in range(200)])
    enqueue(hand, *[(n, "small", "small") for n in range(100)])
    seen: list[str] = []
    for second in range(20):
        set_clock(conn, f"'2026-01-01 00:00:00Z'::timestamptz + '{second} s'")
        held = claim(hand)
        seen += [json.loads(job.input)["who"] for job in held]
        done(hand, *held)
        wake(conn)
    assert len(seen) >= 20
    assert 9 <= Counter(seen[:20])["small"] <= 11
    assert violations(conn) == []


def test_a_queue_that_becomes_fair_is_fair_to_those_who_wait_already(make: Make, dsn: str, conn: psycopg.Connection[Any]) -> None:
    """Also where a producer had not heard of it when he enqueued, and commits later; and what is scheduled."""
    hand = make(concurrency=50)
    enqueue(hand, *[(n, "", "large") for n in range(100)])
    enqueue(hand, *[(n, "", "later") for n in range(5)], delay="1h")
    with psycopg.connect(dsn) as producer:
        hand.app.enqueue_many([hand.app.functions["job"].call(n, "", "late") for n in range(5)], conn=producer)
        hand.app.limit("limited", fair_by="who")
    enqueue(hand, *[(n, "", "small") for n in range(5)])
    conn.execute("UPDATE pgqueue.scheduled SET run_at = pgqueue.clock() - interval '1 second'")
    run(conn, protocol.promote(100))
    seen: Counter[str] = Counter()
    while held := claim(hand, 10):
        if seen.total() < 20:
            assert Counter(json.loads(job.input)["who"] for job in held)["large"] < 8
        seen += Counter(json.loads(job.input)["who"] for job in held)
        done(hand, *held)
    assert seen == {"large": 100, "later": 5, "late": 5, "small": 5}
    hand.app.limit("limited", fair_by="n")
    assert violations(conn) == []


def test_a_claim_reads_as_much_however_long_a_fair_queue_is(make: Make, conn: psycopg.Connection[Any]) -> None:
    hand = make(fair_by="who")
    read = []
    for more in (1_000, 20_000):
        enqueue(hand, *[(n, "", str(n % 3)) for n in range(more)])
        conn.execute("VACUUM ANALYZE pgqueue.ready")
        read.append(statistics.median(buffers(hand.conn, lambda: claim(hand, 1)) for _ in range(7)))
    assert read[1] < 1.5 * read[0], read


def test_weights_and_priorities(make: Make, conn: psycopg.Connection[Any]) -> None:
    hand = make(fair_by="who")
    conn.execute("INSERT INTO pgqueue.fair_weight VALUES ('limited', 'a', 3)")
    enqueue(hand, *[(n, "", who) for n in range(60) for who in "ab"])
    enqueue(hand, (7, "", "c"), priority=0)
    held = claim(hand, 41)
    assert numbers(held)[0] == 7
    got = Counter(json.loads(job.input)["who"] for job in held)
    assert got == {"a": 30, "b": 10, "c": 1}


def test_weights_are_chosen_one_by_one(make: Make, conn: psycopg.Connection[Any]) -> None:
    hand = make(fair_by="who", weights={"a": 3, "b": 2})

    def weights() -> dict[str, int]:
        return dict(conn.execute("SELECT fair, weight FROM pgqueue.fair_weight").fetchall())

    assert weights() == {"a": 3, "b": 2}
    assert hand.app.limit("limited", weights={"c": 5, "a": 0})["weights"] == {"a": 1, "b": 2, "c": 5}
    run(conn, hand.app.registration())
    assert weights() == {"a": 1, "b": 2, "c": 5}
    assert hand.app.limit("limited", weights={"a": None}, aging=0)["weights"] == {"a": 3, "b": 2, "c": 5}
    assert hand.app.limit("limited", weights=None)["weights"] == {"a": 3, "b": 2} == weights()
    for wrong in ({"a": -1}, {"a": 1001}, {"a": "many"}, {1: 1}):
        with pytest.raises(ValueError, match="weights"):
            hand.app.limit("limited", weights=wrong)
    with pytest.raises(psycopg.Error, match="no limit"):
        conn.execute("""SELECT pgqueue.limit_queue('limited', '{"weights": {"a": "x"}}')""")


# ------------------------------------------------------------------------------------------- priorities that age


@pytest.mark.parametrize("limits", [{}, {"concurrency": 100}, {"fair_by": "who"}])
def test_priorities_age(make: Make, conn: psycopg.Connection[Any], limits: dict[str, Any]) -> None:
    """Jobs of the last priority have their turn, however many of the first one keep coming; without aging they have not."""

    def rounds() -> int:
        """After how many seconds, with always two new jobs of priority 0 and one claimed, is the job of priority 9 taken?"""
        for second in range(60):
            set_clock(conn, f"'2026-01-01 00:00:00Z'::timestamptz + '{second} s'")
            enqueue(hand, (1,), (2,), priority=0)
            [job] = claim(hand, 1)
            done(hand, job)
            if numbers([job]) == [99]:
                return second
        return 60

    for aging, expected in (("2s", range(17, 40)), (None, [60])):
        hand = make(**limits, aging=aging)
        conn.execute("DELETE FROM pgqueue.ready")
        set_clock(conn, "'2026-01-01 00:00:00Z'::timestamptz")
        enqueue(hand, (99,), priority=9)
        assert rounds() in expected
    conn.execute("DELETE FROM pgqueue.job")
    conn.execute("DELETE FROM pgqueue.ready")


def test_aging_is_a_limit_that_operators_choose(make: Make, conn: psycopg.Connection[Any]) -> None:
    make(aging="10m")
    assert conn.execute("SELECT aging, limited FROM pgqueue.queue WHERE name = 'limited'").fetchone() == (600.0, False)
    assert run(conn, protocol.limit_queue("limited", {"aging": 0})) == {}
    assert conn.execute("SELECT aging FROM pgqueue.queue WHERE name = 'limited'").fetchone() == (None,)
    with pytest.raises(ValueError, match="aging"):
        Queue("limited", aging=0)


# ------------------------------------------------------------------------------------------------------- control


def test_what_an_operator_chooses_stays(make: Make, conn: psycopg.Connection[Any]) -> None:
    hand = make(concurrency=5)

    def limit(chosen: dict[str, Any]) -> Any:
        row = conn.execute("SELECT pgqueue.limit_queue('limited', %s)", (json.dumps(chosen),)).fetchone()
        assert row is not None
        return row[0]

    enqueue(hand, *[(n,) for n in range(30)])
    assert limit({"concurrency": 2}) == {"concurrency": 2}
    run(conn, hand.app.registration())
    assert len(claim(hand)) == 2
    assert limit({"concurrency": None}) == {"concurrency": 5}
    assert len(claim(hand)) == 3
    assert limit({"concurrency": 0}) == {}
    assert len(claim(hand)) == 25
    assert limit({"concurrency": None, "rate": {"n": 1, "per": 60, "burst": 1}})["concurrency"] == 5
    for wrong in ({"concurrency": -1}, {"rate": 5}, {"rate": {"n": 1}}, {"speed": 1}, {"per_key": "x"}):
        with pytest.raises(psycopg.Error, match="no limit"):
            limit(wrong)
    with pytest.raises(psycopg.Error, match="no queue"):
        conn.execute("SELECT pgqueue.limit_queue('nowhere', '{}')")


def test_another_app_takes_no_limits_away(make: Make, dsn: str, conn: psycopg.Connection[Any]) -> None:
    """Two Apps in a database: what the other one says nothing of stays."""

    def limits() -> dict[str, Any]:
        return {row[0]: row[3] for row in run(conn, protocol.limits()) if row[3]}

    for name, queues in (("a", [Queue("default", concurrency=1), Queue("mail", per_key=1)]), ("b", [Queue("mail")]), ("c", [])):
        app = App(dsn, queues=queues, name=name)
        run(conn, app.registration())
        app.close()
        assert limits() == {"default": {"concurrency": 1}, "mail": {"per_key": 1}}
    app = App(dsn, queues=[Queue("mail", per_key=1)], name="a")
    run(conn, app.registration())
    app.close()
    assert limits() == {"mail": {"per_key": 1}}, "its own, it does"


def test_a_limit_counts_what_runs_already(make: Make, conn: psycopg.Connection[Any]) -> None:
    hand = make()
    enqueue(hand, *[(n,) for n in range(10)])
    before = claim(hand, 4)
    conn.execute("""SELECT pgqueue.limit_queue('limited', '{"concurrency": 5}')""")
    assert len(claim(hand)) == 1
    done(hand, *before)
    assert len(claim(hand)) == 4
    assert claim(hand) == []
    assert conn.execute("SELECT uncounted FROM pgqueue.queue WHERE name = 'limited'").fetchone() == (False,)


def test_limits_that_cannot_be_meant() -> None:
    for wrong in ({"concurrency": 0}, {"per_key": "a"}, {"rate": 5}, {"concurrency": True}):
        with pytest.raises(ValueError, match="limited"):
            Queue("limited", **wrong)
    for args in ((0, 1), (1.5, 1), (1, 0), (1, "1m", 0)):
        with pytest.raises(ValueError, match="Rate"):
            Rate(*args)


def test_limits_that_are_not_said_or_unknown(make: Make) -> None:
    hand = make(concurrency=5)
    for wrong in ({}, {"speed": 1}):
        with pytest.raises(TypeError, match=r"limit .* queue 'limited': concurrency, rate"):
            hand.app.limit("limited", **wrong)


def test_async_code_has_limits_too(make: Make, conn: psycopg.Connection[Any]) -> None:
    app = make(concurrency=5).app

    async def control() -> list[Any]:
        seen: list[Any] = [await app.alimit("limited", concurrency=2)]
        for change in (app.apause, app.aresume):
            await change("limited")
            seen.append(conn.execute("SELECT paused FROM pgqueue.queue WHERE name = 'limited'").fetchone())
        await app.aclose()
        return seen

    assert asyncio.run(control()) == [{"concurrency": 2}, (True,), (False,)]


def test_what_a_queue_asks_of_its_functions(make: Make) -> None:
    app = App(queues=[Queue("shared", fair_by="tenant")])
    with pytest.raises(TypeError, match="'tenant', which is not a parameter"):
        app.step(name="report", queue="shared")(lambda month: None)
    with pytest.raises(TypeError, match="only a workflow has a version"):
        app.step(name="report", version=2)(lambda month: None)  # type: ignore[call-overload]


def test_a_cost_that_cannot_be(make: Make) -> None:
    hand = make(concurrency=1)
    with pytest.raises(BadValue, match="cost"):
        enqueue(hand, (1,), cost=0)
    assert UnknownQueue is not None
