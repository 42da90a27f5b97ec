"""Time limits, expiry, what follows a failure, and versions: with real workers and in one process."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgqueue import App, Failure, JobCancelled, JobFailed, Queue, Retry, StepFailed, current, protocol, sleep, wait_event
from pgqueue.database import run
from tests.apps import aio, bank
from tests.support import Hand, Workers, states, violations, wait_for

# ------------------------------------------------------------------------------------------------- with workers


def test_a_step_that_takes_too_long_is_killed_tried_again_and_fails(
    bank_db: psycopg.Connection[Any], workers: Workers, bank_file: Path
) -> None:
    """Of a workflow that catches it, and as a job. Neighbours are given back, nothing is charged as a crash."""
    flow, alone = bank.has_slow_steps.enqueue(), bank.too_slow.enqueue(60.0)
    fine = bank.app.enqueue_many([bank.noop.call()] * 50)
    work = workers.start("tests.apps.bank:app", "-w", "2")
    wait_for(lambda: set(states(bank_db)) <= {"succeeded", "failed"}, 100, f"the end\n{work.log()}")
    assert flow.result(timeout=1) == ["StepTimeout", "StepTimeout", "in time"]
    with pytest.raises(JobFailed, match=r"took longer than 0\.5 s") as failed:
        alone.result(timeout=1)
    assert failed.value.type == "StepTimeout"
    assert Counter(a.kind for a in flow.attempts())["timeout"] == 4
    assert {a.kind for job in (flow, alone) for a in job.attempts()} <= {"timeout", "error"}
    assert bank_file.read_text().count("slow\n") == 5
    assert {job.status() for job in fine} == {"succeeded"}
    assert [job.attempts() for job in fine] == [[]] * 50
    assert bank_db.execute("SELECT max(balance) FROM account").fetchone() == (0,)
    assert violations(bank_db) == []


@pytest.mark.parametrize("how", ["sleeps", "waits", "computes", "steps"])
def test_a_job_that_takes_too_long_fails_wherever_it_is(bank_db: psycopg.Connection[Any], workers: Workers, how: str) -> None:
    job = bank.takes_for_ever.enqueue(how)
    work = workers.start("tests.apps.bank:app", "-w", "1")
    wait_for(lambda: job.status() == "failed", 40, f"the end\n{work.log()}")
    with pytest.raises(JobFailed) as failed:
        job.result(timeout=1)
    assert failed.value.type == "JobTimeout"
    assert violations(bank_db) == []


def test_an_async_step_is_cancelled_and_killed_where_it_cannot_be(
    bank_db: psycopg.Connection[Any], workers: Workers, bank_file: Path
) -> None:
    jobs = [aio.too_slow.enqueue(False), aio.too_slow.enqueue(True)]
    work = workers.start("tests.apps.aio:app", "-w", "1")
    wait_for(lambda: set(states(bank_db)) == {"failed"}, 100, f"the end\n{work.log()}")
    for job in jobs:
        with pytest.raises(JobFailed, match="took longer than") as failed:
            job.result(timeout=1)
        assert failed.value.type == "StepTimeout"
    assert bank_file.read_text().count("slow True\n") == 2


# ----------------------------------------------------------------------------------------------- in this process


@pytest.fixture
def app(dsn: str, conn: psycopg.Connection[Any]) -> Iterator[App]:
    app = App(dsn, queues=[Queue("failures")])
    yield app
    app.close()


def drain(app: App, dsn: str, due_now: bool = True) -> None:
    hand = Hand(app, dsn)
    try:
        hand.drain(due_now)
        hand.drain(due_now)
    finally:
        hand.close()


def test_a_job_that_no_worker_begins_in_time(app: App, dsn: str, conn: psycopg.Connection[Any]) -> None:
    ran: list[int] = []

    @app.step(name="step")
    def step(n: int) -> None:
        ran.append(n)

    late = step.options(expires=0.01).enqueue(1)
    in_time = step.options(expires="1h").enqueue(2)
    wait_for(
        lambda: (
            conn.execute(
                "SELECT clock_timestamp() > (policy ->> 'expires_at')::timestamptz + '10 ms' FROM pgqueue.job WHERE id = %s",
                (late.id,),
            ).fetchone()
            == (True,)
        )
    )
    drain(app, dsn)
    with pytest.raises(JobCancelled):
        late.result(timeout=1)
    assert in_time.status() == "succeeded"
    assert ran == [2]


def test_a_time_limit_may_come_with_the_job_and_is_known_inside(app: App, dsn: str, conn: psycopg.Connection[Any]) -> None:
    seen: list[Any] = []

    @app.workflow(name="flow", timeout="1h")
    def flow() -> None:
        seen.append(current().deadline)

    @app.workflow(name="free")
    def free() -> None:
        seen.append(current().deadline)

    flow.enqueue()
    flow.options(timeout="2h", delay=0).enqueue()
    free.enqueue()
    run(conn, app.registration())
    conn.execute("SELECT pgqueue.enqueue_workflow('flow')")
    drain(app, dsn)
    now = conn.execute("SELECT clock_timestamp()").fetchone()
    assert now is not None
    assert sorted(round((d - now[0]).total_seconds() / 3600) for d in seen if d) == [1, 1, 2]
    assert seen.count(None) == 1
    for wrong in (-1, "soon"):
        with pytest.raises(ValueError, match="duration"):
            flow.options(timeout=wrong)


def test_what_follows_a_failure_is_enqueued_with_it(app: App, dsn: str, conn: psycopg.Connection[Any]) -> None:
    told: list[Failure] = []

    @app.step(name="tell", queue="failures")
    def tell(failure: Failure) -> None:
        told.append(failure)

    @app.step(name="step", retry=Retry(2, backoff=0.001), on_failure=tell)
    def step(n: int) -> None:
        raise ValueError(f"no {n}")

    @app.workflow(name="flow", on_failure=tell, timeout=0.001)
    def flow() -> None:
        sleep("1h")

    @app.workflow(name="fine", on_failure=tell)
    def fine() -> str:
        return "fine"

    @app.workflow(name="catches")
    def catches() -> str:
        try:
            step(5)
        except StepFailed:
            return "caught"
        return ""

    jobs = [step.enqueue(1), flow.enqueue(), fine.enqueue(), catches.enqueue()]
    drain(app, dsn)
    assert [job.status() for job in jobs] == ["failed", "failed", "succeeded", "succeeded"]
    assert {(f.job_id, f.name, f.error["type"], str(f.input)) for f in told} == {
        (jobs[0].id, "step", "ValueError", "{'n': 1}"),
        (jobs[1].id, "flow", "JobTimeout", "{}"),
    }
    assert len(told) == 2
    jobs[0].requeue()
    drain(app, dsn)
    assert len(told) == 3


def test_a_job_whose_worker_dies_again_and_again_is_a_failure_too(app: App, dsn: str, conn: psycopg.Connection[Any]) -> None:
    @app.step(name="tell")
    def tell(failure: Failure) -> str:
        return failure.job_id

    @app.step(name="poison", on_failure=tell, max_crashes=1)
    def poison() -> None: ...

    job = poison.enqueue()
    hand = Hand(app, dsn)
    hand.claim()
    run(conn, protocol.fence_worker(hand.id, None, "died", [job.id]))
    run(conn, protocol.reap(hand.id, [job.id], "crash", "killed by SIGSEGV"))
    hand.close()
    drain(app, dsn)
    assert conn.execute("SELECT result FROM pgqueue.job_values WHERE name = 'tell'").fetchall() == [(f'"{job.id}"',)]


def test_what_on_failure_takes(app: App) -> None:
    @app.step(name="two")
    def two(failure: Failure, other: int) -> None: ...

    with pytest.raises(TypeError, match="one parameter, called failure"):
        app.step(name="a", on_failure=two)(lambda: None)
    with pytest.raises(TypeError, match="registered"):
        app.step(name="b", on_failure=lambda failure: None)(lambda: None)  # type: ignore[arg-type]


def test_workers_run_the_versions_they_have(dsn: str, conn: psycopg.Connection[Any]) -> None:
    """Old and new workers are up before anything is enqueued; whoever meets a job first that it does not know puts it aside."""

    def build(*versions: int) -> App:
        app = App(dsn)
        for version in versions:

            @app.workflow(name="flow", version=version)
            def flow(asked: int, version: int = version) -> list[int]:
                wait_event("go")
                return [asked, version]

        return app

    old, new, both = build(1), build(2), build(1, 2)
    first, second = Hand(old, dsn), Hand(new, dsn)
    jobs = [old.functions["flow"].enqueue(1), new.functions["flow@2"].enqueue(2)]
    run(conn, new.registration())
    jobs.append(new.job(str(conn.execute("SELECT pgqueue.enqueue_workflow('flow', '{\"asked\": 2}')").fetchone()[0])))  # type: ignore[index]
    second.drain()
    assert states(conn) == {"waiting": 3}
    assert conn.execute("SELECT key FROM pgqueue.waiting WHERE kind = 'name'").fetchall() == [("flow",)]
    first.drain()
    new.send_event("go")
    second.drain()
    first.drain()
    second.drain()
    assert [job.result(timeout=1) for job in jobs] == [[1, 1], [2, 2], [2, 2]]
    kept = both.functions["flow"].enqueue(1)
    third = Hand(both, dsn)
    third.drain()
    assert kept.result(timeout=1) == [1, 1]
    for hand in (first, second, third):
        hand.close()
    for app in (old, new, both):
        app.close()


def test_an_old_worker_that_starts_again_does_not_bring_back_its_version(dsn: str, conn: psycopg.Connection[Any]) -> None:
    old, new = App(dsn, queues=[Queue("other")]), App(dsn, queues=[Queue("other")])
    old.workflow(name="flow", queue="other")(lambda: None)
    new.workflow(name="flow", version=2, priority=1)(lambda: None)
    for app, exact, known in ((old, False, ("other", 5, 1)), (new, False, ("default", 1, 2)), (old, False, ("default", 1, 2)),
                              (old, True, ("other", 5, 1)), (new, False, ("default", 1, 2))):  # fmt: skip
        run(conn, app.registration(exact=exact))
        assert conn.execute("SELECT queue, priority, version FROM pgqueue.workflow WHERE name = 'flow'").fetchone() == known


def test_the_try_after_a_kill_waits_as_after_any_failed_one(app: App, dsn: str, conn: psycopg.Connection[Any]) -> None:
    ran: list[int] = []

    @app.step(name="slow", timeout=1, retry=Retry(3, backoff="1h", jitter=False))
    def slow() -> None:
        ran.append(1)

    @app.workflow(name="flow")
    def flow() -> None:
        slow()

    for function, seq in ((slow, 0), (flow, 1)):
        job = function.enqueue()
        ran.clear()
        killed = Hand(app, dsn)
        [claimed] = killed.claim()
        run(conn, protocol.fence_worker(killed.id, None, "test"))
        run(conn, protocol.reap(killed.id, [claimed.id], "timeout", "took too long", seq))
        killed.close()
        drain(app, dsn, due_now=False)
        assert (ran, job.status()) == ([], "scheduled")
        left = conn.execute("SELECT extract(epoch FROM run_at - clock_timestamp())::float8 FROM pgqueue.scheduled").fetchone()
        assert left is not None
        assert 3500 < left[0] <= 3600
        drain(app, dsn)
        assert (ran, job.status()) == ([1], "succeeded")
        assert [a.kind for a in job.attempts()] == ["timeout"]


def test_a_requeue_begins_the_time_again(app: App, dsn: str, conn: psycopg.Connection[Any]) -> None:
    @app.workflow(name="flow", timeout="1h")
    def flow() -> float:
        deadline = current().deadline
        assert deadline is not None
        return (deadline - datetime.now(UTC)).total_seconds()

    job = flow.options(delay="5m").enqueue()
    for _ in range(2):
        conn.execute('UPDATE pgqueue.job SET policy = policy || \'{"deadline": "2020-01-01T00:00:00Z"}\'')
        conn.execute("DELETE FROM pgqueue.scheduled")
        conn.execute("INSERT INTO pgqueue.ready SELECT queue, 10, 0, id FROM pgqueue.job ON CONFLICT DO NOTHING")
        drain(app, dsn)
        assert job.status() == "failed"
        assert job.requeue()
    drain(app, dsn)
    assert 3500 < job.result(timeout=1) <= 3600


def test_versions_that_cannot_be(dsn: str) -> None:
    app = App(dsn)
    app.workflow(name="flow", version=2)(lambda: None)
    with pytest.raises(ValueError, match="two functions"):
        app.workflow(name="flow", version=2)(lambda: None)
    with pytest.raises(ValueError, match="whole number"):
        app.workflow(name="flow", version=0)(lambda: None)


def test_retry_if_decides() -> None:
    policy = Retry(3, retry_if=lambda error: "busy" in str(error))
    assert policy.again(1, ValueError("busy"))
    assert not policy.again(1, ValueError("gone"))
    assert not policy.again(3, ValueError("busy"))


def test_a_job_that_is_put_off_comes_back_when_its_time_is_over(app: App, dsn: str, conn: psycopg.Connection[Any]) -> None:
    @app.step(name="step", retry=Retry(5, backoff="2h", jitter=False))
    def step() -> None:
        raise ValueError

    @app.workflow(name="flow", timeout="1h")
    def flow() -> None:
        step()

    flow.enqueue()
    drain(app, dsn, due_now=False)
    left = conn.execute("SELECT extract(epoch FROM run_at - clock_timestamp())::float8 FROM pgqueue.scheduled").fetchone()
    assert left is not None
    assert 3500 < left[0] <= 3600


def test_a_retry_if_that_raises_says_no(app: App, dsn: str, conn: psycopg.Connection[Any]) -> None:
    """The error of the step stays what it is, and is its checkpoint."""

    @app.step(name="step", retry=Retry(3, retry_if=lambda error: error.status >= 500))  # type: ignore[attr-defined]
    def step() -> None:
        raise ConnectionError("no route")

    @app.workflow(name="flow")
    def flow() -> str:
        try:
            step()
        except StepFailed as error:
            sleep("1h")
            return error.type
        return ""

    job = flow.enqueue()
    drain(app, dsn)
    assert job.result(timeout=5) == "ConnectionError"
