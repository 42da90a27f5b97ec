"""The plugin for pytest: projects as users have them, whose tests are run by a pytest of their own on the real PostgreSQL."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator

import psycopg
import pytest

from pgqueue.testing import databases

pytest_plugins = ["pytester"]

SHOP = """
import asyncio
import contextvars
import threading

import psycopg

from pgqueue import App, Cancel, Queue, Retry, current, sleep, wait_event
from pgqueue.errors import OutsideJob

app = App("postgresql:///the_real_shop", queues=[Queue("mail")])
tenant = contextvars.ContextVar("tenant", default="nobody")
happened = []


@app.on("worker_start")
def start() -> None:
    happened.append("start")


@app.on("worker_stop")
async def stop() -> None:
    happened.append("stop")


@app.middleware
def note(job):
    happened.append(job.name)
    yield


@app.step(queue="mail", retry=Retry(3, jitter=False))
def send_mail(to: str, template: str = "welcome") -> str:
    if to == "nobody":
        raise LookupError("no such address")
    return f"{template} sent to {to}"


@app.workflow
def reminder(to: str) -> str:
    return send_mail(to)


@app.workflow
def remind(to: str) -> list[str]:
    sleep("1d")
    return [reminder(to), wait_event(f"answer-of-{to}", timeout="7d")]


@app.transaction
def book(tx: psycopg.Connection, order_id: int) -> int:
    tx.execute("insert into booking values (%s)", (order_id,))
    send_mail.enqueue("accounts")
    return order_id


@app.workflow(key="order_id")
def fulfil(order_id: int) -> str:
    book(order_id)
    return send_mail(f"customer {order_id}")


@app.step
async def fetch(url: str) -> str:
    await asyncio.sleep(0)
    return url


@app.workflow
async def crawl(url: str) -> list[str]:
    return [await fetch(url), await send_mail.aio("the author"), tenant.get()]


@app.workflow
async def fails() -> None:
    raise ValueError("this one fails")


@app.step(retry=Retry(1))
def bad_step() -> None:
    raise ValueError("the reason")


@app.workflow
def fails_too() -> None:
    bad_step()


@app.step
def gives_up() -> None:
    raise Cancel("for good")


@app.step
def threads() -> str:
    said = []

    def call() -> None:
        try:
            send_mail("ann")
        except OutsideJob:
            said.append("outside")

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    return said[0]


@app.step
def remembers() -> str:
    before = tenant.get()
    tenant.set("the job's")
    return before


@app.step
def again(left: int) -> None:
    if left:
        again.enqueue(left - 1)


@app.step
async def patient() -> None:
    await asyncio.sleep(60)


@app.step
def hook() -> None:
    replace_me()


def replace_me() -> None: ...
"""

CONFTEST = """
import psycopg
import pytest


@pytest.fixture(scope="session")
def pgqueue_app():
    from shop import app
    return app


@pytest.fixture(scope="session")
def pgqueue_schema(pgqueue_template):
    with psycopg.connect(pgqueue_template) as conn:
        conn.execute("create table booking (order_id int)")
"""


class Project:
    """A user's project with its tests."""

    def __init__(self, pytester: pytest.Pytester) -> None:
        self._pytester = pytester
        pytester.makepyfile(shop=SHOP)
        pytester.makeconftest(CONFTEST)

    def conftest(self, text: str) -> None:
        self._pytester.makeconftest(text)

    def test(self, text: str, *options: str, **outcomes: int) -> pytest.RunResult:
        """Run pytest on this file of tests, with warnings as errors. ``outcomes``: how many have to pass, to fail, ..."""
        path = self._pytester.makepyfile(test_shop=text)
        if importlib.util.find_spec("pytest_asyncio") and "no:asyncio" not in options:
            options = ("-o", "asyncio_default_fixture_loop_scope=function", *options)  # it warns where this is not said
        options = ("-W", "error", "-p", "no:hypothesispytest", *options)  # a plugin that takes seconds to load
        result = self._pytester.runpytest_subprocess(*options, path, timeout=120)
        result.assert_outcomes(**outcomes)
        return result


