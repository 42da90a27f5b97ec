"""Unique jobs: of what there is one, until when, and what becomes of a second one. Their races are in test_unique_races.py."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Iterator
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg.types.json import Json, Jsonb

from pgqueue import App, Client, Debounce, Queue, Retry, Unique, UniqueConflict, gather, protocol, sleep
from pgqueue.database import run
from pgqueue.errors import BadValue
from pgqueue.ids import new_job_id
from pgqueue.model import ClaimedJob, Settlement
from tests.support import Hand, states, violations


@pytest.fixture
def app(dsn: str) -> Iterator[App]:
    app = App(dsn, queues=[Queue("other"), Queue("limited", concurrency=5, per_key=1)])

    @app.step(name="index", unique=True, retry=Retry(3, backoff=60))
    def index(doc: int, how: str = "fast") -> str:
        if how == "never":
            raise ValueError("no")
        return f"{doc} {how}"

    @app.step(name="plain")
    def plain(n: int, tenant: str = "") -> int:
        return n

    @app.workflow(name="naps", unique=["who"])
    def naps(who: str, n: int) -> list[Any]:
        sleep("1h")
        return gather(*naps_child.map([n, n]))

    @app.workflow(name="child", unique=True)
    def naps_child(n: int) -> int:
        return n

    yield app
    app.close()


@pytest.fixture
def hand(app: App, dsn: str) -> Iterator[Hand]:
    hand = Hand(app, dsn)
    yield hand
    hand.close()


@pytest.fixture(autouse=True)
def in_order(conn: psycopg.Connection[Any]) -> Iterator[None]:
    yield
    assert violations(conn) == []


def f(app: App, name: str) -> Any:
    return app.functions[name]


def test_one_at_a_time(app: App, hand: Hand, conn: psycopg.Connection[Any]) -> None:
    index = f(app, "index")
    first = index.enqueue(1)
    assert index.enqueue(1) == first
    assert index.enqueue(doc=1, how="fast") == first, "a default is equal to the same value"
    assert index.enqueue(1, "well") != first
    assert index.enqueue(2) != first
    assert app.enqueue_many(index.map([1, 3, 3]))[0] == first
    assert states(conn) == {"ready": 4}
    hand.drain()
    assert index.enqueue(1) != first
    assert conn.execute("SELECT count(*) FROM pgqueue.unique_job").fetchone() == (1,)


def test_what_counts(app: App, conn: psycopg.Connection[Any]) -> None:
    plain = f(app, "plain")

    def enqueue(unique: Any, *args: Any) -> Any:
        return plain.options(unique=unique).enqueue(*args)

    assert enqueue(["tenant"], 1, "a") == enqueue(["tenant"], 2, "a") != enqueue(["tenant"], 1, "b")
    assert enqueue(["tenant"], 3) == enqueue(Unique(by=["tenant"]), 4)
    assert enqueue([], 1) == enqueue([], 2)
    assert enqueue(Unique(key="k"), 1) == enqueue(Unique(key="k"), 2) != enqueue(Unique(key="l"), 1)
    assert enqueue(Unique(by=["n"], key="k"), 1) != enqueue(Unique(by=["n"], key="k"), 2)
    assert enqueue(True, 1) != enqueue(["n"], 1), "other arguments count"
    assert f(app, "index").options(unique=False).enqueue(1) != f(app, "index").options(unique=False).enqueue(1)


def test_a_window(app: App, hand: Hand, conn: psycopg.Connection[Any]) -> None:
    hourly = f(app, "plain").options(unique=Unique(by=["tenant"], within="1h"))
    first = hourly.enqueue(1, "a")
    hand.drain()
    assert hourly.enqueue(2, "a") == first
    assert first.status() == "succeeded"
    conn.execute("UPDATE pgqueue.unique_job SET until = pgqueue.clock() - interval '1 second'")
    second = hourly.enqueue(3, "a")
    assert second != first
    assert hourly.enqueue(4, "a") == second
    hand.drain()
    assert run(conn, protocol.prune(["succeeded"], 0, 100)) == 2
    assert hourly.enqueue(5, "a") != second, "what was pruned is forgotten"
    conn.execute("UPDATE pgqueue.unique_job SET until = pgqueue.clock() - interval '1 second'")
    hand.wake()
    assert conn.execute("SELECT count(*) FROM pgqueue.unique_job").fetchone() == (0,)


def test_an_error_instead(app: App, conn: psycopg.Connection[Any]) -> None:
    strict = f(app, "plain").options(unique=Unique(on_conflict="error"))
    first = strict.enqueue(1)
    with pytest.raises(UniqueConflict, match=f"{first.id} of plain .* has not ended"):
        strict.enqueue(1)
    with pytest.raises(UniqueConflict):
        app.enqueue_many(strict.map([2, 2]))
    assert states(conn) == {"ready": 1}, "all or none"


@pytest.mark.parametrize("delay", [None, "1h"])
def test_replace(app: App, hand: Hand, conn: psycopg.Connection[Any], delay: str | None) -> None:
    """The job keeps its id, and runs once, with what came last."""
    plain = f(app, "plain").options(unique=Unique(by=["tenant"], on_conflict="replace"))
    first = (plain.options(delay=delay) if delay else plain).enqueue(1, "a")
    assert plain.options(priority=2, meta={"trace": "x"}).enqueue(2, "a") == first
    assert states(conn) == {"ready": 1}, "as the last one has it: without delay"
    assert run(conn, protocol.job_row(first.id))[3] == (2 if delay else 5), "what is ready keeps its place"
    [job] = hand.claim()
    assert json.loads(job.input)["n"] == 2
    assert job.policy is not None
    assert job.policy["meta"] == {"trace": "x"}
    second = plain.enqueue(3, "a")
    assert second != first, "it has begun"
    hand.settle(Settlement(job, "succeeded", "2"))
    hand.drain()
    assert (first.result(), second.result()) == (2, 3)


def test_until_it_begins(app: App, hand: Hand) -> None:
    plain = f(app, "plain").options(unique=Unique(until="started"))
    first = plain.enqueue(1)
    assert plain.enqueue(1) == first
    [job] = hand.claim()
    second = plain.enqueue(1)
    assert second != first
    hand.settle(Settlement(job, "release"))
    assert plain.enqueue(1) == second, "the first one has begun, and does not count any more"
    hand.drain()
    assert (first.result(), second.result()) == (1, 1)


def test_debounce(app: App, hand: Hand, conn: psycopg.Connection[Any]) -> None:
    def due() -> float:
        row = conn.execute("SELECT extract(epoch FROM run_at - pgqueue.clock())::float8 FROM pgqueue.scheduled").fetchone()
        assert row is not None
        return float(row[0])

    def pass_by(seconds: int) -> None:
        conn.execute(f"UPDATE pgqueue.scheduled SET run_at = run_at - interval '{seconds} s'")
        conn.execute(f"UPDATE pgqueue.unique_job SET latest = latest - interval '{seconds} s'")

    plain = f(app, "plain").options(unique=Debounce("30s", at_most="60s", by=["tenant"]))
    first = plain.enqueue(1, "a")
    assert 20 < due() <= 30
    pass_by(20)
    assert plain.enqueue(2, "a") == first
    assert 20 < due() <= 30
    pass_by(20)
    assert plain.enqueue(3, "a") == first
    assert due() <= 20, "at most 60 s after the first one"
    assert plain.enqueue(9, "b") != first
    hand.drain()
    assert first.result() == 3
    assert plain.enqueue(4, "a") != first


def test_in_the_transaction_of_the_caller(app: App, dsn: str, conn: psycopg.Connection[Any]) -> None:
    index = f(app, "index")
    with psycopg.connect(dsn) as other:
        gone = index.using(other).enqueue(1)
        assert index.using(other).enqueue(1) == gone
        other.rollback()
        kept = index.using(other).enqueue(1)
        assert kept != gone
    assert index.enqueue(1) == kept
    replacing = f(app, "plain").options(unique=Unique(by=[], on_conflict="replace"))
    job = replacing.enqueue(1)
    with psycopg.connect(dsn) as other:
        assert replacing.using(other).enqueue(2) == job
        other.rollback()
    row = conn.execute("SELECT input::json ->> 'n' FROM pgqueue.job WHERE id = %s", (job.id,)).fetchone()
    assert row == ("1",)


def test_from_async_code(app: App) -> None:
    async def enqueue() -> None:
        index = f(app, "index")
        first = await index.aenqueue(1)
        assert await index.aenqueue(1) == first
        with pytest.raises(UniqueConflict):
            await index.options(unique=Unique(on_conflict="error")).aenqueue(1)
        await app.aclose()

    asyncio.run(enqueue())


def test_from_sql_and_without_the_code(app: App, hand: Hand, dsn: str, conn: psycopg.Connection[Any]) -> None:
    def enqueue(name: str, input: Any, **options: Any) -> str:
        sql = "SELECT pgqueue.enqueue_workflow(%s, %s, queue => 'default', options => %s)::text"
        row = conn.execute(sql, (name, Json(input), Jsonb(options))).fetchone()
        assert row is not None
        return str(row[0])

    first = enqueue("index", {"doc": 1, "how": "fast"})
    assert enqueue("index", {"how": "fast", "doc": 1}) == first, "as the registered function has it"
    assert f(app, "index").enqueue(1).id == first
    assert enqueue("index", {"doc": 1, "how": "fast"}, unique=False) != first
    assert enqueue("x", {"a": 1, "b": 1}, unique=["a"]) == enqueue("x", {"a": 1, "b": 2}, unique=["a"])
    put_off = {"by": ["a"], "delay": 30, "at_most": 60}
    assert enqueue("y", {"a": 1}, unique=put_off) == enqueue("y", {"a": 1, "b": 3}, unique=put_off)
    with Client(dsn) as client:
        assert client.enqueue("index", {"doc": 1, "how": "fast"}, unique=True).id == first
        with pytest.raises(UniqueConflict):
            client.enqueue("index", {"doc": 1, "how": "fast"}, unique=Unique(on_conflict="error"))


@pytest.mark.parametrize(
    "unique",
    [
        5, "by", {"by": "a"}, {"by": ["c"]}, {"speed": 1}, {"until": "later"}, {"within": -1}, {"within": 5, "until": "ended"},
        {"on_conflict": "x"}, {"on_conflict": "replace", "until": "ended"}, {"delay": 5, "at_most": 3}, {"at_most": 3},
        {"delay": "5"}, {"delay": 5, "on_conflict": "error"}, {"within": 5, "delay": 5}, {"key": 7},
    ],
)  # fmt: skip
def test_what_cannot_be_meant_in_sql(conn: psycopg.Connection[Any], unique: Any) -> None:
    with pytest.raises(psycopg.Error) as refused:
        run(
            conn, protocol.enqueue_workflows(json.dumps([{"name": "x", "queue": "default", "input": {"a": 1}, "unique": unique}]))
        )
    assert refused.value.sqlstate == "PQ004", refused.value


def test_what_cannot_be_meant(app: App) -> None:
    for wrong in (
        {"within": "1h", "until": "ended"},
        {"on_conflict": "replace", "until": "ended"},
        {"until": "x"},
        {"within": 0},
    ):
        with pytest.raises(ValueError, match=r"until|within"):
            Unique(**wrong)
    for times in (("0s", None), ("10s", "5s")):
        with pytest.raises(ValueError, match=r"delay|at_most"):
            Debounce(*times)
    with pytest.raises(TypeError, match="unique"):
        f(app, "plain").options(unique="tenant")
    with pytest.raises(BadValue, match="tenent"):
        f(app, "plain").options(unique=["tenent"]).enqueue(1)
    with pytest.raises(BadValue, match="tenent"):
        app.step(name="z", unique=["tenent"])(lambda tenant: None)
    with pytest.raises(BadValue, match="chosen id"):
        f(app, "plain").options(unique=Debounce("1s"), id="x").enqueue(1)
    with pytest.raises(BadValue, match="put off"):
        f(app, "plain").options(unique=Debounce("1s"), delay="5s").enqueue(1)


# ------------------------------------------------------------------------------------------ as long as it has not ended


def test_tries_waits_and_children_do_not_end_it(app: App, hand: Hand, conn: psycopg.Connection[Any]) -> None:
    index, naps = f(app, "index"), f(app, "naps")
    failing, napping = index.enqueue(1, "never"), naps.enqueue("ann", 7)
    hand.drain(due_now=False)
    assert states(conn) == {"scheduled": 2}
    assert index.enqueue(1, "never") == failing
    assert naps.enqueue("ann", 8) == napping
    hand.drain()
    assert napping.result() == [7, 7], "two children with the same input: gather() waits for its own"
    assert failing.status() == "failed"
    assert naps.enqueue("ann", 8) != napping


def test_a_crash_does_not_end_it(app: App, hand: Hand, conn: psycopg.Connection[Any]) -> None:
    index = f(app, "index")
    first = index.enqueue(1)
    for crash in range(3):
        [job] = hand.claim()
        assert index.enqueue(1) == first
        run(conn, protocol.fence_worker(hand.id, None, "died"))
        assert run(conn, protocol.reap(hand.id, [job.id], "crash", "signal 9"))[1] == (crash == 2)
        hand.close()
        hand.__init__(app, hand.dsn)  # type: ignore[misc]
    assert first.status() == "failed"
    assert index.enqueue(1) != first


@pytest.mark.parametrize("place", ["ready", "scheduled", "running", "waiting", "held"])
def test_cancelling_ends_it(app: App, hand: Hand, conn: psycopg.Connection[Any], place: str) -> None:
    naps = f(app, "naps")
    first = (naps.options(delay="1h") if place == "scheduled" else naps).enqueue("ann", 1)
    jobs = hand.claim() if place in ("running", "held") else []
    if place == "waiting":
        hand.claim(names=["another"])
    first.cancel()
    assert naps.enqueue("ann", 1) == first, "it has not ended"
    if place == "held":
        detail = json.dumps({"seq": 1, "name": "e", "kind": "event", "key": "e", "seconds": None})
        assert hand.settle(Settlement(jobs[0], "suspend", None, 0, detail)) == {}
    elif jobs:
        assert hand.settle(Settlement(jobs[0], "release")) == {}
    hand.drain()
    assert first.status() == "cancelled"
    assert naps.enqueue("ann", 1) != first


def test_who_is_to_be_cancelled_is_not_replaced(app: App, hand: Hand) -> None:
    put_off = f(app, "plain").options(unique=Debounce("1h", by=["tenant"]))
    first = put_off.enqueue(1, "a")
    first.cancel()
    second = put_off.enqueue(2, "a")
    assert second != first
    assert put_off.enqueue(3, "a") == second
    hand.drain()
    assert (first.status(), second.result()) == ("cancelled", 3)


def test_requeue_and_rerun_take_it_again(app: App, hand: Hand, conn: psycopg.Connection[Any]) -> None:
    index = f(app, "index").options(retry=Retry(1))
    first = index.enqueue(1, "never")
    hand.drain()
    assert first.status() == "failed"
    second = index.enqueue(1, "never")
    with pytest.raises(UniqueConflict, match="cannot run again"):
        first.requeue()
    with pytest.raises(UniqueConflict, match="cannot run again"):
        first.rerun()
    hand.drain()
    assert second.status() == "failed"
    answers = dict(run(conn, protocol.requeue([first.id, second.id])))
    assert sorted(answers.values()) == ["requeued", "taken"]
    assert index.enqueue(1, "never").id == next(id for id, answer in answers.items() if answer == "requeued")
    hand.drain()
    third = first.rerun()
    assert index.enqueue(1, "never") == third


def test_a_call_that_is_repeated(app: App, hand: Hand, conn: psycopg.Connection[Any]) -> None:
    """After a lost connection the same ids come again: whatever has become of the job, it is that job."""
    wanted = [{"name": "index", "queue": "default", "input": {"doc": 1}, "job_id": "00000001-0000-7000-8000-000000000000"}]
    for unique in (True, {"on_conflict": "replace"}):
        wanted[0]["unique"] = unique  # type: ignore[assignment]
        wanted[0]["job_id"] = f"0000000{2 if unique is True else 3}-0000-7000-8000-000000000000"
        call = protocol.enqueue_workflows(json.dumps(wanted))
        ids = run(conn, call)
        if unique is not True:
            again = [{**wanted[0], "job_id": "00000004-0000-7000-8000-000000000000", "input": {"doc": 1}}]
            assert run(conn, protocol.enqueue_workflows(json.dumps(again))) == ids
        assert run(conn, call) == ids
        hand.drain()
        assert run(conn, call) == ids
    assert states(conn) == {"succeeded": 2}


def test_in_a_limited_queue(app: App, hand: Hand, conn: psycopg.Connection[Any]) -> None:
    """A job that a producer keeps is left alone by claims that count, too, and costs its queue nothing."""
    plain = f(app, "plain").options(queue="limited", unique=Unique(by=["tenant"], on_conflict="replace"))
    first = plain.options(key="k").enqueue(1, "a")
    other = f(app, "plain").options(queue="limited").enqueue(5)
    with psycopg.connect(hand.dsn) as producer:
        assert plain.options(key="l").using(producer).enqueue(2, "a") == first
        [job] = hand.claim()
        assert job.id == other.id
        assert states(conn) == {"running": 1, "scheduled": 1}
    conn.execute("UPDATE pgqueue.scheduled SET run_at = pgqueue.clock() - interval '1 second'")
    run(conn, protocol.promote(100))
    [job] = hand.claim()
    assert (job.id, json.loads(job.input)["n"]) == (first.id, 2)
    assert conn.execute("SELECT key FROM pgqueue.running WHERE job_id = %s", (job.id,)).fetchone() == ("l",)


def test_a_replaced_job_waits_for_its_own_key(app: App, hand: Hand, conn: psycopg.Connection[Any]) -> None:
    plain = f(app, "plain").options(queue="limited", unique=Unique(by=["tenant"], on_conflict="replace"))
    app.limit("limited", per_key=1)
    f(app, "plain").options(queue="limited", key="k").enqueue(5)
    [busy] = hand.claim()
    first = plain.options(key="k").enqueue(1, "a")
    assert hand.claim() == []
    assert states(conn) == {"running": 1, "waiting": 1}
    assert plain.options(key="l").enqueue(2, "a") == first
    [job] = hand.claim()
    assert (job.id, json.loads(job.input)["n"]) == (first.id, 2)
    hand.settle(*[Settlement(ended, "succeeded", "2") for ended in (busy, job)])


def test_arguments_count_in_any_order(app: App, hand: Hand) -> None:
    plain = f(app, "plain")
    first = plain.options(unique=["n", "tenant"]).enqueue(1, "a")
    assert plain.options(unique=["tenant", "n"]).enqueue(1, "a") == first


def test_schedules_and_what_follows_a_failure(dsn: str, conn: psycopg.Connection[Any]) -> None:
    app = App(dsn)

    @app.step(name="sorry", unique=Unique(by=[], on_conflict="error"))
    def sorry(failure: dict[str, Any] | None = None) -> None: ...

    @app.schedule(every="1s")
    @app.step(name="ticks", unique=Unique(on_conflict="error"), on_failure=sorry, retry=Retry(1))
    def ticks(n: int = 1) -> None:
        raise ValueError("no")

    hand = Hand(app, dsn)
    sorry.enqueue()
    first = ticks.enqueue()
    row = conn.execute("SELECT pgqueue.trigger_schedule('ticks', gen_random_uuid())::text").fetchone()
    assert row == (first.id,)
    hand.drain()
    assert states(conn) == {"failed": 1, "succeeded": 2}, "on_failure is for each failure"
    hand.close()
    app.close()


# ------------------------------------------------------------------------------------------------------ whatever happens

KINDS: list[dict[str, Any]] = [
    {"key": "a"},
    {"key": "b"},
    {"key": "a", "until": "started"},
    {"key": "b", "on_conflict": "replace"},
]
ACTS = (
    "enqueue",
    "enqueue",
    "enqueue",
    "claim",
    "claim",
    "succeed",
    "fail",
    "release",
    "retry",
    "cancel",
    "requeue",
    "rerun",
    "prune",
)
TABLES = ("job", "outcome", "attempt", "cancel_request", "ready", "running", "scheduled", "unique_job", "wakeup")


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(acts=st.lists(st.tuples(st.sampled_from(ACTS), st.integers(0, 11)), min_size=15, max_size=40))
def test_whatever_happens_there_is_one(acts: list[tuple[str, int]], hand: Hand, conn: psycopg.Connection[Any]) -> None:
    """Any sequence of what can happen to unique jobs, against a model: who has which key."""
    for table in TABLES:
        conn.execute(f"DELETE FROM pgqueue.{table}")  # type: ignore[arg-type]
    model = _Kinds(hand, conn)
    for act, which in acts:
        getattr(model, act)(which)
        rows = conn.execute("SELECT job_id::text FROM pgqueue.unique_job").fetchall()
        assert sorted(row[0] for row in rows) == sorted(model.holders.values()), act
        assert violations(conn) == []


class _Kinds:
    """What is done to the jobs, and what is expected of it."""

    def __init__(self, hand: Hand, conn: psycopg.Connection[Any]) -> None:
        self.hand, self.conn = hand, conn
        self.kind: dict[str, int] = {}  # of each job
        self.holders: dict[int, str] = {}
        self.held: dict[str, ClaimedJob] = {}
        self.ended: dict[str, str] = {}  # how
        self.cancelled: set[str] = set()

    def pick(self, jobs: Iterable[str], which: int) -> list[str]:
        some = sorted(jobs)
        return [some[which % len(some)]] if some else []

    def enqueue(self, which: int) -> None:
        kind = which % len(KINDS)
        mine = new_job_id()
        described = {"name": "plain", "queue": "default", "input": {"n": which}, "job_id": mine, "unique": KINDS[kind]}
        [given] = run(self.conn, protocol.enqueue_workflows(json.dumps([described])))
        holder = self.holders.get(kind)
        if holder in self.cancelled and kind >= 2:
            holder = None
        assert given == (holder or mine)
        self.holders[kind] = given
        self.kind[given] = kind

    def claim(self, which: int) -> None:
        ready = self.conn.execute("SELECT job_id::text FROM pgqueue.ready ORDER BY lane, pos LIMIT 2").fetchall()
        got = {job.id: job for job in self.hand.claim(2)}
        assert got.keys() == {job for (job,) in ready} - self.cancelled
        for (job,) in ready:
            if job in self.cancelled:
                self.end(job, "cancelled")
            elif self.kind[job] >= 2:
                self.free(job)
        self.held.update(got)

    def free(self, job: str) -> None:
        if self.holders.get(self.kind[job]) == job:
            del self.holders[self.kind[job]]

    def end(self, job: str, how: str) -> None:
        self.ended[job] = how
        self.cancelled.discard(job)
        self.free(job)

    def settle(self, which: int, how: str) -> None:
        for job in self.pick(self.held, which):
            detail = json.dumps({"errors": [{"error": {"type": "E"}}], "delay": 0, "failed_seqs": []})
            settlement = Settlement(self.held.pop(job), how, "1", 0, None if how in ("succeeded", "release") else detail)  # type: ignore[arg-type]
            assert self.hand.settle(settlement) == {}
            if how in ("succeeded", "failed"):
                self.end(job, how)
            elif job in self.cancelled:
                self.end(job, "cancelled")

    def succeed(self, which: int) -> None:
        self.settle(which, "succeeded")

    def fail(self, which: int) -> None:
        self.settle(which, "failed")

    def release(self, which: int) -> None:
        self.settle(which, "release")

    def retry(self, which: int) -> None:
        self.settle(which, "retry")

    def cancel(self, which: int) -> None:
        for job in self.pick(self.kind.keys() - self.ended.keys(), which):
            run(self.conn, protocol.cancel([job]))
            self.cancelled.add(job)

    def requeue(self, which: int) -> None:
        for job in self.pick(self.ended, which):
            taken = self.kind[job] < 2 and self.kind[job] in self.holders
            expected = "succeeded" if self.ended[job] == "succeeded" else "taken" if taken else "requeued"
            assert dict(run(self.conn, protocol.requeue([job]))) == {job: expected}
            if expected == "requeued":
                del self.ended[job]
                if self.kind[job] < 2:
                    self.holders[self.kind[job]] = job

    def rerun(self, which: int) -> None:
        for job in self.pick(self.ended, which):
            again, kind = new_job_id(), self.kind[job]
            if kind < 2 and kind in self.holders:
                with pytest.raises(psycopg.Error) as refused:
                    run(self.conn, protocol.rerun(job, 1, again))
                assert refused.value.sqlstate == "PQ011"
                continue
            run(self.conn, protocol.rerun(job, 1, again))
            self.kind[again] = kind
            if kind < 2:
                self.holders[kind] = again

    def prune(self, which: int) -> None:
        run(self.conn, protocol.prune(["succeeded", "failed", "cancelled"], 0, 100))
        for job in list(self.ended):
            del self.ended[job], self.kind[job]
