"""Children and gather(): jobs that a workflow starts and waits for, and steps that run at once. In both colours: see both.py."""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import Any

import psycopg
import pytest

from pgqueue import App, Cancel, JobCancelled, JobFailed, NonDeterministic, Retry, StepFailed, current, gather, protocol, sleep
from pgqueue.database import run
from tests import both
from tests.support import Hand, violations

colour, pytest_generate_tests = both.colour, both.pytest_generate_tests


@pytest.fixture
def app(app: App, conn: psycopg.Connection[Any]) -> App:
    conn.execute("CREATE TABLE effect (what text)")
    return app


def count(conn: psycopg.Connection[Any], query: str) -> int:
    row = conn.execute(query).fetchone()
    assert row is not None
    return int(row[0])


# ------------------------------------------------------------------------------------------------------ children


def test_a_workflow_that_is_called_is_a_child(app: App, conn: psycopg.Connection[Any], hand: Any) -> None:
    @app.workflow(name="child")
    def child(n: int) -> dict[str, int]:
        return {"n": n}

    @app.workflow(name="parent")
    def parent() -> list[Any]:
        return [child(1), child(2)]

    job = parent.enqueue()
    worker = hand()
    assert len(worker.claim()) == 1
    worker.close()
    run(conn, protocol.fence_worker(worker.id, None, "test"))
    run(conn, protocol.reap(worker.id, [], "crash", None))
    other = Hand(app, worker.dsn)
    assert other.drain() == 5  # the parent three times
    other.close()
    assert job.result(timeout=1) == [{"n": 1}, {"n": 2}]
    assert count(conn, "SELECT count(*) FROM pgqueue.job WHERE parent IS NOT NULL") == 2
    assert [s.name for s in job.steps()] == ["pgqueue.start", "pgqueue.children"] * 2


def test_gather_of_children_in_order_and_failures_in_the_order_of_the_arguments(
    app: App, conn: psycopg.Connection[Any], hand: Any
) -> None:
    @app.workflow(name="child")
    def child(n: int) -> int:
        if n in (3, 5):
            raise ValueError(f"no {n}")
        if n == 4:
            raise Cancel("not this one")
        return n * n

    @app.workflow(name="squares")
    def squares(upto: int) -> list[int]:
        return gather(*child.map(range(upto)))

    @app.workflow(name="all")
    def everything() -> list[str]:
        results = gather(*child.map(range(6)), return_exceptions=True)
        return [type(r).__name__ if isinstance(r, Exception) else str(r) for r in results]

    good, bad, caught, none = squares.enqueue(3), squares.enqueue(6), everything.enqueue(), squares.enqueue(0)
    worker = hand()
    worker.drain()
    assert good.result(timeout=1) == [0, 1, 4]
    with pytest.raises(JobFailed, match="ValueError: no 3"):
        bad.result(timeout=1)
    assert caught.result(timeout=1) == ["0", "1", "4", "JobFailed", "JobCancelled", "JobFailed"]
    assert none.result(timeout=1) == []
    assert violations(conn) == []


def test_children_are_started_once_also_where_the_parent_dies_right_after(
    app: App, dsn: str, conn: psycopg.Connection[Any]
) -> None:
    @app.workflow(name="child")
    def child(n: int) -> int:
        return n

    @app.workflow(name="parent")
    def parent() -> int:
        return sum(gather(*child.map(range(10))))

    job = parent.enqueue()
    for _ in range(3):  # it has started its children, and is never settled
        hand = Hand(app, dsn)
        (claimed,) = [c for c in hand.claim(names=["parent"]) if c.id == job.id]
        settlement = hand.run(claimed)
        assert settlement is not None
        assert settlement.how == "suspend"
        hand.close()
        run(conn, protocol.fence_worker(hand.id, None, "died", [job.id]))
        run(conn, protocol.reap(hand.id, [], "crash", None))
    last = Hand(app, dsn)
    last.drain()
    last.drain()
    last.close()
    assert job.result(timeout=1) == 45
    assert count(conn, "SELECT count(*) FROM pgqueue.job") == 11


def test_a_parent_of_many_is_looked_at_a_few_times(app: App, conn: psycopg.Connection[Any], hand: Any) -> None:
    @app.workflow(name="child")
    def child(n: int) -> int:
        return n

    @app.workflow(name="parent")
    def parent(upto: int) -> int:
        return sum(gather(*child.map(range(upto))))

    job = parent.enqueue(1500)
    worker = hand()
    ran = worker.drain()
    assert ran == 1502  # the parent twice: to start them, and when the last had ended
    assert job.result(timeout=1) == sum(range(1500))
    assert count(conn, "SELECT count(*) FROM pgqueue.checkpoint") == 2


