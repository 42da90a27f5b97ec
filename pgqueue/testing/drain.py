"""Running jobs in the process of a test. The verbs, the runtime and the application's code are the real ones; only the
processes are missing, and jobs run one after the other."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

from pgqueue.app import App, Hook
from pgqueue.context import Current, process
from pgqueue.errors import StepFailed
from pgqueue.runtime.endings import Unwind
from pgqueue.testing.places import Place
from pgqueue.testing.worker import Ran, Worker

log = logging.getLogger("pgqueue.testing")

OURS = os.path.dirname(os.path.dirname(__file__)) + os.sep
#: Out of a job's code these are not failures of the job. They are meant for pytest.
FOR_PYTEST = (KeyboardInterrupt, pytest.fail.Exception, pytest.skip.Exception, pytest.exit.Exception)


async def drain(app: App, dsn: str, place_for: Callable[[App, str, Worker], Place], limit: int | None) -> list[Ran]:
    """Be a worker until nothing is ready, or so many jobs have run."""
    worker = Worker(app, dsn)
    try:
        place = place_for(app, dsn, worker)
        try:
            with as_worker(), noticing_errors(app) as raised:
                return await _serve(app, worker, place, limit, raised)
        finally:
            await place.close()
    finally:
        worker.close()


async def _serve(app: App, worker: Worker, place: Place, limit: int | None, raised: dict[str, BaseException]) -> list[Ran]:
    ran: list[Ran] = []
    job = worker.claim() if limit != 0 else None
    if job is None:
        return worker.ended_otherwise(ran)
    await _call_hooks(app, "worker_start", place)
    try:
        while job is not None:
            settlement = await place.run(job)
            error = original(raised.pop(job.id, None))
            if isinstance(error, FOR_PYTEST):
                raise error
            ran.append(worker.settle(job, settlement, error))
            _log(ran[-1])
            job = worker.claim() if len(ran) != limit else None
        return ran + worker.ended_otherwise(ran)
    finally:
        await _call_hooks(app, "worker_stop", place)


async def _call_hooks(app: App, event: Hook, place: Place) -> None:
    for hook in app.hooks[event]:
        await place.call(hook)


def _log(ran: Ran) -> None:
    if ran.outcome in ("retry", "lost"):
        what = "will be tried again" if ran.outcome == "retry" else "was taken away while it ran"
        log.warning("job %s (%s) %s", ran.job.id, ran.job.name, what, exc_info=ran.raised)


@contextmanager
def as_worker() -> Iterator[None]:
    """This process is a worker for a while: a call of a step outside of a job is an error."""
    before = process.is_worker
    process.is_worker = True
    try:
        yield
    finally:
        process.is_worker = before


@contextmanager
def noticing_errors(app: App) -> Iterator[dict[str, BaseException]]:
    """The errors that jobs raise, by job: what is stored of them is only their description."""
    raised: dict[str, BaseException] = {}

    @contextmanager
    def notice(job: Current) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            raised[job.job_id] = error
            raise

    middleware: Callable[[Current], AbstractContextManager[None]] = notice
    app.middlewares.insert(0, middleware)
    try:
        yield raised
    finally:
        app.middlewares.remove(middleware)


def original(error: BaseException | None) -> BaseException | None:
    """The error of the user's code, where the runtime has put one of its own in front of it, and without the runtime's frames."""
    if error is None:
        return None
    if isinstance(error, (Unwind, StepFailed)) and error.__context__ is not None:
        error = error.__context__
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_frame.f_code.co_filename.startswith(OURS):
        traceback = traceback.tb_next
    return error.with_traceback(traceback or error.__traceback__)
