"""What the running job is, for code called from it: ``current()``, and how a call of a step finds its run.

Authors' functions (functions.py) ask for the active run; the runtime sets it. Neither imports the other.
"""

from __future__ import annotations

from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol

from pgqueue.errors import OutsideJob

if TYPE_CHECKING:
    from pgqueue.functions import Function


class Run(Protocol):
    """A job being run, as seen from the code it runs."""

    job_id: str
    name: str
    queue: str

    @property
    def step_key(self) -> str: ...

    def call(self, function: Function[Any, Any], arguments: dict[str, Any]) -> Any:
        """A step or transaction called by the job's code."""

    def acall(self, function: Function[Any, Any], arguments: dict[str, Any]) -> Coroutine[Any, Any, Any]:
        """The same from async code, to be awaited."""

    def enqueue(self, descriptions: Sequence[dict[str, Any]]) -> list[str]:
        """Jobs enqueued by the job's code: ids in the same order."""

    def aenqueue(self, descriptions: Sequence[dict[str, Any]]) -> Coroutine[Any, Any, list[str]]:
        """The same from async code, to be awaited."""


_active: ContextVar[Run | None] = ContextVar("pgqueue_run", default=None)


class _Process:
    """Facts about this process. The one piece of state that belongs to no App: a fork sets it, nothing unsets it."""

    is_worker = False


process = _Process()


@contextmanager
def active(run: Run) -> Iterator[None]:
    """Code inside runs as this job."""
    token = _active.set(run)
    try:
        yield
    finally:
        _active.reset(token)


def joined_run() -> Run | None:
    """The job that the calling code belongs to, if any: what it enqueues joins that job's transaction."""
    return _active.get()


def active_run() -> Run | None:
    """The job that the calling code belongs to. In a worker process, code without one is an error: a step called from a
    thread that the user's code started would silently lose its checkpoint."""
    run = _active.get()
    if run is None and process.is_worker:
        raise OutsideJob(
            "this thread belongs to no job: pgqueue functions called in a thread of your own would lose their checkpoint. "
            "Call them from the job itself, or start the thread with contextvars.copy_context().run"
        )
    return run


class Current:
    """The running job, from inside: see ``current()``."""

    def __init__(self, run: Run) -> None:
        self._run = run

    @property
    def job_id(self) -> str:
        """The id of the job."""
        return self._run.job_id

    @property
    def name(self) -> str:
        """The name of the workflow, step or transaction that was enqueued."""
        return self._run.name

    @property
    def queue(self) -> str:
        """The queue it came from."""
        return self._run.queue

    @property
    def step_key(self) -> str:
        """``job id:seq``: the same for every try of this step and for no other step. An idempotency key for the outside world."""
        return self._run.step_key


def current() -> Current:
    """The job that this code runs in. OutsideJob where it runs in none.

    ``current().step_key`` is the idempotency key to hand to services outside of the database.
    """
    run = _active.get()
    if run is None:
        raise OutsideJob("current() was called outside of a running job")
    return Current(run)
