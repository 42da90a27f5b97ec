"""One claimed job, from its input to what becomes of it.

A run holds the job's claim. It calls the function, replays the steps that have a checkpoint, runs the next ones, and ends
with a Settlement. When the connection is lost it forgets what it knows and replays from the database: a reconnect is a
small crash. (Longer than other modules: all that can end a run, and must agree about it, is in one place.)

Written once, as coroutines, for ``def`` and ``async def`` (see colour.py).
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import ExitStack
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import msgspec
import psycopg

from pgqueue import protocol
from pgqueue.colour import blocking
from pgqueue.context import Current, Wait, active
from pgqueue.database import backoff, run, run_async
from pgqueue.errors import (
    BadValue,
    Cancel,
    ClaimLost,
    JobTimeout,
    NonDeterministic,
    OutsideJob,
    PgQueueError,
    Snooze,
    StepFailed,
    StepTimeout,
    WrongColour,
)
from pgqueue.failpoints import failpoint
from pgqueue.functions import AsyncTransaction, Call, Definition, Function, Options, Transaction
from pgqueue.model import ClaimedJob, Settlement
from pgqueue.retry import Retry, seconds
from pgqueue.runtime import waits
from pgqueue.runtime.failure import describe, failed_steps
from pgqueue.runtime.ground import Ground
from pgqueue.runtime.history import History, Recorded, Wanted
from pgqueue.runtime.parallel import Gather
from pgqueue.runtime.session import Begin, Restart
from pgqueue.runtime.transact import Conflict, transact
from pgqueue.values import Codec, clean, read_error

if TYPE_CHECKING:
    from pgqueue.app import App

log = logging.getLogger(__name__)
T = TypeVar("T")


GRACE = 1.0  # seconds for a coroutine to end, when its time is over
WHOLE = -1  # in place of the number of a step: a job that is just one

MOST_RESTARTS = 4
"""In a row; then the job is given back for a second."""


class Unwind(BaseException):
    """Leaves the user's code because the run is over for now, with what becomes of the job."""

    def __init__(self, settlement: Settlement | None) -> None:
        self.settlement = settlement


async def _first(results: Coroutine[Any, Any, list[T]]) -> T:
    return (await results)[0]