@pytest.fixture
def bare(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project whose tests have no server but an embedded one."""
    for name in [name for name in os.environ if name.startswith("PGQUEUE_") and name != "PGQUEUE_PG_BIN"]:
        monkeypatch.delenv(name)
    return Project(pytester)


@pytest.fixture(scope="module")
def quick_server() -> Iterator[str]:
    """Not the one that other tests crash: its databases are made faster."""
    with databases.server(os.environ.get("PGQUEUE_TEST_DSN")) as dsn:
        yield dsn


@pytest.fixture
def project(quick_server: str, bare: Project, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    """A project whose tests are given a server. They leave nothing on it."""
    monkeypatch.setenv("PGQUEUE_TEST_DSN", quick_server)
    with psycopg.connect(quick_server, autocommit=True) as conn:
        before = conn.execute("SELECT datname FROM pg_database").fetchall()
        yield bare
        assert conn.execute("SELECT datname FROM pg_database").fetchall() == before


# ------------------------------------------------------------------------------------------------- what is enqueued


def test_what_is_enqueued(project: Project) -> None:
    project.test(
        """
        from datetime import UTC, datetime

        import psycopg
        import pytest
        import shop
        from pgqueue import Client


        def test_arguments_are_compared_as_values(pgqueue):
            job = shop.send_mail.enqueue("ann")
            assert pgqueue.assert_enqueued(shop.send_mail, "ann").id == job.id
            pgqueue.assert_enqueued(shop.send_mail, to="ann")
            pgqueue.assert_enqueued(shop.send_mail, "ann", template="welcome")
            for wrong in ({"to": "bob"}, {"to": "ann", "template": "goodbye"}):
                with pytest.raises(AssertionError):
                    pgqueue.assert_enqueued(shop.send_mail, **wrong)
            with pytest.raises(AssertionError):
                pgqueue.assert_enqueued(shop.fetch, "ann")
            with pytest.raises(TypeError, match="missing a required argument"):
                pgqueue.assert_enqueued(shop.send_mail)


        def test_options_are_compared_where_they_are_said(pgqueue):
            at = datetime(2100, 1, 2, tzinfo=UTC)
            shop.send_mail.options(delay="90m", priority=2).enqueue("ann")
            shop.send_mail.options(at=at, queue="default", key="k").enqueue("bob")
            for right in ({}, {"delay": "1h30m"}, {"delay": 5400, "priority": 2, "queue": "mail"}):
                pgqueue.assert_enqueued(shop.send_mail.options(**right), "ann")
            pgqueue.assert_enqueued(shop.send_mail.options(at=at, queue="default", key="k"), "bob")
            for wrong in ({"delay": "1h"}, {"priority": 5}, {"queue": "default"}, {"key": "k"}, {"at": at}):
                with pytest.raises(AssertionError):
                    pgqueue.assert_enqueued(shop.send_mail.options(**wrong), "ann")
            with pytest.raises(TypeError, match="compares the options queue, .*, not retry"):
                pgqueue.assert_enqueued(shop.send_mail.options(retry=shop.Retry(2)), "ann")


        def test_the_list(pgqueue):
            shop.app.enqueue_many(shop.send_mail.map([f"{n:03}" for n in range(50)]))
            shop.fulfil.options(delay="1h").enqueue(7)
            mails = pgqueue.enqueued(shop.send_mail)
            assert [mail.arguments for mail in mails] == [{"to": f"{n:03}", "template": "welcome"} for n in range(50)]
            assert {(mail.name, mail.queue, mail.priority, mail.due) for mail in mails} == {("shop.send_mail", "mail", 5, None)}
            last = pgqueue.enqueued()[-1]
            assert (last.name, last.arguments, last.key) == ("shop.fulfil", {"order_id": 7}, "7")
            assert (last.due - last.enqueued_at).total_seconds() == 3600
            assert str(last).startswith("shop.fulfil(order_id=7)  queue='default' priority=5 key='7' due=")
            assert len(pgqueue.enqueued()) == 51


        def test_producers_without_the_code(pgqueue):
            with Client() as client:  # PGQUEUE_DSN names the database
                client.enqueue("shop.send_mail", {"to": 7})
                client.enqueue("other.program", {"a": 1}, queue="mail")
            assert [(job.name, job.arguments) for job in pgqueue.enqueued()] == [
                ("shop.send_mail", {"to": 7}), ("other.program", {"a": 1})]
            with pytest.raises(AssertionError):
                pgqueue.assert_enqueued(shop.send_mail, "7")


        def test_transactions(pgqueue):
            pgqueue.assert_nothing_enqueued()
            with psycopg.connect(pgqueue.dsn) as conn:
                shop.fulfil.using(conn).enqueue(7)
                pgqueue.assert_nothing_enqueued()
                conn.commit()
                pgqueue.assert_enqueued(shop.fulfil, 7)
            with pytest.raises(AssertionError):
                pgqueue.assert_nothing_enqueued()
        """,
        passed=5,
    )


def test_a_failed_assertion_says_what_is_there(project: Project) -> None:
    result = project.test(
        """
        import shop


        def test_another_one(pgqueue):
            shop.send_mail.enqueue("ann")
            shop.fulfil.enqueue(7)
            pgqueue.assert_enqueued(shop.send_mail.options(queue="mail"), "bob")


        def test_none(pgqueue):
            pgqueue.assert_enqueued(shop.send_mail, "bob")


        def test_too_many(pgqueue):
            shop.app.enqueue_many(shop.send_mail.map(map(str, range(30))))
            pgqueue.assert_nothing_enqueued()
        """,
        failed=3,
    )
    result.stdout.fnmatch_lines([
        ">       pgqueue.assert_enqueued(shop.send_mail.options(queue=*",
        "E       AssertionError: not enqueued: shop.send_mail(to='bob', template='welcome')  queue='mail'",
        "E       enqueued are:",
        "E           shop.send_mail(to='ann', template='welcome')  queue='mail' priority=5",
        "E           shop.fulfil(order_id=7)  queue='default' priority=5 key='7'",
        "E       AssertionError: not enqueued: shop.send_mail(to='bob', template='welcome')",
        "E       nothing is enqueued",
        "E           shop.send_mail(to='19', template='welcome')  queue='mail' priority=5",
        "E           ... and 10 more",
    ])  # fmt: skip
    result.stdout.no_fnmatch_line("*pgqueue/testing*")


# ------------------------------------------------------------------------------------------------------- running it


def test_draining(project: Project) -> None:
    project.test(
        """
        import os

        import pytest
        import shop
        from pgqueue import JobCancelled, JobFailed
        from pgqueue.context import process


        @pytest.fixture(autouse=True)
        def forget():
            shop.happened.clear()


        def test_every_kind_of_function_runs(pgqueue):
            order, pages = shop.fulfil.enqueue(7), shop.crawl.enqueue("a")
            assert pgqueue.drain() == {"succeeded": 3}
            assert order.result() == "welcome sent to customer 7"
            assert pages.result() == ["a", "welcome sent to the author", "nobody"]
            assert pgqueue.connect().execute("select * from booking").fetchall() == [(7,)]
            assert shop.happened == ["start", "shop.fulfil", "shop.crawl", "shop.send_mail", "stop"]
            pgqueue.assert_nothing_enqueued()
            assert pgqueue.drain() == {}


        def test_each_test_has_a_fresh_database(pgqueue):
            pgqueue.assert_nothing_enqueued()
            assert pgqueue.connect().execute("select count(*) from booking").fetchone() == (0,)
            assert pgqueue.dsn == shop.app.dsn == os.environ["PGQUEUE_DSN"]
            assert pgqueue.drain() == {}
            assert shop.happened == []


        def test_nothing_is_left_behind(pgqueue):
            shop.tenant.set("the test's")
            job, other = shop.remembers.enqueue(), shop.crawl.enqueue("a")
            assert pgqueue.drain()["succeeded"] == 2
            assert job.result() == "nobody", "a worker knows nothing of the context of a producer"
            assert other.result()[-1] == "nobody"
            assert shop.tenant.get() == "the test's"
            assert not process.is_worker
            assert len(shop.app.middlewares) == 1
            conn = pgqueue.connect()
            assert conn.execute("select count(*) from pgqueue.workers").fetchone() == (0,)
            assert conn.execute("select count(*) from pgqueue.violations").fetchone() == (0,)


        def test_the_app_is_as_it_was():
            assert shop.app.dsn == "postgresql:///the_real_shop"
            assert "PGQUEUE_DSN" not in os.environ


        def test_limit(pgqueue):
            shop.again.enqueue(4)
            assert pgqueue.drain(limit=2) == {"succeeded": 2}
            pgqueue.assert_enqueued(shop.again, 2)
            assert pgqueue.drain(limit=0) == {}
            assert pgqueue.drain() == {"succeeded": 3}


        def test_failures_are_raised_when_all_has_run(pgqueue):
            jobs = [shop.fails_too.enqueue(), shop.gives_up.enqueue(), shop.fails.enqueue(), shop.fetch.enqueue("a")]
            with pytest.raises(JobFailed, match="shop.fails_too.* failed: StepFailed: .* ValueError: the reason") as error:
                pgqueue.drain()
            assert repr(error.value.__cause__) == "ValueError('the reason')"
            assert "shop.fails) failed: ValueError: this one fails" in error.value.__notes__[0]
            assert [job.status() for job in jobs] == ["failed", "cancelled", "failed", "succeeded"]
            shop.fails.enqueue()
            assert pgqueue.drain(raise_failures=False) == {"failed": 1}


        def test_an_input_that_does_not_fit_is_a_failure_too(pgqueue):
            shop.app.client.enqueue("shop.fetch", {"uri": "a"})
            with pytest.raises(JobFailed, match="BadValue: the input of shop.fetch"):
                pgqueue.drain()


        def test_cancelled_and_unknown_jobs_are_in_nobodys_way(pgqueue):
            later = shop.send_mail.options(delay="1h").enqueue("ann")
            ready = shop.send_mail.enqueue("bob")
            assert ready.cancel() and later.cancel()
            shop.app.client.enqueue("other.program", {}, queue="mail")
            shop.send_mail.enqueue("eve")
            assert pgqueue.drain() == {"succeeded": 1, "cancelled": 2}
            assert (ready.status(), later.status()) == ("cancelled", "cancelled")
            assert [job.name for job in pgqueue.enqueued()] == ["other.program"]


        def test_a_thread_of_a_job_belongs_to_no_job(pgqueue):
            job = shop.threads.enqueue()
            pgqueue.drain()
            assert job.result() == "outside"


        @pytest.mark.parametrize("meant", [KeyboardInterrupt, pytest.fail.Exception, pytest.skip.Exception])
        def test_what_is_meant_for_pytest_is_no_failure_of_the_job(pgqueue, monkeypatch, meant):
            def stop():
                raise meant("here")

            monkeypatch.setattr(shop, "replace_me", stop)
            job = shop.hook.enqueue()
            with pytest.raises(meant, match="here"):
                pgqueue.drain()
            assert (job.status(), job.attempts()) == ("ready", [])
            assert shop.happened == ["start", "shop.hook", "stop"]
        """,
        passed=12,
    )


def test_schedules_rest_until_the_test_travels(project: Project) -> None:
    project.test(
        """
        import pytest
        from pgqueue import App, current

        app = App()
        seen = []


        @app.schedule("0 9 * * *", misfire="all")
        @app.schedule(every="1s", name="often", input={"what": "often"})
        @app.workflow(name="report")
        def report(what: str = "daily") -> None:
            seen.append((what, current().meta["due_at"][11:]))


        @pytest.fixture(scope="session")
        def pgqueue_app():
            return app


        def test_two_days(pgqueue):
            import time

            time.sleep(1.1)
            assert pgqueue.drain() == {}
            pgqueue.travel("2d")
            pgqueue.assert_enqueued(report)
            assert pgqueue.drain() == {"succeeded": 3}
            assert sorted(what for what, _ in seen) == ["daily", "daily", "often"]
            assert {at for what, at in seen if what == "daily"} == {"09:00:00+00:00"}
            pgqueue.travel("3s")
            assert pgqueue.drain()["succeeded"] in (3, 4)  # real time goes by as well
            pgqueue.assert_nothing_enqueued()
        """,
        passed=1,
    )


def test_what_ends_without_a_run_is_counted_too(project: Project) -> None:
    project.test(
        """
        import pytest
        import shop
        from pgqueue import JobFailed


        def test_cancelled(pgqueue):
            job = shop.fulfil.enqueue(7)
            job.cancel()
            assert pgqueue.drain() == {"cancelled": 1}
            assert pgqueue.drain() == {}


        def test_out_of_time(pgqueue):
            shop.fulfil.options(timeout="1h", delay="5m").enqueue(7)
            pgqueue.connect().execute("update pgqueue.scheduled set run_at = run_at + interval '2h'")
            pgqueue.travel("3h")
            with pytest.raises(JobFailed, match="JobTimeout"):
                pgqueue.drain()


        def test_what_waits_is_under_way(pgqueue):
            shop.remind.enqueue("ann@example.org")
            pgqueue.assert_enqueued(shop.remind, "ann@example.org")
            assert pgqueue.drain() == {"suspended": 1}
            pgqueue.assert_nothing_enqueued()
        """,
        passed=3,
    )


def test_time_travel(project: Project) -> None:
    result = project.test(
        """
        from datetime import timedelta

        import pytest
        import shop
        from pgqueue import JobFailed


        def test_delays(pgqueue):
            shop.send_mail.options(delay="1h").enqueue("ann")
            assert pgqueue.drain() == {}
            pgqueue.travel("59m")
            assert pgqueue.drain() == {}
            pgqueue.travel(timedelta(minutes=1))
            assert pgqueue.drain() == {"succeeded": 1}
            shop.send_mail.options(delay="1h").enqueue("ann")
            assert pgqueue.drain() == {}
            pgqueue.travel(3600)
            assert pgqueue.drain() == {"succeeded": 1}


        def test_retries(pgqueue):
            job = shop.send_mail.enqueue("nobody")
            assert pgqueue.drain() == {"retry": 1}
            [waiting] = pgqueue.enqueued()
            assert waiting.id == job.id and waiting.due is not None
            assert pgqueue.drain() == {}
            pgqueue.travel("2s")
            assert pgqueue.drain() == {"retry": 1}
            pgqueue.travel("3s")
            assert pgqueue.drain() == {}
            pgqueue.travel("1s")
            with pytest.raises(JobFailed, match="no such address"):
                pgqueue.drain()
            assert len(job.attempts()) == 3


        def test_waits(pgqueue):
            job = shop.remind.enqueue("ann")
            assert pgqueue.drain() == {"suspended": 1}
            pgqueue.travel("23h")
            assert pgqueue.drain() == {}
            pgqueue.travel("1h")
            assert pgqueue.drain() == {"suspended": 2, "succeeded": 1}, "it waits for an event now, and has waited for a child"
            shop.app.send_event("answer-of-ann", "yes")
            assert pgqueue.drain() == {"succeeded": 1}
            assert job.result(timeout=5) == ["welcome sent to ann", "yes"]

            late = shop.remind.enqueue("bob")
            pgqueue.drain()
            pgqueue.travel("1d")
            pgqueue.drain()
            pgqueue.travel("8d")
            with pytest.raises(JobFailed, match="did not come"):
                pgqueue.drain()


        def test_the_next_test_lives_in_the_present(pgqueue):
            shop.send_mail.options(delay="1s").enqueue("ann")
            assert pgqueue.drain() == {}


        def test_a_try_that_failed_is_shown(pgqueue):
            shop.send_mail.enqueue("nobody")
            assert pgqueue.drain() == {"succeeded": 1}
        """,
        passed=4,
        failed=1,
    )
    result.stdout.fnmatch_lines(
        ["WARNING *(shop.send_mail) will be tried again", "*shop.py*in send_mail", "LookupError: no such address"]
    )


# ------------------------------------------------------------------------------------------------------ async tests

ASYNC_TESTS = """
    import asyncio

    import pytest
    import shop
    from pgqueue import JobFailed


    async def story(pgqueue):
        shop.tenant.set("the test's")
        pages, order = await shop.crawl.aenqueue("a"), await shop.fulfil.aenqueue(7)
        with pytest.raises(RuntimeError, match="await pgqueue.adrain()"):
            pgqueue.drain()
        assert await pgqueue.adrain() == {"succeeded": 3}
        assert await pages.result() == ["a", "welcome sent to the author", "nobody"]
        assert await order.result() == "welcome sent to customer 7"
        assert shop.happened == ["start", "shop.crawl", "shop.fulfil", "shop.send_mail", "stop"]
        await shop.fails.aenqueue()
        with pytest.raises(JobFailed, match="this one fails"):
            await pgqueue.adrain()

        patient = await shop.patient.aenqueue()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await pgqueue.adrain()
        assert await patient.status() == "ready"
        assert await patient.attempts() == []


    @pytest.fixture(autouse=True)
    def forget():
        shop.happened.clear()
"""


def test_async_tests_need_no_other_plugin(project: Project) -> None:
    body = """
    def test_story(pgqueue):
        asyncio.run(story(pgqueue))


    def test_again(pgqueue):
        asyncio.run(story(pgqueue))
    """
    project.test(ASYNC_TESTS + body, "-p", "no:anyio", "-p", "no:asyncio", passed=2)


def test_beside_anyio(project: Project) -> None:
    body = """
    @pytest.fixture(scope="session")
    def anyio_backend():
        return "asyncio"


    @pytest.mark.anyio
    async def test_story(pgqueue):
        await story(pgqueue)
    """
    project.test(ASYNC_TESTS + body, passed=1)


@pytest.mark.skipif(importlib.util.find_spec("pytest_asyncio") is None, reason="pytest-asyncio is not installed")
def test_beside_pytest_asyncio(project: Project) -> None:
    body = """
    @pytest.mark.asyncio
    async def test_story(pgqueue):
        await story(pgqueue)


    @pytest.mark.asyncio(loop_scope="session")
    @pytest.mark.parametrize("again", [False, True])
    async def test_on_one_loop(pgqueue, again):
        await story(pgqueue)
    """
    project.test(ASYNC_TESTS + body, passed=3)


# --------------------------------------------------------------------------------------------------- what it needs


def test_without_an_app(project: Project) -> None:
    project.conftest("")
    result = project.test("def test_something(pgqueue): ...", errors=1)
    result.stdout.fnmatch_lines([
        'the fixture "pgqueue" does not know your App. Say which one it is in conftest.py:',
        '    @pytest.fixture(scope="session")',
        "    def pgqueue_app():",
        "        from shop.tasks import app",
        "        return app",
    ])  # fmt: skip


def test_something_else_than_an_app(project: Project) -> None:
    project.conftest("import pytest\n\n@pytest.fixture\ndef pgqueue_app():\n    return 'shop:app'\n")
    result = project.test("def test_something(pgqueue): ...", errors=1)
    result.stdout.fnmatch_lines(["the fixture pgqueue_app has to return a pgqueue App, not 'shop:app'"])


def test_without_a_server(bare: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGQUEUE_PG_BIN", "/nowhere")
    result = bare.test("def test_something(pgqueue): ...", errors=1)
    result.stdout.fnmatch_lines(
        ["*tests need a PostgreSQL: set PGQUEUE_TEST_DSN to a server * or install pgqueue-workflows?embedded?*"]
    )


def test_an_embedded_server(bare: Project) -> None:
    bare.test(
        """
        import shop


        def test_something(pgqueue):
            shop.fulfil.enqueue(7)
            assert pgqueue.drain() == {"succeeded": 2}
        """,
        passed=1,
    )


def test_each_worker_of_xdist_has_its_own_databases(project: Project) -> None:
    project.test(
        """
        import pytest
        import shop


        @pytest.mark.parametrize("number", range(2))
        def test_something(pgqueue, number):
            shop.fulfil.enqueue(number)
            pgqueue.travel("1h")
            assert pgqueue.drain() == {"succeeded": 2}
            assert pgqueue.connect().execute("select * from booking").fetchall() == [(number,)]
        """,
        "--numprocesses=2",
        passed=2,
    )


def test_who_does_not_use_it_pays_nothing(project: Project) -> None:
    project.conftest("")
    project.test(
        """
        import sys


        def test_nothing_is_imported(request):
            assert "pgqueue.testing.plugin" in sys.modules
            assert not {"psycopg", "msgspec", "click", "pgqueue.app", "pgqueue.testing.fixture"} & set(sys.modules)
        """,
        passed=1,
    )