def test_a_chain_and_a_tree(app: App, conn: psycopg.Connection[Any], hand: Any) -> None:
    @app.workflow(name="node")
    def node(depth: int) -> int:
        if depth == 0:
            return 1
        return sum(gather(node.call(depth - 1), node.call(depth - 1)))

    job = node.enqueue(4)
    hand().drain()
    assert job.result(timeout=1) == 16
    assert count(conn, "SELECT count(*) FROM pgqueue.job") == 31


def test_cancel_goes_down_the_tree_and_no_further(app: App, conn: psycopg.Connection[Any], hand: Any) -> None:
    @app.workflow(name="leaf")
    def leaf() -> None:
        sleep("1d")

    @app.workflow(name="middle")
    def middle() -> None:
        gather(leaf.call(), leaf.call())

    @app.workflow(name="root")
    def root() -> None:
        leaf.options(delay="1h").enqueue()
        middle()

    job, other = root.enqueue(), middle.enqueue()
    worker = hand()
    worker.drain(due_now=False)
    worker.drain(due_now=False)
    assert count(conn, "SELECT count(*) FROM pgqueue.outcome") == 0
    job.cancel()
    for _ in range(4):
        worker.wake()
    states = Counter(row[0] for row in conn.execute("SELECT state FROM pgqueue.jobs"))
    assert states == {"cancelled": 5, "waiting": 1, "scheduled": 2}
    assert other.status() == "waiting"
    assert violations(conn) == []


def test_a_cancelled_child_is_an_error_in_its_parent(app: App, conn: psycopg.Connection[Any], hand: Any) -> None:
    @app.workflow(name="child")
    def child() -> None:
        sleep("1d")

    @app.workflow(name="parent")
    def parent() -> str:
        try:
            child()
        except JobCancelled as error:
            return str(error).partition("(")[2]
        return "no error"

    job = parent.enqueue()
    worker = hand()
    worker.drain(due_now=False)
    worker.drain(due_now=False)
    (kid,) = conn.execute("SELECT id::text FROM pgqueue.jobs WHERE name = 'child'").fetchall()[0]
    app.job(kid).cancel()
    worker.drain(due_now=False)
    worker.drain(due_now=False)
    assert job.result(timeout=1) == "child) was cancelled"


def test_requeue_runs_failed_children_again_and_only_those(app: App, conn: psycopg.Connection[Any], hand: Any) -> None:
    broken = [True]

    @app.transaction(name="writes")
    def writes(tx: psycopg.Connection[Any], n: int) -> None:
        tx.execute("INSERT INTO effect VALUES (%s)", (str(n),))

    @app.workflow(name="child")
    def child(n: int) -> int:
        writes(n)
        if n == 1 and broken[0]:
            raise ValueError("not yet")
        return n

    @app.workflow(name="parent")
    def parent() -> list[int]:
        return gather(*child.map(range(3)))

    job = parent.enqueue()
    worker = hand()
    worker.drain()
    assert job.status() == "failed"
    broken.clear()
    broken.append(False)
    assert job.requeue()
    worker.drain()
    worker.drain()
    assert job.result(timeout=1) == [0, 1, 2]
    assert sorted(row[0] for row in conn.execute("SELECT what FROM effect")) == ["0", "1", "2"]


def test_what_a_job_enqueues_belongs_to_it_and_has_its_meta(app: App, conn: psycopg.Connection[Any], hand: Any) -> None:
    seen: list[Any] = []

    @app.step(name="tells")
    def tells() -> None:
        seen.append(current().meta)

    @app.transaction(name="enqueues")
    def enqueues(tx: psycopg.Connection[Any]) -> None:
        tells.enqueue()

    @app.workflow(name="child")
    def child() -> None:
        tells()

    @app.workflow(name="parent")
    def parent() -> None:
        tells.enqueue()
        enqueues()
        child()
        tells.options(meta={"tenant": "own"}).enqueue()

    job = parent.options(meta={"tenant": "ann", "trace": "00-1"}).enqueue()
    worker = hand()
    worker.drain()
    worker.drain()
    assert job.status() == "succeeded", job.attempts()
    assert sorted(m["tenant"] for m in seen) == ["ann", "ann", "ann", "own"]
    assert count(conn, f"SELECT count(*) FROM pgqueue.job WHERE parent = '{job.id}'") == 4


# -------------------------------------------------------------------------------------------------- steps at once


