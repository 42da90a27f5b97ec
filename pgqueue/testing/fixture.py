"""What the fixture ``pgqueue`` gives to a test."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from datetime import timedelta
from importlib import resources
from types import TracebackType
from typing import Any, ParamSpec

import psycopg
import pytest
from psycopg import sql

from pgqueue.app import App
from pgqueue.client import AsyncClient, Client, Job
from pgqueue.colour import blocking
from pgqueue.database import connect, run
from pgqueue.errors import JobFailed
from pgqueue.functions import Enqueueable, Function
from pgqueue.housekeeper.ticks import tick_due
from pgqueue.retry import Duration, seconds
from pgqueue.testing.crash_matrix import Matrix
from pgqueue.testing.databases import copied
from pgqueue.testing.drain import drain
from pgqueue.testing.enqueued import Enqueued, Wanted, enqueued, listed
from pgqueue.testing.picture import CrashMatrix
from pgqueue.testing.places import InThisThread, OnThisLoop
from pgqueue.testing.worker import Ran

P = ParamSpec("P")
_CLOCK = (resources.files("pgqueue.testing") / "clock.sql").read_text()


class PgQueueFixture:
    """A fresh database, in which the App works as long as the test runs."""

    def __init__(self, app: App, dsn: str, server: str) -> None:
        self.app = app
        self.dsn = dsn
        self._server = server
        self._ahead = timedelta()
        self._stack = ExitStack()

    def __enter__(self) -> PgQueueFixture:
        with self._stack as stack:
            environment = stack.enter_context(pytest.MonkeyPatch.context())
            environment.setenv("PGQUEUE_DSN", self.dsn)
            self._lend_clients(stack)
            self._conn = stack.enter_context(connect(self.dsn, "pgqueue:testing"))
            self.app.load()
            run(self._conn, self.app.registration())
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._stack.close()

    def _lend_clients(self, stack: ExitStack) -> None:
        """Clients for this database, so that the App's own stay as they are, with their connections."""
        app = self.app
        before = app.client, app.async_client

        def give_back() -> None:
            app.client.close()
            _close_async(app.async_client)
            app.client, app.async_client = before

        stack.callback(give_back)
        app.client, app.async_client = Client(self.dsn), AsyncClient(self.dsn)

    def connect(self) -> psycopg.Connection[Any]:
        """A connection to the database, in autocommit mode. It is closed when the test ends, if not before."""
        return self._stack.enter_context(psycopg.connect(self.dsn, autocommit=True))

    # ---------------------------------------------------------------------------------------- what is enqueued

    def enqueued(self, f: Function[Any, Any] | None = None) -> list[Enqueued]:
        """The jobs that are enqueued and do not run yet, in the order in which they were; with ``f`` those of one function."""
        return [job for job in enqueued(self._conn, self.app) if f is None or job.name in f.known_names]

    def assert_enqueued(self, f: Enqueueable[P, Any], /, *args: P.args, **kwargs: P.kwargs) -> Enqueued:
        """Assert that a job with these arguments is enqueued, and return it. Arguments that are left out have their defaults.

        Options are said as in an enqueue: ``assert_enqueued(send_mail.options(queue="mail", delay="10m"), "ann@example.org")``.
        """
        __tracebackhide__ = True
        wanted = Wanted(f.call(*args, **kwargs))
        jobs = self.enqueued()
        found = wanted.find(jobs)
        if found is None:
            there = f"enqueued are:\n{listed(jobs)}" if jobs else "nothing is enqueued"
            raise AssertionError(f"not enqueued: {wanted}\n{there}")
        return found

    def assert_nothing_enqueued(self) -> None:
        """Assert that no job is enqueued."""
        __tracebackhide__ = True
        if jobs := self.enqueued():
            raise AssertionError(f"enqueued are:\n{listed(jobs)}")

    # --------------------------------------------------------------------------------------------- running it

    def drain(self, *, limit: int | None = None, raise_failures: bool = True) -> Counter[str]:
        """Run jobs in this process until nothing is ready, or ``limit`` have run.

        Returns how many ended how, also without being run: ``succeeded``, ``failed``, ``cancelled``. ``retry`` counts runs of
        which another one will follow, and ``suspended`` those that left to wait: for a time (see ``travel``), an event, a child.
        If a job failed, JobFailed is raised at the end, with the job's own error as its cause; ``raise_failures=False`` only
        counts it.
        """
        __tracebackhide__ = True
        _not_on_a_loop("drain() would block the event loop: in async code write await pgqueue.adrain()")
        return _counted(blocking(drain(self.app, self.dsn, InThisThread, limit)), raise_failures)

    async def adrain(self, *, limit: int | None = None, raise_failures: bool = True) -> Counter[str]:
        """``drain`` for async tests: ``async def`` jobs run on this event loop, the others in a thread."""
        __tracebackhide__ = True
        return _counted(await drain(self.app, self.dsn, OnThisLoop, limit), raise_failures)

    def travel(self, duration: Duration) -> None:
        """Move the clock of this database forward: jobs and retries that are due by then are run by the next ``drain``.

        Schedules whose time comes meanwhile enqueue their jobs. No schedule does that unless the clock was moved.
        """
        self._ahead += timedelta(seconds=seconds(duration))
        self._conn.execute(sql.SQL(_CLOCK).format(ahead=sql.Literal(self._ahead)))
        while tick_due(self._conn)[1] == 0:
            pass

    # ---------------------------------------------------------------------------------------------- crashes

    def crash_matrix(
        self,
        f: Enqueueable[..., Any],
        /,
        *args: Any,
        check: Callable[[Job[Any]], object],
        setup: Callable[[], object] = lambda: None,
        meanwhile: Callable[[Job[Any]], object] = lambda _: None,
        **kwargs: Any,
    ) -> CrashMatrix:
        """Run ``f(*args)`` once per boundary, kill it there, resume it, and call ``check(job)`` when it has ended.

        The boundaries are those before and after each step, between its effect and its checkpoint, inside COMMIT, and after
        COMMIT before the answer. Each run has a copy of the database as it is now (``connect()`` is to that copy), and processes
        of its own, which die of SIGKILL: what the code leaves in variables is gone. ``setup()`` is called before each run, for
        what is not in the database. ``meanwhile(job)`` is called when nothing can go on, to send what the job waits for; if
        still nothing can, the clock moves on until something is due.

        Returns what was tried; ``print`` shows it. AssertionError, with the same picture, if ``check`` raised (or returned
        False) after any of them. If it does so without a kill, that error comes out as it is.
        """
        __tracebackhide__ = True
        _not_on_a_loop("crash_matrix() would block the event loop: call it from a test that is a def")
        call = f.call(*args, **kwargs)
        with self._away():
            found = Matrix(self, call, self._copies(), check, setup, meanwhile).run()
        if found.broken:
            raise AssertionError(str(found))
        return found

    @contextmanager
    def _away(self) -> Iterator[None]:
        """Without our own connections to this database."""
        self._conn.close()
        self.app.client.close()
        _close_async(self.app.async_client)
        try:
            yield
        finally:
            self._conn = self._stack.enter_context(connect(self.dsn, "pgqueue:testing"))

    def _copies(self) -> Callable[[], AbstractContextManager[None]]:
        """A block in which this fixture works in a fresh copy of its database. Nobody may be connected to that meanwhile."""
        original = self.dsn

        @contextmanager
        def copy() -> Iterator[None]:
            try:
                with copied(self._server, original) as dsn, self._moved(dsn):
                    yield
            except psycopg.errors.ObjectInUse:
                raise RuntimeError(
                    "crash_matrix() copies the database of the test, and a connection to it is open: close it before "
                    "(with pgqueue.connect() as conn: ...), and let check and setup open their own, which are to the copy"
                ) from None

        return copy

    @contextmanager
    def _moved(self, dsn: str) -> Iterator[None]:
        """This fixture works in another database."""
        before = self.dsn, self._ahead, self._stack, self._conn
        self.dsn, self._stack = dsn, ExitStack()
        try:
            with self:
                yield
        finally:
            self.dsn, self._ahead, self._stack, self._conn = before


def _not_on_a_loop(message: str) -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise RuntimeError(message)


def _counted(jobs: Sequence[Ran], raise_failures: bool) -> Counter[str]:
    __tracebackhide__ = True
    failed = [ran for ran in jobs if ran.outcome == "failed"]
    if failed and raise_failures:
        first, *others = [JobFailed(ran.error or {}, f"job {ran.job.id} ({ran.job.name})") for ran in failed]
        for other in others:
            first.add_note(f"and {other}")
        raise first from failed[0].raised
    return Counter(ran.outcome for ran in jobs)


def _close_async(client: AsyncClient) -> None:
    """Close what a test has opened on event loops that are still there, though none runs at this moment."""
    for loop in list(client.pool._pools):
        if not loop.is_closed() and not loop.is_running():
            loop.run_until_complete(client.close())
