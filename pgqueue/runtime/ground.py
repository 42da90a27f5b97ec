"""Where the code of a job runs: in a thread of its own (``def``), or on the worker's event loop (``async def``)."""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from pgqueue.runtime.reports import Reports
from pgqueue.runtime.session import AsyncSession, BlockingSession, Sessions, undisturbed

T = TypeVar("T")
MOST_THREADS = 32


class Ground:
    """For jobs whose function is a ``def``: their code runs in the thread that runs them, and blocks it."""

    is_async = False

    watch: Callable[[int, int, float | None], None] | None = None
    """Who ends this process when a job has taken too long: told its place, the step, and the moment (None: no limit any more)."""

    def __init__(self, dsn: str, worker: str) -> None:
        self.sessions = self.blocking_sessions = Sessions(BlockingSession, dsn, worker)
        self.reports = Reports(self.blocking_sessions)

    @property
    def on_loop(self) -> bool:
        """Is the caller on the event loop of the jobs?"""
        return False

    async def in_thread(self, code: Callable[[], T]) -> T:
        """Run it where it may block."""
        return code()

    async def others_first(self) -> None:
        """Let other jobs have their turn."""

    def close(self) -> None:
        """Close all connections."""
        self.sessions.close()


class AsyncGround(Ground):
    """For jobs whose function is an ``async def``. Made on the event loop, or told it. Their ``def`` steps run in threads."""

    is_async = True

    def __init__(self, dsn: str, worker: str, concurrency: int, loop: asyncio.AbstractEventLoop | None = None) -> None:
        numbers = itertools.count(1_000_000)  # names of sessions: other ones than those of the worker's threads
        self.sessions = Sessions(AsyncSession, dsn, worker, numbers)
        self.blocking_sessions = Sessions(BlockingSession, dsn, worker, numbers)
        self.reports = Reports(self.blocking_sessions)
        self._loop = loop or asyncio.get_event_loop()
        self._loop_thread = threading.get_ident()
        this = weakref.ref(self)
        os.register_at_fork(after_in_child=lambda: _in_the_child(this()))
        self._threads = ThreadPoolExecutor(min(concurrency, MOST_THREADS), "pgqueue-aio")

    @property
    def on_loop(self) -> bool:
        return threading.get_ident() == self._loop_thread

    async def in_thread(self, code: Callable[[], T]) -> T:
        def outcome() -> tuple[T | None, BaseException | None]:  # a future cannot carry StopIteration
            try:
                return code(), None
            except BaseException as error:  # noqa: BLE001 -- raised where it is waited for
                return None, error

        context = contextvars.copy_context()
        running = asyncio.get_running_loop().run_in_executor(self._threads, context.run, outcome)
        # A thread cannot be stopped: whoever cancels waits until it has ended, and its result counts.
        result, error = await undisturbed(running)
        if error is not None:
            raise error
        return result  # type: ignore[return-value]  # there is no error

    async def others_first(self) -> None:
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            pass  # see undisturbed()

    def end_in_the_child(self) -> None:
        """A job's code has forked, and this is the child. It has a copy of the loop with other jobs in it, which are not to run
        here: whatever is awaited next is the end."""
        if self.on_loop and self._loop.is_running():
            getattr(self._loop, "_ready", deque[object]()).clear()
            self._loop.call_soon(os._exit, 0)

    def close(self) -> None:
        self.sessions.close()
        self.blocking_sessions.close()
        self._threads.shutdown(wait=False)


def _in_the_child(ground: AsyncGround | None) -> None:
    if ground is not None:
        ground.end_in_the_child()