def test_steps_run_at_once_and_their_numbers_do_not_depend_on_who_ends_first(
    app: App, conn: psycopg.Connection[Any], hand: Any
) -> None:
    keys: dict[int, str] = {}

    @app.step(name="step")
    def step(n: int) -> int:
        time.sleep(0.02 * (5 - n))
        keys[n] = current().step_key
        return n

    @app.transaction(name="write")
    def write(tx: psycopg.Connection[Any], n: int) -> int:
        tx.execute("INSERT INTO effect VALUES (%s)", (str(n),))
        return -n

    @app.workflow(name="flow")
    def flow() -> list[int]:
        first = gather(*step.map(range(4)), write.call(7))
        return [*first, step(4)]

    job = flow.enqueue()
    hand().drain()
    assert job.result(timeout=1) == [0, 1, 2, 3, -7, 4]
    assert keys == {0: f"{job.id}:1", 1: f"{job.id}:2", 2: f"{job.id}:3", 3: f"{job.id}:4", 4: f"{job.id}:6"}
    assert [(s.seq, s.name) for s in job.steps()] == [
        (1, "step"),
        (2, "step"),
        (3, "step"),
        (4, "step"),
        (5, "write"),
        (6, "step"),
    ]


@both.def_only("a barrier blocks; the next one is for tasks")
def test_def_steps_really_run_at_once(app: App, conn: psycopg.Connection[Any], hand: Any) -> None:
    barrier = threading.Barrier(4, timeout=30)

    @app.step(name="meets")
    def meets() -> None:
        barrier.wait()

    @app.workflow(name="flow")
    def flow() -> None:
        gather(*[meets.call()] * 4)

    job = flow.enqueue()
    hand().drain()
    assert job.status() == "succeeded"


def test_one_that_fails_is_tried_again_and_the_others_are_not(app: App, conn: psycopg.Connection[Any], hand: Any) -> None:
    ran: Counter[int] = Counter()

    @app.step(name="step", retry=Retry(3, backoff=0.001))
    def step(n: int) -> int:
        ran[n] += 1
        if ran[n] < n:
            raise ValueError(f"{n} again")
        return n

    @app.workflow(name="flow")
    def flow() -> list[Any]:
        return [str(r) for r in gather(*step.map([1, 2, 3, 4]), return_exceptions=True)]

    job = flow.enqueue()
    worker = hand()
    for _ in range(4):
        worker.drain()
    assert job.result(timeout=1) == ["1", "2", "3", "step 4 (step) failed: ValueError: 4 again"]
    assert ran == {1: 1, 2: 2, 3: 3, 4: 3}
    assert Counter(a.seq for a in job.attempts()) == {2: 1, 3: 2, 4: 3}


def test_a_failure_is_raised_when_all_have_ended(app: App, conn: psycopg.Connection[Any], hand: Any) -> None:
    ended: list[int] = []

    @app.step(name="step", retry=Retry(1))
    def step(n: int) -> int:
        time.sleep(0.02 * n)
        ended.append(n)
        if n in (0, 2):
            raise ValueError(str(n))
        return n

    @app.workflow(name="child")
    def child() -> str:
        return "child"

    @app.workflow(name="flow")
    def flow() -> str:
        try:
            gather(child.call(), *step.map([3, 2, 1, 0]))
        except StepFailed as error:
            return f"{error.message} {sorted(ended)}"
        return ""

    job = flow.enqueue()
    worker = hand()
    worker.drain()
    worker.drain()
    assert job.result(timeout=1) == "2 [0, 1, 2, 3]"


def test_a_lost_connection_in_one_of_them_repeats_that_one(app: App, conn: psycopg.Connection[Any], hand: Any) -> None:
    ran: Counter[str] = Counter()

    @app.transaction(name="write")
    def write(tx: psycopg.Connection[Any], n: int) -> int:
        ran[str(n)] += 1
        tx.execute("INSERT INTO effect VALUES (%s)", (str(n),))
        if n == 2 and ran["2"] == 1:
            time.sleep(0.2)
            tx.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        return n

    @app.workflow(name="flow")
    def flow() -> list[int]:
        return gather(*write.map([1, 2, 3]))

    job = flow.enqueue()
    hand().drain()
    assert job.result(timeout=1) == [1, 2, 3]
    assert sorted(row[0] for row in conn.execute("SELECT what FROM effect")) == ["1", "2", "3"]
    assert ran == {"1": 1, "2": 2, "3": 1}


