"""Those who run a worker's jobs: threads for ``def``, an event loop for ``async def``."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable
from contextvars import Context
from functools import partial
from typing import Any, Protocol

from pgqueue.app import App
from pgqueue.colour import blocking
from pgqueue.model import ClaimedJob, Settlement
from pgqueue.runtime.failure import describe
from pgqueue.runtime.ground import AsyncGround, Ground
from pgqueue.runtime.run import JobRun
from pgqueue.runtime.session import Begin
from pgqueue.runtime.transact import beginning
from pgqueue.worker.inbox import Half, Inbox

log = logging.getLogger(__name__)

LOOK_AGAIN = 0.02  # seconds until a job is looked at again that waits for others to end

Done = Callable[[Half, ClaimedJob, Settlement | None, float], None]
"""Called with a job, what becomes of it, and how long it took."""


class Runner(Protocol):
    """One half of a worker at work."""

    half: Half

    def watch(self, limit: Callable[[int, int, float | None], None]) -> None: ...

    def start(self) -> None: ...

    def stop(self) -> None: ...


async def run_job(
    app: App, job: ClaimedJob, ground: Ground, max_bytes: int, upcoming: Callable[[], Begin | None] = lambda: None
) -> Settlement | None:
    """Run a job. Whatever happens, it returns what becomes of it."""
    try:
        return await JobRun(app, job, ground, max_bytes, upcoming).execute()
    except Exception as error:  # a bug of ours: this job fails with it, the worker goes on
        log.exception("job %s (%s): internal error", job.id, job.name)
        return Settlement(job, "failed", None, 0, '{"failed_seqs":[],"errors":[{"error":' + describe(error) + "}]}")


class Threads:
    """The half for ``def``. The first thread is the main thread of the process, which calls ``work``."""

    def __init__(self, app: App, ground: Ground, count: int, max_bytes: int) -> None:
        self.half = Half(count, self._wake)
        self._app = app
        self._ground = ground
        self._max_bytes = max_bytes
        self._arrived = threading.Condition()
        self._stopped = False
        self._others = [threading.Thread(target=self.work, name=f"pgqueue-job-{i}", daemon=True) for i in range(2, count + 1)]

    def attach(self, inbox: Inbox, done: Done) -> None:
        """Where the jobs come from, and whom to tell of their ends."""
        self._inbox, self._done = inbox, done

    def watch(self, limit: Callable[[int, int, float | None], None]) -> None:
        """Whom to tell until when a job may run."""
        self._ground.watch = limit

    def start(self) -> None:
        for thread in self._others:
            thread.start()

    def work(self) -> None:
        """Run one job after the other, until there are to be no more."""
        promised: list[ClaimedJob] = []

        def upcoming() -> Begin | None:
            job = self._inbox.promise(self.half, self._is_one_transaction)
            if job is None:
                return None
            promised.append(job)
            return beginning(self._app.functions[job.name], job)

        while not self._stopped or promised:
            job = self._take_promised(promised.pop()) if promised else self._inbox.take(self.half)
            if job is None:
                self._wait()
                continue
            began = time.perf_counter()
            run = run_job(self._app, job, self._ground, self._max_bytes, upcoming)
            settlement = Context().run(blocking, run)  # what one job sets is not there for the next
            self._done(self.half, job, settlement, time.perf_counter() - began)

    def _is_one_transaction(self, job: ClaimedJob) -> bool:
        function = self._app.functions[job.name]
        return function.kind == "transaction" and function.definition.isolation != "serializable"

    def _take_promised(self, job: ClaimedJob) -> ClaimedJob | None:
        if self._inbox.take_promised(self.half, job):
            return job
        blocking(self._ground.sessions.abandon())
        return None

    def _wait(self) -> None:
        with self._arrived:
            if self.half.waiting:
                self._arrived.wait(LOOK_AGAIN)
            elif not self._stopped:
                self._arrived.wait()

    def _wake(self, count: int) -> None:
        with self._arrived:
            self._arrived.notify(count)

    def stop(self) -> None:
        with self._arrived:
            self._stopped = True
            self._arrived.notify_all()


class Loop:
    """The half for ``async def``: an event loop in a thread of its own."""

    def __init__(self, app: App, dsn: str, worker: str, concurrency: int, max_bytes: int) -> None:
        self.half = Half(concurrency, self._wake)
        self._app = app
        self._max_bytes = max_bytes
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="pgqueue-loop", daemon=True)
        self._make_ground = partial(AsyncGround, dsn, worker, concurrency)
        self._tasks: set[asyncio.Task[None]] = set()
        self._limit: Callable[[int, int, float | None], None] | None = None

    def attach(self, inbox: Inbox, done: Done) -> None:
        """Where the jobs come from, and whom to tell of their ends."""
        self._inbox, self._done = inbox, done

    def watch(self, limit: Callable[[int, int, float | None], None]) -> None:
        """Whom to tell until when a job may run."""
        self._limit = limit

    def start(self) -> None:
        self._thread.start()

    def call(self, hook: Callable[[], Any]) -> None:
        """Run a coroutine function on the loop, and wait for it."""
        asyncio.run_coroutine_threadsafe(hook(), self._loop).result()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=5)

    def _serve(self) -> None:
        try:
            asyncio.set_event_loop(self._loop)
            self._ground = self._make_ground()
            self._loop.run_forever()
        except BaseException:  # SystemExit in a task of the user's, say: without a loop the worker would stand still
            log.exception("the event loop has ended")
            os._exit(70)

    def _wake(self, _: int) -> None:
        self._loop.call_soon_threadsafe(self._begin)

    def _begin(self) -> None:
        """On the loop: begin what can begin."""
        while (job := self._inbox.take(self.half)) is not None:
            task = self._loop.create_task(self._run(job), context=Context())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        if self.half.waiting and self.half.running < self.half.capacity:
            self._loop.call_later(LOOK_AGAIN, self._begin)

    async def _run(self, job: ClaimedJob) -> None:
        began = time.perf_counter()
        self._ground.watch = self._limit
        settlement = await run_job(self._app, job, self._ground, self._max_bytes)
        self._done(self.half, job, settlement, time.perf_counter() - began)
        if self.half.waiting:
            self._begin()
