"""What the fixture ``pgqueue`` gives to a test."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import timedelta
from importlib import resources
from types import TracebackType
from typing import Any, ParamSpec

import psycopg
import pytest
from psycopg import sql

from pgqueue.app import App
from pgqueue.client import AsyncClient, Client
from pgqueue.colour import blocking
from pgqueue.database import connect, run
from pgqueue.errors import JobFailed
from pgqueue.functions import Enqueueable, Function
from pgqueue.housekeeper.ticks import tick_due
from pgqueue.retry import Duration, seconds
from pgqueue.testing.drain import drain
from pgqueue.testing.enqueued import Enqueued, Wanted, enqueued, listed
from pgqueue.testing.places import InThisThread, OnThisLoop
from pgqueue.testing.worker import Ran

P = ParamSpec("P")
_CLOCK = (resources.files("pgqueue.testing") / "clock.sql").read_text()


class PgQueueFixture:
    """A fresh database, in which the App works as long as the test runs."""

    def __init__(self, app: App, dsn: str) -> None:
        self.app = app
        self.dsn = dsn
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

        Returns how many ended how: ``succeeded``, ``failed``, ``cancelled``. ``retry`` counts runs of which another one will
        follow, and ``suspended`` those that left to wait: for a time (see ``travel``), an event, a child. If a job failed,
        JobFailed is raised at the end, with the job's own error as its cause; ``raise_failures=False`` only counts it.
        """
        __tracebackhide__ = True
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            pass
        else:
            raise RuntimeError("drain() would block the event loop: in async code write await pgqueue.adrain()")
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