def test_changed_code_in_a_gather_is_noticed(app: App, dsn: str, conn: psycopg.Connection[Any]) -> None:
    def build(names: list[str]) -> App:
        app = App(dsn)

        @app.step(name="a")
        def a() -> None: ...

        @app.step(name="b")
        def b() -> None: ...

        @app.workflow(name="flow")
        def flow() -> None:
            steps = {"a": a, "b": b}
            gather(*[steps[name].call() for name in names])
            sleep("1d")

        return app

    before, after, shorter = build(["a", "b"]), build(["b", "a"]), build(["a"])
    jobs = before.enqueue_many([before.functions["flow"].call()] * 2)
    for one, due in ((before, False), (after, True)):
        hand = Hand(one, dsn)
        hand.drain(due_now=due)
        hand.close()
        if one is before:
            conn.execute("UPDATE pgqueue.scheduled SET queue = 'other' WHERE job_id = %s", (jobs[1].id,))
    conn.execute("INSERT INTO pgqueue.queue VALUES ('other', false, now())")
    conn.execute("UPDATE pgqueue.ready SET queue = 'default'")
    hand = Hand(shorter, dsn)
    hand.drain()
    hand.close()
    for job, message in zip(
        jobs, ["step 1 was a when it ran, and is b now", "step 2 was b when it ran, and is pgqueue.sleep now"], strict=True
    ):
        with pytest.raises(JobFailed, match=message) as failed:
            job.result(timeout=1)
        assert failed.value.type == NonDeterministic.__name__
    for one in (before, after, shorter):
        one.close()


@pytest.mark.parametrize(
    ("how", "old", "new", "message"),
    [
        ("gather", ["a", "b"], ["b", "a"], "step 1 started a, b when it ran, and starts b, a now"),
        ("gather", ["a"], ["a", "a"], "step 1 started a when it ran, and starts 2 x a now"),
        ("gather", ["a", "a", "b"], ["a", "b"], "step 1 started 2 x a, b when it ran, and starts a, b now"),
        ("call", ["a"], ["b"], "step 1 started a when it ran, and starts b now"),
        ("enqueue", ["a"], ["b"], "step 1 started a when it ran, and starts b now"),
        ("enqueue_many", ["a"], ["a", "b"], "step 1 started a when it ran, and starts a, b now"),
        ("gather", ["a", "was"], ["a", "is"], None),
        ("enqueue", ["was"], ["is"], None),
        ("gather", ["is", "was"], ["is", "is"], None),
    ],
)
def test_other_children_than_before_are_noticed(
    app: App, dsn: str, conn: psycopg.Connection[Any], how: str, old: list[str], new: list[str], message: str | None
) -> None:
    def build(names: list[str]) -> App:
        app = App(dsn)

        @app.workflow(name="a")
        def a() -> str:
            return "a"

        @app.workflow(name="b")
        def b() -> str:
            return "b"

        @app.workflow(name="is", aliases=["was"] if "was" not in names else [])
        def renamed() -> str:
            return "renamed"

        if "was" in names:

            @app.workflow(name="was")
            def former() -> str:
                return "former"

        @app.workflow(name="flow")
        def flow() -> None:
            children = [app.functions[name] for name in names]
            if how == "gather":
                gather(*[child.call() for child in children])
            elif how == "call":
                children[0]()
            elif how == "enqueue":
                children[0].enqueue()
            else:
                app.enqueue_many([child.call() for child in children])
            sleep("1d")

        return app

    job = build(old).functions["flow"].enqueue()
    for names, due in ((old, False), (old, False), (new, True)):
        one = build(names)
        hand = Hand(one, dsn)
        hand.drain(due_now=due)
        hand.close()
        one.close()
    if message is None:
        assert job.status() == "succeeded"
    else:
        with pytest.raises(JobFailed, match=message) as failed:
            job.result(timeout=1)
        assert failed.value.type == NonDeterministic.__name__
    assert count(conn, "SELECT count(*) FROM pgqueue.job WHERE parent IS NOT NULL") == len(old)


def test_what_gather_does_not_take(app: App, conn: psycopg.Connection[Any], hand: Any) -> None:
    @app.step(name="step")
    def step() -> None: ...

    @app.workflow(name="child")
    def child() -> None: ...

    @app.workflow(name="flow")
    def flow(what: str) -> None:
        if what == "value":
            gather(1)
        if what == "step":
            gather(step.options(retry=Retry(3), queue="default").call())
        gather(child.options(id="mine").call())

    jobs = app.enqueue_many(flow.map(["value", "id", "step"]))
    hand().drain()
    messages = ["gather takes calls", "gets its id from its parent", "step: retry, queue: that is for a job"]
    for job, message in zip(jobs, messages, strict=True):
        with pytest.raises(JobFailed, match=message):
            job.result(timeout=1)
