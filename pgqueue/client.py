"""For producers: Client enqueues by name without having the code, and Job is the handle of one job. AsyncClient and AsyncJob are
the same for async code.

Imports neither worker nor runtime. What both colours do is written once (see colour.py): the pools differ. Long, because each
method of a handle is there for both colours, with its errors.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar, Unpack

import msgspec
import psycopg

from pgqueue import protocol
from pgqueue.colour import blocking
from pgqueue.context import Run, joined_run
from pgqueue.database import AsyncPool, Pool, errors_translated, run, run_async
from pgqueue.errors import BadValue, JobCancelled, JobFailed, NotPermitted, ResultTimeout, UniqueConflict, UnknownJob
from pgqueue.failpoints import failpoint
from pgqueue.functions import Options, describe_options
from pgqueue.ids import new_job_id
from pgqueue.model import ENDED, AttemptRecord, Progress, State, StepRecord
from pgqueue.results import let_go, results_of
from pgqueue.retry import Duration, seconds
from pgqueue.values import Codec, read_error

R = TypeVar("R")
_ANY = Codec(Any)


class _Door(Protocol):
    """A pool of either colour."""

    async def run(self, call: protocol.Call[Any]) -> Any: ...

    async def until(self, future: Future[None], seconds: float | None) -> None: ...

    @property
    def dsn(self) -> str: ...


def _described(name: str, input: dict[str, Any] | None, options: Options) -> dict[str, Any]:
    if input is not None and not isinstance(input, dict):
        raise BadValue("the input of a job is a dict of parameter names and values")
    text = _ANY.encode(input or {}, f"the input of {name}")
    return {"name": name, "input": msgspec.Raw(text.encode()), **describe_options(options)}


def encoded(value: Any, what: str) -> str:
    """JSON text of a value without a type hint. BadValue where it would not come back unchanged."""
    return _ANY.encode(value, what)


def _sending(descriptions: Sequence[dict[str, Any]]) -> protocol.Call[list[str]]:
    """Ids are made here, not in the database: a repetition after a lost connection then finds the same jobs."""
    return protocol.enqueue_workflows(msgspec.json.encode([{"job_id": new_job_id(), **d} for d in descriptions]).decode())


def _checked_id(id: str) -> str:
    try:
        return str(uuid.UUID(id))
    except (ValueError, AttributeError, TypeError):
        raise UnknownJob(f"{id!r} is not the id of a job (a UUID)") from None


class Client:
    """A producer that does not need the application's code.

    ``Client(dsn).enqueue("shop.tasks.fulfil", {"order_id": 7}, queue="payments")``
    """

    def __init__(self, dsn: str | None = None) -> None:
        self.pool = Pool(dsn)

    def enqueue(
        self,
        name: str,
        input: dict[str, Any] | None = None,
        *,
        conn: psycopg.Connection[Any] | None = None,
        **options: Unpack[Options],
    ) -> Job[Any]:
        """Enqueue a job by name. ``input`` holds parameter names and values; with ``conn`` it joins that transaction.

        Errors: UnknownWorkflow where the name is not registered and no queue is given; UnknownQueue; BadValue; IdConflict.
        """
        return Job(self.pool, self.send([_described(name, input, options)], conn)[0], _ANY)

    def send(self, descriptions: Sequence[dict[str, Any]], conn: psycopg.Connection[Any] | None = None) -> list[str]:
        """Enqueue what these descriptions ask for, all or none. The ids, in the same order."""
        if not descriptions:
            return []
        call = _sending(descriptions)
        failpoint("enqueue.before")
        with errors_translated():
            if conn is not None:
                ids = run(conn, call)
                failpoint("enqueue.inserted")
            else:
                ids = blocking(self.pool.run(call))
                failpoint("enqueue.committed")
        return ids

    def send_event(self, key: str, value: Any = None, *, conn: psycopg.Connection[Any] | None = None) -> bool:
        """Say that something has happened: see ``App.send_event``."""
        call = protocol.send_event(key, encoded(value, f"the value of event {key!r}"))
        with errors_translated():
            return run(conn, call) if conn is not None else blocking(self.pool.run(call))

    def job(self, id: str) -> Job[Any]:
        """The handle of a job. Nothing is asked of the database yet."""
        return Job(self.pool, _checked_id(id), _ANY)

    def close(self) -> None:
        """Close the connections of this process."""
        let_go(self.pool.given_dsn)
        self.pool.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()


class AsyncClient:
    """A Client for async code.

    ``await AsyncClient(dsn).enqueue("shop.tasks.fulfil", {"order_id": 7}, queue="payments")``
    """

    def __init__(self, dsn: str | None = None) -> None:
        self.pool = AsyncPool(dsn)

    async def enqueue(
        self,
        name: str,
        input: dict[str, Any] | None = None,
        *,
        conn: psycopg.AsyncConnection[Any] | None = None,
        **options: Unpack[Options],
    ) -> AsyncJob[Any]:
        """Enqueue a job by name, as ``Client.enqueue`` does."""
        return AsyncJob(self.pool, (await self.send([_described(name, input, options)], conn))[0], _ANY)

    async def send(self, descriptions: Sequence[dict[str, Any]], conn: psycopg.AsyncConnection[Any] | None = None) -> list[str]:
        """Enqueue what these descriptions ask for, all or none. The ids, in the same order."""
        if not descriptions:
            return []
        call = _sending(descriptions)
        failpoint("enqueue.before")
        with errors_translated():
            if conn is not None:
                ids = await run_async(conn, call)
                failpoint("enqueue.inserted")
            else:
                ids = await self.pool.run(call)
                failpoint("enqueue.committed")
        return ids

    async def send_event(self, key: str, value: Any = None, *, conn: psycopg.AsyncConnection[Any] | None = None) -> bool:
        """Say that something has happened: see ``App.send_event``."""
        call = protocol.send_event(key, encoded(value, f"the value of event {key!r}"))
        with errors_translated():
            return await (run_async(conn, call) if conn is not None else self.pool.run(call))

    def job(self, id: str) -> AsyncJob[Any]:
        """The handle of a job. Nothing is asked of the database yet."""
        return AsyncJob(self.pool, _checked_id(id), _ANY)

    async def close(self) -> None:
        """Close the connections of this event loop."""
        let_go(self.pool.given_dsn)
        await self.pool.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


def _workflow(timeout: Duration | None) -> Run | None:
    """The workflow whose body asks for a result."""
    run = joined_run()
    if run is None or not run.in_body:
        return None
    if timeout is not None:
        raise TypeError("result(timeout=...) is not for workflows, whose waits have to replay: give the job a timeout")
    return run


class _Handle(Generic[R]):
    """What a handle of either colour asks, as coroutines."""

    def __init__(self, door: _Door, id: str, codec: Codec) -> None:
        self._door = door
        self._codec = codec
        self.id = id

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.id!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Handle) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    async def _ask(self, call: protocol.Call[Any]) -> Any:
        with errors_translated():
            return await self._door.run(call)

    def _missing(self) -> UnknownJob:
        return UnknownJob(f"there is no job {self.id}: its transaction did not commit (yet), or it was pruned")

    async def _status(self) -> State:
        row = await self._ask(protocol.job_row(self.id))
        if row is None:
            raise self._missing()
        state: State = row[protocol.JOB_COLUMNS.index("state")]
        return state

    async def _cancel(self, hard: bool, timeout: Duration | None) -> bool:
        requested = await self._answer(protocol.cancel([self.id], hard)) == "requested"
        if not requested or timeout is None:
            return requested
        status: str = (await self._ended(timeout))[1]
        return status == "cancelled"

    async def _result(self, timeout: Duration | None) -> R:
        name, status, _, result, error = await self._ended(timeout)
        if status == "succeeded":
            value: R = self._codec.decode(result, f"the result of {name}")
            return value
        if status == "failed":
            raise JobFailed(read_error(error), f"job {self.id} ({name})")
        raise JobCancelled(f"job {self.id} ({name}) was cancelled")

    async def _ended(self, timeout: Duration | None) -> tuple[Any, ...]:
        """How the job has ended, when it has."""
        deadline = None if timeout is None else time.monotonic() + seconds(timeout)
        results = results_of(self._door.dsn)
        while True:
            row = await self._ask(protocol.job_value(self.id))
            if row is None:
                raise self._missing()
            if row[1] != "active":
                return tuple(row)
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                try:
                    state = f": it is {await self._status()}"
                except NotPermitted:  # who has been granted results only
                    state = ""
                raise ResultTimeout(
                    f"job {self.id} ({row[0]}) has not ended within {seconds(timeout or 0):g} s, and goes on{state}"
                )
            ended = results.expect(self.id)
            try:
                await self._door.until(ended, left)
            finally:
                results.forget(self.id, ended)

    async def _progress(self) -> Progress | None:
        said = await self._ask(protocol.progress(self.id))
        if said is None:
            await self._status()  # or there is no such job
        return None if said is None else Progress(*said)

    async def _page(self, stream: str, after: int, follow: bool) -> list[tuple[int, Any]]:
        """What comes next in a stream. Empty: nothing more comes."""
        results = results_of(self._door.dsn)
        while True:
            heard = results.expect(self.id) if follow else None
            try:
                over = await self._status() in ENDED
                rows = await self._ask(protocol.read_stream(self.id, stream, after, 1000))
                if rows or over or heard is None:
                    return [(pos, _ANY.decode(text, f"a value of stream {stream!r}")) for pos, text in rows]
                await self._door.until(heard, 1.0)
            finally:
                if heard is not None:
                    results.forget(self.id, heard)

    async def _steps(self) -> list[StepRecord]:
        return [
            StepRecord(seq, name, status, None if result is None else _ANY.decode(result, name), error and read_error(error))
            for seq, name, status, result, error in await self._ask(protocol.steps(self.id))
        ]

    async def _attempts(self) -> list[AttemptRecord]:
        rows = await self._ask(protocol.attempt_rows(self.id))
        return [AttemptRecord(kind, seq, error and read_error(error), *rest) for kind, seq, error, *rest in rows]

    def _was_sent(self, answer: str) -> bool:
        if answer == "unknown":
            raise self._missing()
        return answer == "sent"

    async def _requeue(self) -> bool:
        answer = await self._answer(protocol.requeue([self.id]))
        if answer == "taken":
            raise UniqueConflict(f"job {self.id} cannot run again: another job is the one of its kind now. Wait for its end.")
        return answer == "requeued"

    async def _answer(self, call: protocol.Call[Any]) -> str:
        answer: str = dict(await self._ask(call))[self.id]
        if answer == "unknown":
            raise UnknownJob(f"there is no job {self.id}")
        return answer


class Job(_Handle[R]):
    """One job, from outside."""

    def status(self) -> State:
        """Where the job is now: ready, scheduled, running, waiting, succeeded, failed or cancelled. UnknownJob if nowhere."""
        return blocking(self._status())

    def result(self, timeout: Duration | None = None) -> R:
        """Wait for the job to end and return its result.

        Errors: ResultTimeout after ``timeout`` (None: wait for ever); JobFailed; JobCancelled; UnknownJob. In a workflow it is a
        wait that holds no process, and takes no ``timeout``.
        """
        workflow = _workflow(timeout)
        if workflow is not None:
            return workflow.job_result(self.id, self._codec)  # type: ignore[no-any-return]
        return blocking(self._result(timeout))

    def steps(self) -> list[StepRecord]:
        """The checkpoints so far, in order."""
        return blocking(self._steps())

    def attempts(self) -> list[AttemptRecord]:
        """Every run that did not succeed, in order: failed attempts, crashes, and requeues."""
        return blocking(self._attempts())

    def send(self, topic: str, value: Any = None, *, conn: psycopg.Connection[Any] | None = None) -> bool:
        """Send a message to the job, which it gets with ``receive(topic)``: each once, in the order in which they were sent. With
        ``conn`` (or in a transaction of a job) it is sent if and only if that commits. False: the job has ended.
        """
        call = protocol.send_message(self.id, topic, encoded(value, "the message"))
        workflow = joined_run() if conn is None else None
        with errors_translated():
            if conn is not None:
                return self._was_sent(run(conn, call))
            return self._was_sent(workflow.tell("pgqueue.send", call) if workflow else blocking(self._door.run(call)))

    def progress(self) -> Progress | None:
        """How far the job is, by its own account (see ``current().progress``). None: it has said nothing."""
        return blocking(self._progress())

    def stream(self, name: str = "default", *, after: int = 0, follow: bool = True) -> Iterator[Any]:
        """The values that the job writes with ``stream.write(value)``, in order, until it has ended. ``after``: without the first
        so many. ``follow=False``: only what is there now.
        """
        while page := blocking(self._page(name, after, follow)):
            yield from (value for _, value in page)
            after = page[-1][0]

    def cancel(self, *, hard: bool = False, timeout: Duration | None = None) -> bool:
        """Ask the job and its children to end. True: requested; where it runs, it ends before its next step. False: it had ended
        already. ``hard``: it ends at once; the worker that runs it is killed, and the worker's other jobs are given back.

        With ``timeout`` this waits for the end: True if the job was cancelled, False if it came to another end before.
        ResultTimeout if it goes on for longer.
        """
        return blocking(self._cancel(hard, timeout))

    def requeue(self) -> bool:
        """Run a failed or cancelled job again, from where it stopped. False: it has not ended, or it succeeded.
        UniqueConflict: it is unique until it has ended, and another job is the one of its kind now.
        """
        return blocking(self._requeue())

    def rerun(self, from_step: int = 1) -> Job[R]:
        """Run an ended job again as a new job, whose handle this returns. It keeps the checkpoints of the steps before
        ``from_step`` (1 to one more than the job has; 1: runs everything again), and their children, and no others.

        Errors: UnknownJob; BadValue for a step that cannot be the first; PgQueueError where the job has not ended, or children
        that it would have to keep were pruned. In a workflow call it in a step.
        """
        return Job(self._door, blocking(self._ask(protocol.rerun(self.id, from_step, new_job_id()))), self._codec)


class AsyncJob(_Handle[R]):
    """One job, from outside, for async code: what ``aenqueue`` returns."""

    async def status(self) -> State:
        """Where the job is now: see ``Job.status``."""
        return await self._status()

    async def result(self, timeout: Duration | None = None) -> R:
        """Wait for the job to end and return its result: see ``Job.result``."""
        workflow = _workflow(timeout)
        if workflow is not None:
            return await workflow.ajob_result(self.id, self._codec)  # type: ignore[no-any-return]
        return await self._result(timeout)

    async def steps(self) -> list[StepRecord]:
        """The checkpoints so far, in order."""
        return await self._steps()

    async def attempts(self) -> list[AttemptRecord]:
        """Every run that did not succeed, in order: failed attempts, crashes, and requeues."""
        return await self._attempts()

    async def send(self, topic: str, value: Any = None, *, conn: psycopg.AsyncConnection[Any] | None = None) -> bool:
        """Send a message to the job: see ``Job.send``."""
        call = protocol.send_message(self.id, topic, encoded(value, "the message"))
        workflow = joined_run() if conn is None else None
        with errors_translated():
            if conn is not None:
                return self._was_sent(await run_async(conn, call))
            return self._was_sent(await (workflow.atell("pgqueue.send", call) if workflow else self._door.run(call)))

    async def progress(self) -> Progress | None:
        """How far the job is: see ``Job.progress``."""
        return await self._progress()

    async def stream(self, name: str = "default", *, after: int = 0, follow: bool = True) -> AsyncIterator[Any]:
        """The values that the job writes: see ``Job.stream``."""
        while page := await self._page(name, after, follow):
            for _, value in page:
                yield value
            after = page[-1][0]

    async def cancel(self, *, hard: bool = False, timeout: Duration | None = None) -> bool:
        """Ask the job to end: see ``Job.cancel``."""
        return await self._cancel(hard, timeout)

    async def requeue(self) -> bool:
        """Run a failed or cancelled job again: see ``Job.requeue``."""
        return await self._requeue()

    async def rerun(self, from_step: int = 1) -> AsyncJob[R]:
        """Run an ended job again as a new job: see ``Job.rerun``."""
        return AsyncJob(self._door, await self._ask(protocol.rerun(self.id, from_step, new_job_id())), self._codec)
