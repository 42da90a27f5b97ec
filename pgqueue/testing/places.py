"""Where the code of drained jobs runs. Each job has a context of its own, and an empty one, because that is what a worker gives
it: what a test has set in its context variables is not there."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any, Protocol, TypeVar

from pgqueue.app import App
from pgqueue.colour import blocking
from pgqueue.model import ClaimedJob, Settlement
from pgqueue.runtime.ground import AsyncGround, Ground
from pgqueue.testing.worker import Worker
from pgqueue.worker.runners import run_job

T = TypeVar("T")
THREADS = 10  # for what async def jobs call that is a def


class Place(Protocol):
    """One of the two below."""

    async def run(self, job: ClaimedJob) -> Settlement | None:
        """Run a job. What becomes of it."""

    async def call(self, hook: Callable[[], Any]) -> None:
        """Call a hook of the App."""

    async def close(self) -> None:
        """Close the connections."""


class InThisThread:
    """A ``def`` runs in this thread, an ``async def`` on an event loop of the drain's own. Nothing here ever suspends."""

    def __init__(self, app: App, dsn: str, worker: Worker) -> None:
        self._app = app
        self._max_bytes = worker.max_bytes
        self._ground = Ground(dsn, worker.id)
        self._runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)  # a factory: the thread's own loop stays as it is
        self._async_ground = AsyncGround(dsn, worker.id, THREADS, self._runner.get_loop())

    async def run(self, job: ClaimedJob) -> Settlement | None:
        if self._app.functions[job.name].is_async:
            code = run_job(self._app, job, self._async_ground, self._max_bytes)
            return self._runner.run(heeding_cancellation(code), context=Context())
        return Context().run(blocking, run_job(self._app, job, self._ground, self._max_bytes))

    async def call(self, hook: Callable[[], Any]) -> None:
        if inspect.iscoroutinefunction(hook):
            self._runner.run(hook(), context=Context())
        else:
            Context().run(hook)

    async def close(self) -> None:
        self._runner.run(self._app.aclose())
        self._async_ground.close()
        self._ground.close()
        self._runner.close()


class OnThisLoop:
    """An ``async def`` runs on the running event loop, a ``def`` in a thread."""

    def __init__(self, app: App, dsn: str, worker: Worker) -> None:
        self._app = app
        self._max_bytes = worker.max_bytes
        self._ground = Ground(dsn, worker.id)
        self._async_ground = AsyncGround(dsn, worker.id, THREADS)

    async def run(self, job: ClaimedJob) -> Settlement | None:
        if self._app.functions[job.name].is_async:
            code = run_job(self._app, job, self._async_ground, self._max_bytes)
        else:
            code = self._async_ground.in_thread(lambda: blocking(run_job(self._app, job, self._ground, self._max_bytes)))
        return await self._apart(heeding_cancellation(code))

    async def call(self, hook: Callable[[], Any]) -> None:
        if inspect.iscoroutinefunction(hook):
            await self._apart(hook())
        else:
            Context().run(hook)

    async def _apart(self, code: Coroutine[Any, Any, T]) -> T:
        return await asyncio.get_running_loop().create_task(code, context=Context())

    async def close(self) -> None:
        self._async_ground.close()
        self._ground.close()


async def heeding_cancellation(code: Coroutine[Any, Any, T]) -> T:
    """The runtime takes whatever comes out of a job's code for a failure of the job. A cancelled test is none."""
    result = await code
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
    return result