def _described(error: BaseException) -> dict[str, Any]:
    return {"error": msgspec.Raw(describe(error).encode())}


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
        self._run.open_steps.add(self._step)
        self._token = _open_step.set(self._step)

    def __exit__(self, *_: object) -> None:
        _open_step.reset(self._token)
        self._run.open_steps.discard(self._step)


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
        self.name = job.name.partition("@")[0]  # without its version
        self.queue = job.queue
        self.app = app
        self.job = job
        self.ground = ground
        self.max_bytes = max_bytes
        self.upcoming = upcoming  # asked at the end of a job that is one transaction: how does the next one begin?
        self.history = History(ground.sessions, job, came_back)
        self._pid = os.getpid()
        self._deadline = None if job.seconds_left is None else time.monotonic() + job.seconds_left
        self._limits: dict[int, float] = {} if self._deadline is None else {0: self._deadline}  # step -> when its time is over
        self._ending: BaseException | None = None
        self.open_steps: set[OpenStep] = set()
        self.in_parallel = False  # steps run at once, and how the run ends is said when all of them have

    # ------------------------------------------------------------------------------------------ the whole job

    async def execute(self) -> Settlement | None:
        """Run it. None: nothing is left to settle, because it committed with its own transaction, or the claim is lost."""
        run, tries = self, 0
        while True:
            try:
                if run._limits:
                    run._watch()
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
                    return run.settlement("retry", {"delay": 1.0})
                await self.ground.sessions.pause(backoff(tries))
            finally:
                if run._limits:
                    run._limits.clear()
                    run._watch()
                run._ending = OutsideJob(f"job {self.job_id} has ended, or begun again: a thread or a task has outlived its run")
            run = JobRun(self.app, self.job, self.ground, self.max_bytes, self.upcoming, came_back=True)

    async def _whole(self) -> Settlement | None:
        failpoint("dispatch.before_run")
        function = self.app.functions[self.job.name]
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
            await self._flush()
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
            for step in self.open_steps:
                raise OutsideJob(f"the workflow returned while step {step.seq} was running: await every step")
            await self.history.check_complete()
            return value
        with self.inside(0):
            await self._check_tries(function, 0)
            if function.kind == "transaction":
                return await self._as_transaction(function, 0, arguments, whole=True)
            return await self._in_time(function, 0, self.invoke(function, **arguments))

    async def _ended_badly(self, error: BaseException, function: Function[Any, Any] | None) -> Settlement:
        """A job that raised: it is cancelled, tried again, or has failed."""
        await self._flush()
        if isinstance(error, Snooze):
            return self.settlement("retry", {"delay": seconds(error.delay)})
        detail: dict[str, Any] = {"errors": [_described(error)], "failed_seqs": failed_steps(error)}
        if isinstance(error, Cancel):
            return self.settlement("cancelled", detail)
        if function is not None:
            policy = self._policy(function)
            failed = await self.ground.sessions.run(protocol.attempts(self.job_id, None)) + 1
            if policy.again(failed, error):
                return self.settlement("retry", {**detail, "delay": policy.wait(failed)})
        kind = type(error).__qualname__  # the message may hold payload
        log.warning('job %s (%s) failed: %s (see "pgqueue show %s")', self.job_id, self.name, kind, self.job_id)
        return self.settlement("failed", detail)

    def _policy(self, function: Function[Any, Any]) -> Retry:
        said = (self.job.policy or {}).get("retry")
        own = function.definition.retry
        return own if said is None else Retry(**said, only=own.only, never=own.never)

    def settlement(self, how: Any, detail: dict[str, Any]) -> Settlement:
        return Settlement(self.job, how, None, self.history.seen, msgspec.json.encode(detail).decode())

    def only_in_the_worker(self) -> None:
        """Where a job's code forked and its child came back here: the child ends. The connection belongs to its parent."""
        if os.getpid() != self._pid:
            os._exit(0)

    def _check_ending(self) -> None:
        self.only_in_the_worker()
        if self._ending is not None:
            raise self._ending

    async def peek(self) -> Recorded | None:
        """The next step that is stored, if this run has not come to it yet."""
        try:
            return await self.history.peek()
        except Restart as restart:
            self.end(restart)

    def unwind(self, settlement: Settlement) -> NoReturn:
        """Leave the user's code, because this is what becomes of the job now."""
        self.end(Unwind(settlement))

    def merged(self, endings: Sequence[BaseException]) -> BaseException:
        """Steps that ran at once have ended their run, each in its own way: how it ends."""
        for kind in (ClaimLost, Restart):
            for ending in endings:
                if isinstance(ending, kind):
                    return ending
        settlements = [ending.settlement for ending in endings if isinstance(ending, Unwind) and ending.settlement is not None]
        for settlement in settlements:
            if settlement.how != "retry":
                return Unwind(settlement)
        details = [msgspec.json.decode(settlement.detail or "{}") for settlement in settlements]
        errors = [error for detail in details for error in detail.get("errors", [])]
        return Unwind(self.settlement("retry", {"errors": errors, "delay": max(detail["delay"] for detail in details)}))

    def end(self, ending: BaseException) -> NoReturn:
        """Leave the user's code for good: whatever it catches, its next call comes back here."""
        if not self.in_parallel:
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
        if function.kind == "workflow" and self.in_body:
            return self.gather([Call(function, arguments, Options())], False)[0]
        return blocking(self._call(function, self._number(function), arguments))

    def acall(self, function: Function[Any, Any], arguments: dict[str, Any]) -> Coroutine[Any, Any, Any]:
        """The same, to be awaited. The step has its number from now on, whenever it is awaited."""
        self.only_in_the_worker()
        if not self.ground.on_loop:
            raise WrongColour(
                f"{function.name} has to be awaited, and was called in a def: make the caller an async def, or this one a def"
            )
        if function.kind == "workflow" and self.in_body:
            return _first(self.agather([Call(function, arguments, Options())], False))
        return self._call(function, self._number(function), arguments)

    def _number(self, function: Function[Any, Any]) -> int | None:
        """The number of the step that begins with this call. None: it is a plain call, a part of the step it is called from."""
        self._check_ending()
        if _open_step.get() is None:
            self.check_free(function.name)
            return self.history.give()
        if function.kind == "workflow":
            raise OutsideJob(f"{function.name} is a workflow and was called inside a step: enqueue it there, or call it outside")
        return None

    def check_free(self, what: str) -> None:
        """The workflow's own code calls something. OutsideJob while a step runs."""
        self._check_ending()
        self._check_time()
        for step in self.open_steps:
            raise OutsideJob(
                f"{what} was called while step {step.seq} was running: a workflow runs one step at a time, or several in gather()"
            )

    async def _call(self, function: Function[Any, Any], seq: int | None, arguments: dict[str, Any]) -> Any:
        self._check_ending()
        if seq is None:
            return await self._nested(function, arguments)
        self.check_free(function.name)
        with self.inside(seq):
            [recorded] = await self.find([Wanted(seq, function.name, function.known_names)])
            return await self.perform(function, seq, arguments, recorded)

    async def perform(self, function: Function[Any, Any], seq: int, arguments: dict[str, Any], recorded: Recorded | None) -> Any:
        """A step: replayed, or run and checkpointed."""
        if recorded is not None:
            await self.ground.others_first()  # also so that a second step beside it is an error in a replay too
            return self._replayed(function, seq, recorded)
        failpoint("step.between")
        try:
            await self._check_tries(function, seq)
        except StepTimeout as error:
            return await self._step_failed(function, seq, error, over=True)
        if function.kind == "transaction":
            return await self._as_transaction(function, seq, arguments, whole=False)
        return await self._as_step(function, seq, arguments)

    async def find(self, steps: Sequence[Wanted]) -> list[Recorded | None]:
        """What is stored of these steps, which begin now."""
        try:
            return await self.history.find_all(steps)
        except NonDeterministic as error:  # must not be caught by the workflow, which would go on with wrong results
            self.end(Unwind(await self._ended_badly(error, None)))
        except Restart as restart:
            self.end(restart)

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
            return self.app.client.send(self._children(descriptions), tx)
        if self.ground.is_async:
            raise WrongColour(
                "enqueue() was called in a thread of an async workflow: call await f.aenqueue(...) from the workflow"
            )
        step = _enqueue_step(self.app)
        seq = self._number(step)
        return blocking(self._call(step, seq, {"descriptions": self._children(descriptions, seq)}))

    def aenqueue(self, descriptions: Sequence[dict[str, Any]]) -> Coroutine[Any, Any, list[str]]:
        """The same, to be awaited."""
        self._check_ending()
        if not self.ground.on_loop:
            raise WrongColour("aenqueue() has to be awaited, and was called in a def: use enqueue()")
        if _open_step.get() is not None:
            return self.app.async_client.send(self._children(descriptions), self._own_step("aenqueue()").tx)
        step = _async_enqueue_step(self.app)
        seq = self._number(step)
        return self._call(step, seq, {"descriptions": self._children(descriptions, seq)})

    def _children(self, descriptions: Sequence[dict[str, Any]], seq: int | None = None) -> list[dict[str, Any]]:
        """They are children of this job: they are cancelled with it, and have its meta."""
        step = _open_step.get()
        place = seq or (step.seq if step is not None else None)
        return [
            {**self.inherited(), **d, "parent": self.job_id, "parent_seq": place, "ordinal": i}
            for i, d in enumerate(descriptions)
        ]

    def inherited(self) -> dict[str, Any]:
        """What children have of their parent, where nothing else is said."""
        return {"meta": self.meta} if self.meta else {}

    @property
    def deadline(self) -> datetime | None:
        text = (self.job.policy or {}).get("deadline")
        return None if text is None else datetime.fromisoformat(text)

    @property
    def meta(self) -> dict[str, Any]:
        """What the producer attached."""
        meta: dict[str, Any] = (self.job.policy or {}).get("meta", {})
        return meta

    @property
    def in_body(self) -> bool:
        return _open_step.get() is None

    def _durable(self, what: str, awaited: bool) -> None:
        """Something for the body of a workflow is called."""
        self.only_in_the_worker()
        if not self.in_body:
            raise OutsideJob(f"{what} was called inside a step: it is for the workflow itself")
        if awaited and not self.ground.on_loop:
            raise WrongColour(f"{what}: .aio() has to be awaited, and was called in a def: leave out .aio")
        if not awaited and self.ground.is_async:
            raise WrongColour(f"{what} would block the event loop: in async code write await {what.partition('(')[0]}.aio(...)")
        self.check_free(what)

    def tell(self, name: str, call: protocol.Call[T]) -> T:
        if not self.in_body:
            tx = self._own_step(name).tx
            return run(tx, call) if tx is not None else blocking(self.app.client.pool.run(call))
        self._durable(name, awaited=False)

        def tell(tx: psycopg.Connection[Any]) -> T:
            return run(tx, call)

        step: Function[Any, T] = Transaction(self.app, tell, Definition(name=name))
        told: T = blocking(self._call(step, self._number(step), {}))
        return told

    def atell(self, name: str, call: protocol.Call[T]) -> Coroutine[Any, Any, T]:
        if not self.in_body:
            tx = self._own_step(name).tx
            return run_async(tx, call) if tx is not None else self.app.async_client.pool.run(call)
        self._durable(name, awaited=True)

        async def tell(tx: psycopg.AsyncConnection[Any]) -> T:
            return await run_async(tx, call)

        step: Function[Any, T] = AsyncTransaction(self.app, tell, Definition(name=name))
        return self._call(step, self._number(step), {})

    def report(self, fraction: float | None, note: str | None) -> None:
        self._check_ending()
        self.ground.reports.progress(self._claim, fraction, note)

    def write(self, stream: str, value: str) -> None:
        if self._streams_soon("stream.write()"):
            if not self.ground.reports.write(self._claim, stream, value):
                blocking(self._flush())
        else:
            self.tell("pgqueue.stream", protocol.write_stream(self.job_id, None, stream, [value]))

    async def awrite(self, stream: str, value: str) -> None:
        if self._streams_soon("stream.awrite()"):
            if not self.ground.reports.write(self._claim, stream, value):
                await self._flush()
        else:
            await self.atell("pgqueue.stream", protocol.write_stream(self.job_id, None, stream, [value]))

    def _streams_soon(self, what: str) -> bool:
        """Is the caller a step without a transaction?"""
        self.only_in_the_worker()
        self._check_ending()
        return not self.in_body and self._own_step(what).tx is None

    @property
    def _claim(self) -> tuple[str, int]:
        return self.job.id, self.job.token

    async def _flush(self) -> None:
        """Send what the job has said of itself: before the checkpoint of the step that said it."""
        if self.ground.reports.has(self._claim):
            try:
                await self.ground.in_thread(lambda: self.ground.reports.flush(self._claim))
            except Restart as restart:
                self.end(restart)

    def wait(self, wait: Wait) -> Any:
        self._durable(wait.what, awaited=False)
        return blocking(self._waited(self.history.give(), wait))

    def await_(self, wait: Wait) -> Coroutine[Any, Any, Any]:
        self._durable(wait.what, awaited=True)
        return self._waited(self.history.give(), wait)

    async def _waited(self, seq: int, wait: Wait) -> Any:
        came = await waits.wait(self, seq, wait)
        return None if wait.kind == "sleep" else waits.value_of(came, wait)

    def gather(self, calls: Sequence[Call[Any]], return_exceptions: bool) -> list[Any]:
        self._durable("gather()", awaited=False)
        return blocking(Gather(self, calls).results(return_exceptions))

    def agather(self, calls: Sequence[Call[Any]], return_exceptions: bool) -> Coroutine[Any, Any, list[Any]]:
        self._durable("gather()", awaited=True)
        return Gather(self, calls).results(return_exceptions)

    def patched(self, name: str) -> bool:
        self._durable("patched()", awaited=False)
        return blocking(waits.patched(self, name))

    def apatched(self, name: str) -> Coroutine[Any, Any, bool]:
        self._durable("patched()", awaited=True)
        return waits.patched(self, name)

    def job_result(self, job: str, codec: Codec) -> Any:
        self._durable("result()", awaited=False)
        return blocking(waits.job_result(self, self.history.give(), job, codec))

    def ajob_result(self, job: str, codec: Codec) -> Coroutine[Any, Any, Any]:
        self._durable("result()", awaited=True)
        return waits.job_result(self, self.history.give(), job, codec)

    def _own_step(self, what: str) -> OpenStep:
        """The step that the caller is a part of, if it is still open."""
        step = _open_step.get()
        if step is None or step not in self.open_steps:
            raise OutsideJob(f"{what} was called from a thread or a task that outlived its step: end it before the step returns")
        return step

    def inside(self, seq: int) -> _Inside:
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
        if recorded.result is None:
            raise StepFailed(read_error(recorded.error), function.name, seq)
        return function.result.decode(recorded.result, f"the result of {function.name}")

    async def _as_step(self, function: Function[Any, Any], seq: int, arguments: dict[str, Any]) -> Any:
        failpoint("step.before_effect")
        try:
            text = self.result_text(function, await self._in_time(function, seq, self.invoke(function, **arguments)))
            await self._flush()
        except (Unwind, Restart, ClaimLost):
            raise
        except BaseException as error:  # noqa: BLE001 -- also SystemExit: it is the step that failed, not the worker
            self.only_in_the_worker()
            return await self._step_failed(function, seq, error)
        self.only_in_the_worker()
        failpoint("step.after_effect")
        await self.store(seq, function.name, text)
        failpoint("step.checkpointed")
        return function.result.decode(text, f"the result of {function.name}")

    async def _as_transaction(self, function: Function[Any, Any], seq: int, arguments: dict[str, Any], whole: bool) -> Any:
        tries = 0
        while True:
            try:
                text, cancelled = await self._in_time(function, seq, self._transact(function, seq, arguments, whole))
            except Conflict:
                tries += 1
                if tries > 10:  # hand the worker to another job for a while; this counts as nothing
                    log.warning(
                        "job %s: %s meets another transaction's locks or writes again and again", self.job_id, function.name
                    )
                    self.end(Unwind(self.settlement("retry", {"delay": 1.0})))
                await self.ground.sessions.pause(min(0.5, 0.005 * 2**tries))
            except (Unwind, Restart, ClaimLost) as ending:
                self.end(ending)
            except BaseException as error:
                if whole:
                    raise
                return await self._step_failed(function, seq, error)
            else:
                if whole:
                    return None
                self.stored(seq, cancelled)
                return function.result.decode(text, f"the result of {function.name}")

    async def _transact(self, function: Function[Any, Any], seq: int, arguments: dict[str, Any], whole: bool) -> tuple[str, bool]:
        if function.is_async or not self.ground.on_loop:
            return await transact(self, self.ground.sessions, function, seq, arguments, whole)
        # A def in async code: all of the transaction happens in a thread, on a connection that blocks.

        def in_thread() -> tuple[str, bool]:
            _thread.set(threading.get_ident())
            return blocking(transact(self, self.ground.blocking_sessions, function, seq, arguments, whole))

        return await self.ground.in_thread(in_thread)

    # ------------------------------------------------------------------------------------------------ time limits

    async def _in_time(self, function: Function[Any, Any], seq: int, code: Coroutine[Any, Any, T]) -> T:
        """Run a step's code within its time limit. An ``async def`` is cancelled when that is over. A ``def`` cannot be, so the
        supervisor kills its process; and so it does where an ``async def`` does not let itself be cancelled."""
        limit = function.definition.timeout
        if limit is None and (self._deadline is None or not function.is_async):
            return await code
        left = min(limit or math.inf, math.inf if self._deadline is None else self._deadline - time.monotonic())
        self._limits[seq or WHOLE] = time.monotonic() + left + (GRACE if function.is_async else 0.0)
        self._watch()
        try:
            if not (function.is_async and self.ground.on_loop):
                return await code
            async with asyncio.timeout(left) as scope:
                return await code
            raise AssertionError
        except TimeoutError:
            if function.is_async and self.ground.on_loop and scope.expired():
                raise StepTimeout(f"{function.name} took longer than {left:g} s") from None
            raise
        finally:
            self._limits.pop(seq or WHOLE, None)
            self._watch()

    def _watch(self) -> None:
        """Say until when this job may run now."""
        if self.ground.watch is not None:
            limits = dict(self._limits)  # steps may run at once, in threads
            seq = min(limits, key=limits.__getitem__) if limits else 0
            self.ground.watch(self.job.place, max(0, seq), limits.get(seq))

    async def _check_tries(self, function: Function[Any, Any], seq: int) -> None:
        """StepTimeout if time limits have used up the tries of a step: nobody was left to say so when the last one was over."""
        if not self.job.suspect or function.definition.timeout is None:
            return
        failed = await self.ask(protocol.attempts(self.job_id, seq or None))
        if failed and not self._policy(function).again(failed, StepTimeout()):
            raise StepTimeout(f"{function.name} took longer than {function.definition.timeout:g} s, {failed} times")

    def _check_time(self) -> None:
        """Between two steps: is the time of the job over?"""
        if self._deadline is not None and time.monotonic() > self._deadline:
            error = _described(JobTimeout("the time limit of the job is over"))
            self.end(Unwind(self.settlement("failed", {"errors": [{**error, "kind": "timeout"}], "failed_seqs": []})))

    async def _step_failed(self, function: Function[Any, Any], seq: int, error: BaseException, over: bool = False) -> NoReturn:
        """A try of a step failed: another one later, or the error becomes its checkpoint and is raised in the workflow."""
        if isinstance(error, Snooze):
            self.end(Unwind(self.settlement("retry", {"delay": seconds(error.delay)})))
        text = describe(error)
        await self._flush()
        failpoint("failure.before_recorded")
        try:
            policy = function.definition.retry
            failed = await self.ground.sessions.run(protocol.attempts(self.job_id, seq)) + 1
            if not over and policy.again(failed, error):
                kind = "timeout" if isinstance(error, StepTimeout) else "error"
                detail = {"errors": [{**_described(error), "seq": seq, "kind": kind}], "delay": policy.wait(failed)}
                self.end(Unwind(self.settlement("retry", detail)))
            await self.store(seq, function.name, None, text)
        except Restart as restart:
            self.end(restart)
        failpoint("failure.recorded")
        raise StepFailed(read_error(text), function.name, seq) from None

    async def store(self, seq: int, name: str, result: str | None, error: str | None = None) -> None:
        """Store what a step has come to."""
        stored = await self.ask(protocol.store(self.job_id, self.job.token, self.history.seen, seq, name, result, error))
        if stored == "lost":
            self.end(ClaimLost())
        self.stored(seq, stored == "cancel")

    async def ask(self, call: protocol.Call[T]) -> T:
        """A verb of this run, in a transaction of its own."""
        try:
            return await self.ground.sessions.run(call)
        except Restart as restart:
            self.end(restart)
        except psycopg.errors.UniqueViolation:  # another run stored this step: read what it stored
            self.end(Restart())

    def stored(self, seq: int, cancelled: bool) -> None:
        """The checkpoint is there. If somebody asked for it, the job ends here, before its next step."""
        self.history.stored(seq)
        if cancelled:
            self.end(Unwind(self.settlement("cancelled", {})))

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
