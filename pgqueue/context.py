"""What the running job is, for code called from it: ``current()``, and how a call of a step finds its run.

Authors' functions (functions.py) ask for the active run; the runtime sets it. Neither imports the other.
"""

from __future__ import annotations

import logging
from collections.abc import Coroutine, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeVar

from pgqueue.errors import OutsideJob
from pgqueue.values import clean

if TYPE_CHECKING:
    from pgqueue.functions import Call, Function
    from pgqueue.protocol import Call as DatabaseCall
    from pgqueue.values import Codec

T = TypeVar("T")


class Wait(NamedTuple):
    """What a workflow waits for."""

    kind: Literal["sleep", "event", "message", "job", "children"]
    key: str
    seconds: float | None  # None: for ever
    what: str  # in words

    @property
    def name(self) -> str:
        """Of its checkpoint."""
        return f"pgqueue.{self.kind}"


class Run(Protocol):
    """A job being run, as seen from the code it runs."""

    job_id: str
    name: str
    queue: str

    @property
    def step_key(self) -> str: ...

    @property
    def deadline(self) -> datetime | None: ...

    def log_fields(self) -> dict[str, Any]:
        """What records of the log have about it."""

    @property
    def meta(self) -> dict[str, Any]: ...

    def call(self, function: Function[Any, Any], arguments: dict[str, Any]) -> Any:
        """A step or transaction called by the job's code."""

    def acall(self, function: Function[Any, Any], arguments: dict[str, Any]) -> Coroutine[Any, Any, Any]:
        """The same from async code, to be awaited."""

    def enqueue(self, descriptions: Sequence[dict[str, Any]]) -> list[str]:
        """Jobs enqueued by the job's code: ids in the same order."""

    def aenqueue(self, descriptions: Sequence[dict[str, Any]]) -> Coroutine[Any, Any, list[str]]:
        """The same from async code, to be awaited."""

    @property
    def in_body(self) -> bool:
        """Is the caller the workflow's own code, and not that of a step?"""

    def tell(self, name: str, call: DatabaseCall[T]) -> T:
        """A verb of the job's code: in the open transaction, else (in a workflow's body) as a step of that name."""

    def atell(self, name: str, call: DatabaseCall[T]) -> Coroutine[Any, Any, T]: ...

    def report(self, fraction: float | None, note: str | None) -> None:
        """How far the job is."""

    def write(self, stream: str, value: str) -> None:
        """Append JSON to a stream of the job: in the open transaction, as a step (in a workflow's body), or soon."""

    def awrite(self, stream: str, value: str) -> Coroutine[Any, Any, None]: ...

    def wait(self, wait: Wait) -> Any:
        """What a wait in a workflow's body comes to."""

    def await_(self, wait: Wait) -> Coroutine[Any, Any, Any]: ...

    def gather(self, calls: Sequence[Call[Any]], return_exceptions: bool) -> list[Any]:
        """Run calls at once: steps in this job, workflows as children."""

    def agather(self, calls: Sequence[Call[Any]], return_exceptions: bool) -> Coroutine[Any, Any, list[Any]]: ...

    def patched(self, name: str) -> bool:
        """Has this run not gone beyond this place with older code?"""

    def apatched(self, name: str) -> Coroutine[Any, Any, bool]: ...

    def job_result(self, job: str, codec: Codec) -> Any:
        """The result of another job, waited for by a workflow."""

    def ajob_result(self, job: str, codec: Codec) -> Coroutine[Any, Any, Any]: ...


MOST_NOTE = 1000
_active: ContextVar[Run | None] = ContextVar("pgqueue_run", default=None)


class _Process:
    """Facts about this process. The one piece of state that belongs to no App: a fork sets it, nothing unsets it."""

    is_worker = False
    role = "pgqueue"  # supervisor, housekeeper or worker
    worker: str | None = None


process = _Process()


@contextmanager
def active(run: Run) -> Iterator[None]:
    """Code inside runs as this job."""
    token = _active.set(run)
    try:
        yield
    finally:
        _active.reset(token)


def log_fields() -> dict[str, Any]:
    """What records of the log have about the job that the calling code belongs to."""
    run = _active.get()
    return {} if run is None else run.log_fields()


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


class Bound(logging.LoggerAdapter[logging.Logger]):
    """A logger whose records know their job, in whatever thread they are written."""

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        kwargs["extra"] = {**(self.extra or {}), **(kwargs.get("extra") or {})}
        return msg, kwargs


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
    def deadline(self) -> datetime | None:
        """When the time of the job is over (by the database's clock); None: it may take as long as it likes."""
        return self._run.deadline

    @property
    def meta(self) -> dict[str, Any]:
        """What the producer attached with ``options(meta=...)``, or the job that enqueued this one: a trace context, a tenant."""
        return self._run.meta

    def progress(self, fraction: float | None = None, note: str | None = None) -> None:
        """Say how far the job is: a fraction from 0 to 1, a note, or both. ``job.progress()`` has it within a second. Cheap: it
        is sent a few times a second, and only the last word counts. ValueError for what is no fraction.
        """
        if fraction is not None and not 0 <= fraction <= 1:
            raise ValueError(f"progress({fraction!r}): the fraction goes from 0 to 1")
        if note is not None and ("\0" in note or len(note) > MOST_NOTE):
            raise ValueError(f"progress(): the note has up to {MOST_NOTE} characters, and no NUL")
        self._run.report(fraction, clean(note))

    @property
    def logger(self) -> logging.LoggerAdapter[logging.Logger]:
        """Writes to the log of the worker; each record has the job, its workflow and queue, and the step.

        ``current().logger.info("sent to %s", address)``. What of the input is said in it is the caller's decision: pgqueue itself
        never logs inputs or results.
        """
        return Bound(logging.getLogger("pgqueue.job"), self._run.log_fields())

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
