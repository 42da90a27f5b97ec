"""One claimed job, from its input to what becomes of it.

A run holds the job's claim. It calls the function, replays the steps that have a checkpoint, runs the next ones, and ends
with a Settlement. When the connection is lost it forgets what it knows and replays from the database: a reconnect is a
small crash. (Longer than other modules: all that can end a run, and must agree about it, is in one place.)

Written once, as coroutines, for ``def`` and ``async def`` (see colour.py).
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Coroutine, Sequence
from contextlib import ExitStack
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import msgspec
import psycopg

from pgqueue import protocol
from pgqueue.colour import blocking
from pgqueue.context import Current, active
from pgqueue.database import backoff
from pgqueue.errors import (
    BadValue,
    Cancel,
    ClaimLost,
    NonDeterministic,
    OutsideJob,
    PgQueueError,
    StepFailed,
    WrongColour,
)
from pgqueue.failpoints import failpoint
from pgqueue.functions import AsyncTransaction, Definition, Function, Transaction
from pgqueue.model import ClaimedJob, Settlement
from pgqueue.retry import Retry
from pgqueue.runtime.failure import describe, failed_steps
from pgqueue.runtime.ground import Ground
from pgqueue.runtime.history import History, Recorded
from pgqueue.runtime.session import Begin, Restart
from pgqueue.runtime.transact import Conflict, transact
from pgqueue.values import clean, read_error

if TYPE_CHECKING:
    from pgqueue.app import App

log = logging.getLogger(__name__)


MOST_RESTARTS = 4
"""In a row; then the job is given back for a second."""


class Unwind(BaseException):
    """Leaves the user's code because the run is over for now, with what becomes of the job."""

    def __init__(self, settlement: Settlement | None) -> None:
        self.settlement = settlement


@dataclass(eq=False)
class OpenStep:
    """The step whose code runs now."""

    seq: int
    thread: int  # that it was begun in
    tx: Any = None  # its connection, if it is a transaction


_open_step: ContextVar[OpenStep | None] = ContextVar("pgqueue_step", default=None)
_thread: ContextVar[int | None] = ContextVar("pgqueue_thread", default=None)  # that pgqueue has chosen for a def in async code


class _Inside:
    """A step is open. (Not a generator: this is on the way of every step.)"""

    __slots__ = ("_run", "_step", "_token")

    def __init__(self, run: JobRun, step: OpenStep) -> None:
        self._run = run
        self._step = step

    def __enter__(self) -> None:
        self._run.open_step = self._step
        self._token = _open_step.set(self._step)

    def __exit__(self, *_: object) -> None:
        _open_step.reset(self._token)
        self._run.open_step = None


