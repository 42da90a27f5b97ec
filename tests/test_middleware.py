"""What wraps every run of every job. In both colours: see both.py. (Hooks of workers are in test_async_workers.py.)"""

from __future__ import annotations

from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import psycopg
import pytest

from pgqueue import App, JobFailed, Retry, StepFailed, current
from pgqueue.context import Current
from tests import both
from tests.support import drain, violations

colour, pytest_generate_tests = both.colour, both.pytest_generate_tests
tenant: ContextVar[str] = ContextVar("tenant", default="nobody")


def test_order_and_context(app: App, dsn: str) -> None:
    seen: list[str] = []

    @app.middleware
    def outer(job: Current) -> Iterator[None]:
        seen.append(f"outer {job.name} {job.queue}")
        token = tenant.set("acme")
        yield
        tenant.reset(token)
        seen.append("outer end")

    @app.middleware
    def inner(job: Current) -> Iterator[None]:
        assert current().job_id == job.job_id
        seen.append(f"inner {tenant.get()}")
        yield
        seen.append("inner end")

    @app.step(name="step")
    def step() -> None:
        seen.append(f"step {tenant.get()}")

    @app.transaction(name="write")
    def write(tx: psycopg.Connection[Any]) -> None:
        seen.append(f"write {tenant.get()}")

    @app.workflow(name="flow")
    def flow() -> None:
        seen.append(f"flow {tenant.get()}")
        step()
        write()

    job = flow.enqueue()
    drain(app, dsn)
    assert job.status() == "succeeded"
    assert seen == ["outer flow default", "inner acme", "flow acme", "step acme", "write acme", "inner end", "outer end"]
    assert tenant.get() == "nobody"
    seen.clear()
    write.enqueue()
    drain(app, dsn)
    assert seen == ["outer write default", "inner acme", "write acme", "inner end", "outer end"]


def test_it_sees_errors_and_cannot_swallow_them(app: App, dsn: str, conn: Any) -> None:
    conn.execute("CREATE TABLE mark (what text)")
    seen: list[str] = []

    @app.middleware
    def swallows(job: Current) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            seen.append(f"{job.name} {type(error).__name__}")

    @app.step(name="bad", retry=Retry(1))
    def bad() -> None:
        raise ValueError("bad")

    @app.transaction(name="bad_write", retry=Retry(1))
    def bad_write(tx: psycopg.Connection[Any]) -> None:
        tx.execute("INSERT INTO mark VALUES ('x')")
        raise ValueError("bad")

    @app.workflow(name="flow")
    def flow() -> None:
        bad()

    @app.workflow(name="catches")
    def catches() -> str:
        try:
            bad()
        except StepFailed:
            return "caught"
        return "?"

    jobs = [flow.enqueue(), bad.enqueue(), bad_write.enqueue()]
    fine = catches.enqueue()
    drain(app, dsn)
    for job in jobs:
        with pytest.raises(JobFailed, match="PgQueueError: a middleware has swallowed the error of this job"):
            job.result(timeout=5)
    assert fine.result(timeout=5) == "caught"
    assert seen == ["flow StepFailed", "bad ValueError", "bad_write ValueError"]
    assert conn.execute("SELECT count(*) FROM mark").fetchone() == (0,)
    assert violations(conn) == []


def test_a_retry_is_not_an_error_that_it_sees(app: App, dsn: str) -> None:
    """Nor can it hold it up: a step that is tried again later leaves the job, whatever stands in its way."""
    seen: list[str] = []

    @app.middleware
    def stubborn(job: Current) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            seen.append(type(error).__name__)
            raise
        except BaseException:
            pass

    @app.step(name="bad", retry=Retry(2, backoff=0.01))
    def bad() -> None:
        raise ValueError("bad")

    @app.workflow(name="flow")
    def flow() -> None:
        bad()

    job = flow.enqueue()
    drain(app, dsn)
    with pytest.raises(JobFailed, match="ValueError: bad"):
        job.result(timeout=5)
    assert seen == ["StepFailed"]


def test_its_own_errors_are_the_jobs(app: App, dsn: str, conn: Any) -> None:
    conn.execute("CREATE TABLE mark (what text)")

    @app.middleware
    def fails(job: Current) -> Iterator[None]:
        if job.name == "early":
            raise LookupError("no tenant")
        yield
        raise LookupError("no goodbye")

    @app.step(name="early", retry=Retry(1))
    def early() -> None:
        raise AssertionError("does not run")

    @app.step(name="late", retry=Retry(1))
    def late() -> int:
        return 1

    @app.transaction(name="write", retry=Retry(1))
    def write(tx: psycopg.Connection[Any]) -> int:
        tx.execute("INSERT INTO mark VALUES ('x')")
        return 1

    jobs = [early.enqueue(), late.enqueue()]
    committed = write.enqueue()
    drain(app, dsn)
    for job, text in zip(jobs, ["no tenant", "no goodbye"], strict=True):
        with pytest.raises(JobFailed, match=f"LookupError: {text}"):
            job.result(timeout=5)
    assert committed.status() == "succeeded", "its outcome was committed with its writes, before the middleware spoke"
    assert conn.execute("SELECT count(*) FROM mark").fetchone() == (1,)
    assert violations(conn) == []


@both.def_only("nothing runs")
def test_what_is_no_middleware_is_refused() -> None:
    app = App()

    def plain(job: Current) -> None: ...

    with pytest.raises(TypeError, match="a middleware is a def with one yield"):
        app.middleware(plain)  # type: ignore[type-var]
    with pytest.raises(ValueError, match="'worker_sleep' is no event: worker_start and worker_stop are"):
        app.on("worker_sleep")  # type: ignore[arg-type]