class JobRun:
    """One job, as long as this worker holds it. What user code sees of it is ``context.Run``."""

    def __init__(
        self,
        app: App,
        job: ClaimedJob,
        ground: Ground,
        max_bytes: int,
        upcoming: Callable[[], Begin | None] = lambda: None,
        came_back: bool | None = None,
    ) -> None:
        self.job_id = job.id
        self.name = job.name
        self.queue = job.queue
        self.app = app
        self.job = job
        self.ground = ground
        self.max_bytes = max_bytes
        self.upcoming = upcoming  # asked at the end of a job that is one transaction: how does the next one begin?
        self.history = History(ground.sessions, job, came_back)
        self._pid = os.getpid()
        self._ending: BaseException | None = None
        self.open_step: OpenStep | None = None

    # ------------------------------------------------------------------------------------------ the whole job

    async def execute(self) -> Settlement | None:
        """Run it. None: nothing is left to settle, because it committed with its own transaction, or the claim is lost."""
        run, tries = self, 0
        while True:
            try:
                with active(run):
                    return await run._whole()
            except Unwind as unwind:
                return unwind.settlement
            except ClaimLost:
                log.warning("job %s: the claim is lost, this run's results are discarded", self.job_id)
                return None
            except Restart as lost:
                if await self.ground.sessions.resolve(self.job_id, self.job.token, lost.session) != "held":
                    return None
                tries += 1
                log.warning(
                    "job %s (%s): the connection was lost, and the job begins again: %s", self.job_id, self.name, lost.__cause__
                )
                if tries > MOST_RESTARTS:  # others may run meanwhile, and somebody may want to cancel it; this counts as nothing
                    return run._settlement("retry", {"delay": 1.0})
                await self.ground.sessions.pause(backoff(tries))
            finally:
                run._ending = OutsideJob(f"job {self.job_id} has ended, or begun again: a thread or a task has outlived its run")
            run = JobRun(self.app, self.job, self.ground, self.max_bytes, self.upcoming, came_back=True)

    async def _whole(self) -> Settlement | None:
        failpoint("dispatch.before_run")
        function = self.app.functions[self.name]
        try:
            arguments = function.input.decode(self.job.input, f"the input of {self.name}")
        except BadValue as error:
            return await self._ended_badly(error, None)
        try:
            wrapped = self._wrapped if self.app.middlewares else self._body
            value = await wrapped(function, arguments)
            self._check_ending()
            if function.kind == "transaction":
                return None
            return Settlement(self.job, "succeeded", self.result_text(function, value), self.history.seen)
        except (Unwind, Restart, ClaimLost):
            raise
        except BaseException as error:  # noqa: BLE001 -- also SystemExit and the like: a job cannot end its worker that way
            self._check_ending()
            return await self._ended_badly(error, function)

    async def _wrapped(self, function: Function[Any, Any], arguments: dict[str, Any]) -> Any:
        ended = False
        with ExitStack() as middlewares:
            for middleware in self.app.middlewares:
                middlewares.enter_context(middleware(Current(self)))
            value = await self._body(function, arguments)
            ended = True
        self._check_ending()
        if not ended:
            raise PgQueueError("a middleware has swallowed the error of this job: let it out, or raise another")
        return value

    async def _body(self, function: Function[Any, Any], arguments: dict[str, Any]) -> Any:
        if function.kind == "workflow":
            value = await self.invoke(function, **arguments)
            self._check_ending()
            if self.open_step is not None:
                raise OutsideJob(f"the workflow returned while step {self.open_step.seq} was running: await every step")
            await self.history.check_complete()
            return value
        with self._inside(0):
            if function.kind == "transaction":
                return await self._as_transaction(function, 0, arguments, whole=True)
            return await self.invoke(function, **arguments)

    async def _ended_badly(self, error: BaseException, function: Function[Any, Any] | None) -> Settlement:
        """A job that raised: it is cancelled, tried again, or has failed."""
        detail: dict[str, Any] = {"error": msgspec.Raw(describe(error).encode()), "failed_seqs": failed_steps(error)}
        if isinstance(error, Cancel):
            return self._settlement("cancelled", detail)
        if function is not None:
            policy = self._policy(function)
            failed = await self.ground.sessions.run(protocol.attempts(self.job_id, None)) + 1
            if policy.again(failed, error):
                return self._settlement("retry", {**detail, "delay": policy.wait(failed)})
        kind = type(error).__qualname__  # the message may hold payload
        log.warning('job %s (%s) failed: %s (see "pgqueue show %s")', self.job_id, self.name, kind, self.job_id)
        return self._settlement("failed", detail)

    def _policy(self, function: Function[Any, Any]) -> Retry:
        said = (self.job.policy or {}).get("retry")
        own = function.definition.retry
        return own if said is None else Retry(**said, only=own.only, never=own.never)

    def _settlement(self, how: Any, detail: dict[str, Any]) -> Settlement:
        return Settlement(self.job, how, None, self.history.seen, msgspec.json.encode(detail).decode())

    def only_in_the_worker(self) -> None:
        """Where a job's code forked and its child came back here: the child ends. The connection belongs to its parent."""
        if os.getpid() != self._pid:
            os._exit(0)

    def _check_ending(self) -> None:
        self.only_in_the_worker()
        if self._ending is not None:
            raise self._ending

    def _end(self, ending: BaseException) -> NoReturn:
        """Leave the user's code for good: whatever it catches, its next call comes back here."""
        self._ending = ending
        raise ending

    # ------------------------------------------------------------------------------------- what the code calls

    @property
    def step_key(self) -> str:
        step = _open_step.get()
        if step is None:
            raise OutsideJob("current().step_key is for the code of a step: in the body of a workflow there is none")
        return f"{self.job_id}:{step.seq}"

    def call(self, function: Function[Any, Any], arguments: dict[str, Any]) -> Any:
        """A step or transaction called by the job's code: replayed, or run and checkpointed."""
        self.only_in_the_worker()
        if self.ground.on_loop:
            raise WrongColour(
                f"{function.name} is a def, and a call of it would block the event loop: in async code write "
                f"await {function.short_name}.aio(...), which runs it in a thread"
            )
        if self.ground.is_async and _open_step.get() is None:
            raise WrongColour(
                f"{function.name} was called in a thread of an async workflow: call it from the workflow itself, with "
                f"await {function.short_name}.aio(...)"
            )
        return blocking(self._call(function, self._number(function), arguments))

    def acall(self, function: Function[Any, Any], arguments: dict[str, Any]) -> Coroutine[Any, Any, Any]:
        """The same, to be awaited. The step has its number from now on, whenever it is awaited."""
        self.only_in_the_worker()
        if not self.ground.on_loop:
            raise WrongColour(
                f"{function.name} has to be awaited, and was called in a def: make the caller an async def, or this one a def"
            )
        return self._call(function, self._number(function), arguments)

    def _number(self, function: Function[Any, Any]) -> int | None:
        """The number of the step that begins with this call. None: it is a plain call, a part of the step it is called from."""
        self._check_ending()
        if function.kind == "workflow":
            raise PgQueueError(f"{function.name}: a workflow cannot be called from a job yet; enqueue it instead")
        if _open_step.get() is None:
            self._check_free(function)
            return self.history.give()
        return None

    def _check_free(self, function: Function[Any, Any]) -> None:
        if self.open_step is not None:
            raise OutsideJob(
                f"{function.name} was called while step {self.open_step.seq} was running: a workflow runs one step at a time"
            )

    async def _call(self, function: Function[Any, Any], seq: int | None, arguments: dict[str, Any]) -> Any:
        self._check_ending()
        if seq is None:
            return await self._nested(function, arguments)
        self._check_free(function)
        with self._inside(seq):
            recorded = await self._find(function, seq)
            if recorded is not None:
                await self.ground.others_first()  # also so that a second step beside it is an error in a replay too
                return self._replayed(function, seq, recorded)
            failpoint("step.between")
            if function.kind == "transaction":
                return await self._as_transaction(function, seq, arguments, whole=False)
            return await self._as_step(function, seq, arguments)

    async def _find(self, function: Function[Any, Any], seq: int) -> Recorded | None:
        try:
            return await self.history.find(seq, function.name, function.known_names)
        except NonDeterministic as error:  # must not be caught by the workflow, which would go on with wrong results
            self._end(Unwind(await self._ended_badly(error, None)))
        except Restart as restart:
            self._end(restart)

    async def _nested(self, function: Function[Any, Any], arguments: dict[str, Any]) -> Any:
        """Inside a step another one is a plain call: it is part of that step."""
        step = self._own_step(function.name)
        if (_thread.get() or step.thread) != threading.get_ident():
            raise OutsideJob(f"{function.name} was called from a thread of your own: call steps from the workflow itself")
        if function.kind != "transaction":
            return await self.invoke(function, **arguments)
        if step.tx is None:
            raise OutsideJob(
                f"{function.name} is a transaction and was called inside a step, which has none: call it from the workflow"
            )
        if function.is_async != isinstance(step.tx, psycopg.AsyncConnection):
            raise WrongColour(
                f"{function.name} is {'an async def' if function.is_async else 'a def'}, and the transaction that it was called "
                "in is not: it cannot use that connection"
            )
        return await self.invoke(function, step.tx, **arguments)

    async def invoke(self, function: Function[Any, Any], /, *args: Any, **kwargs: Any) -> Any:
        """The user's function where it belongs: on the event loop, in this thread, or, out of async code, in one for it."""
        if function.is_async:
            return await function.fn(*args, **kwargs)
        if not self.ground.on_loop:
            return function.fn(*args, **kwargs)

        def in_thread() -> Any:
            _thread.set(threading.get_ident())
            return function.fn(*args, **kwargs)

        return await self.ground.in_thread(in_thread)

    def enqueue(self, descriptions: Sequence[dict[str, Any]]) -> list[str]:
        """Jobs enqueued by the job's code: in the open transaction, else (in a workflow's body) as a step of their own."""
        self._check_ending()
        if self.ground.on_loop:
            raise WrongColour("enqueue() would block the event loop: in async code write await f.aenqueue(...)")
        if _open_step.get() is not None:
            tx = self._own_step("enqueue()").tx
            if isinstance(tx, psycopg.AsyncConnection):
                raise WrongColour(
                    "enqueue() in a thread cannot join the transaction of an async def: await f.aenqueue(...) in it"
                )
            return self.app.client.send(descriptions, tx)
        result: list[str] = self.call(_enqueue_step(self.app), {"descriptions": descriptions})
        return result

    def aenqueue(self, descriptions: Sequence[dict[str, Any]]) -> Coroutine[Any, Any, list[str]]:
        """The same, to be awaited."""
        self._check_ending()
        if not self.ground.on_loop:
            raise WrongColour("aenqueue() has to be awaited, and was called in a def: use enqueue()")
        if _open_step.get() is not None:
            return self.app.async_client.send(descriptions, self._own_step("aenqueue()").tx)
        return self.acall(_async_enqueue_step(self.app), {"descriptions": descriptions})

    def _own_step(self, what: str) -> OpenStep:
        """The step that the caller is a part of, if it is still open."""
        step = _open_step.get()
        if step is None or step is not self.open_step:
            raise OutsideJob(f"{what} was called from a thread or a task that outlived its step: end it before the step returns")
        return step

    def _inside(self, seq: int) -> _Inside:
        """A block in which the code of this step runs."""
        return _Inside(self, OpenStep(seq, threading.get_ident()))

    def lend(self, connection: Any) -> None:
        """The open step has this connection."""
        self.only_in_the_worker()
        step = _open_step.get()
        assert step is not None  # noqa: S101 -- a transaction runs inside a step
        step.tx = connection

    # -------------------------------------------------------------------------------------------------- steps

    def _replayed(self, function: Function[Any, Any], seq: int, recorded: Recorded) -> Any:
        result, error = recorded
        if result is None:
            raise StepFailed(read_error(error), function.name, seq)
        return function.result.decode(result, f"the result of {function.name}")

    async def _as_step(self, function: Function[Any, Any], seq: int, arguments: dict[str, Any]) -> Any:
        failpoint("step.before_effect")
        try:
            text = self.result_text(function, await self.invoke(function, **arguments))
        except (Unwind, Restart, ClaimLost):
            raise
        except BaseException as error:  # noqa: BLE001 -- also SystemExit: it is the step that failed, not the worker
            self.only_in_the_worker()
            return await self._step_failed(function, seq, error)
        self.only_in_the_worker()
        failpoint("step.after_effect")
        await self._store(function, seq, text, None)
        failpoint("step.checkpointed")
        return function.result.decode(text, f"the result of {function.name}")

    async def _as_transaction(self, function: Function[Any, Any], seq: int, arguments: dict[str, Any], whole: bool) -> Any:
        tries = 0
        while True:
            try:
                text, cancelled = await self._transact(function, seq, arguments, whole)
            except Conflict:
                tries += 1
                if tries > 10:  # hand the worker to another job for a while; this counts as nothing
                    log.warning(
                        "job %s: %s meets another transaction's locks or writes again and again", self.job_id, function.name
                    )
                    self._end(Unwind(self._settlement("retry", {"delay": 1.0})))
                await self.ground.sessions.pause(min(0.5, 0.005 * 2**tries))
            except (Unwind, Restart, ClaimLost) as ending:
                self._end(ending)
            except BaseException as error:
                if whole:
                    raise
                return await self._step_failed(function, seq, error)
            else:
                if whole:
                    return None
                self._stored(seq, cancelled)
                return function.result.decode(text, f"the result of {function.name}")

    async def _transact(self, function: Function[Any, Any], seq: int, arguments: dict[str, Any], whole: bool) -> tuple[str, bool]:
        if function.is_async or not self.ground.on_loop:
            return await transact(self, self.ground.sessions, function, seq, arguments, whole)
        # A def in async code: all of the transaction happens in a thread, on a connection that blocks.

        def in_thread() -> tuple[str, bool]:
            _thread.set(threading.get_ident())
            return blocking(transact(self, self.ground.blocking_sessions, function, seq, arguments, whole))

        return await self.ground.in_thread(in_thread)

    async def _step_failed(self, function: Function[Any, Any], seq: int, error: BaseException) -> NoReturn:
        """A try of a step failed: another one later, or the error becomes its checkpoint and is raised in the workflow."""
        text = describe(error)
        failpoint("failure.before_recorded")
        try:
            policy = function.definition.retry
            failed = await self.ground.sessions.run(protocol.attempts(self.job_id, seq)) + 1
            if policy.again(failed, error):
                detail = {"error": msgspec.Raw(text.encode()), "seq": seq, "delay": policy.wait(failed)}
                self._end(Unwind(self._settlement("retry", detail)))
            await self._store(function, seq, None, text)
        except Restart as restart:
            self._end(restart)
        failpoint("failure.recorded")
        raise StepFailed(read_error(text), function.name, seq) from None

    async def _store(self, function: Function[Any, Any], seq: int, result: str | None, error: str | None) -> None:
        call = protocol.store(self.job_id, self.job.token, self.history.seen, seq, function.name, result, error)
        try:
            stored = await self.ground.sessions.run(call)
        except Restart as restart:
            self._end(restart)
        except psycopg.errors.UniqueViolation:  # another run stored this step: read what it stored
            self._end(Restart())
        if stored == "lost":
            self._end(ClaimLost())
        self._stored(seq, stored == "cancel")

    def _stored(self, seq: int, cancelled: bool) -> None:
        """The checkpoint is there. If somebody asked for it, the job ends here, before its next step."""
        self.history.stored(seq)
        if cancelled:
            self._end(Unwind(self._settlement("cancelled", {})))

    def result_text(self, function: Function[Any, Any], value: Any) -> str:
        """What is stored of a result. Characters that cannot be are replaced: the step has happened."""
        try:
            return function.encode_result(value, self.max_bytes)
        except BadValue as error:
            try:
                text = function.encode_result(clean(value), self.max_bytes)
            except BadValue:
                raise error from None
            log.warning("job %s: %s returned NUL or lone surrogates, stored as U+FFFD", self.job_id, function.name)
            return text


_ENQUEUE = Definition(name="pgqueue.enqueue")


def _enqueue_step(app: App) -> Function[Any, Any]:
    """Enqueueing from the body of a workflow is a transaction like any other: the jobs and the checkpoint with their ids."""

    def enqueue(tx: psycopg.Connection[Any], descriptions: list[dict[str, Any]]) -> list[str]:
        return app.client.send(descriptions, tx)

    return Transaction(app, enqueue, _ENQUEUE)


def _async_enqueue_step(app: App) -> Function[Any, Any]:
    async def enqueue(tx: psycopg.AsyncConnection[Any], descriptions: list[dict[str, Any]]) -> list[str]:
        return await app.async_client.send(descriptions, tx)

    return AsyncTransaction(app, enqueue, _ENQUEUE)
