"""What the code of a job can call: steps, waits, children, and what is said about the job. (See ``context.Run``.)

A call in the body of a workflow gets its number at once, and is replayed or run; one in a step is a part of that step. Which of
the two colours may call what is said here too. Written once, as coroutines, for ``def`` and ``async def`` (see colour.py).
"""

from __future__ import annotations

import threading
from collections.abc import Coroutine, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg

from pgqueue import protocol
from pgqueue.colour import blocking
from pgqueue.context import Wait
from pgqueue.database import run, run_async
from pgqueue.errors import OutsideJob, WrongColour
from pgqueue.functions import AsyncTransaction, Call, Definition, Function, Options, Transaction
from pgqueue.runtime import steps, waits
from pgqueue.runtime.history import Wanted
from pgqueue.runtime.open_steps import chosen_thread, open_step
from pgqueue.runtime.parallel import Gather
from pgqueue.runtime.started import compare, started
from pgqueue.values import Codec, check_size

if TYPE_CHECKING:
    from pgqueue.app import App
    from pgqueue.runtime.run import JobRun

T = TypeVar("T")


async def _first(results: Coroutine[Any, Any, list[T]]) -> T:
    return (await results)[0]


class Calls:
    """The calls of one run."""

    def __init__(self, run: JobRun) -> None:
        self._run = run
        self.job_id = run.job_id
        self.name = run.name
        self.queue = run.queue

    @property
    def step_key(self) -> str:
        step = open_step.get()
        if step is None:
            raise OutsideJob("current().step_key is for the code of a step: in the body of a workflow there is none")
        return f"{self.job_id}:{step.seq}"

    @property
    def deadline(self) -> datetime | None:
        text = (self._run.job.policy or {}).get("deadline")
        return None if text is None else datetime.fromisoformat(text)

    def log_fields(self) -> dict[str, Any]:
        step = open_step.get()
        attempt = None if self._run.job.came_back else 1  # of others nobody knows without asking
        fields = {"job_id": self.job_id, "workflow": self.name, "queue": self.queue, "attempt": attempt}
        return {**fields, "step": step.seq if step is not None else None}

    @property
    def meta(self) -> dict[str, Any]:
        return self._run.meta

    @property
    def in_body(self) -> bool:
        return open_step.get() is None

    def call(self, function: Function[Any, Any], arguments: dict[str, Any]) -> Any:
        """A step or transaction called by the job's code: replayed, or run and checkpointed."""
        self._run.only_in_the_worker()
        if self._run.ground.on_loop:
            raise WrongColour(
                f"{function.name} is a def, and a call of it would block the event loop: in async code write "
                f"await {function.short_name}.aio(...), which runs it in a thread"
            )
        if self._run.ground.is_async and open_step.get() is None:
            raise WrongColour(
                f"{function.name} was called in a thread of an async workflow: call it from the workflow itself, with "
                f"await {function.short_name}.aio(...)"
            )
        if function.kind == "workflow" and self.in_body:
            return self.gather([Call(function, arguments, Options())], False)[0]
        return blocking(self._call(function, self._number(function), arguments))

    def acall(self, function: Function[Any, Any], arguments: dict[str, Any]) -> Coroutine[Any, Any, Any]:
        """The same, to be awaited. The step has its number from now on, whenever it is awaited."""
        self._run.only_in_the_worker()
        if not self._run.ground.on_loop:
            way_out = "make the caller an async def, or this one a def"
            if function.kind == "workflow":  # a job of its own, whose colour is its own affair
                way_out = f"write gather({function.short_name}.call(...))[0]"
            raise WrongColour(f"{function.name} has to be awaited, and was called in a def: {way_out}")
        if function.kind == "workflow" and self.in_body:
            return _first(self.agather([Call(function, arguments, Options())], False))
        return self._call(function, self._number(function), arguments)

    def _number(self, function: Function[Any, Any]) -> int | None:
        """The number of the step that begins with this call. None: it is a plain call, a part of the step it is called from."""
        self._run.check_ending()
        if open_step.get() is None:
            self._run.check_free(function.name)
            return self._run.history.give()
        if function.kind == "workflow":
            raise OutsideJob(f"{function.name} is a workflow and was called inside a step: enqueue it there, or call it outside")
        return None

    async def _call(self, function: Function[Any, Any], seq: int | None, arguments: dict[str, Any]) -> Any:
        self._run.check_ending()
        if seq is None:
            return await self._nested(function, arguments)
        self._run.check_free(function.name)
        with self._run.inside(seq):
            [recorded] = await self._run.find([Wanted(seq, function.name, function.known_names)])
            return await steps.perform(self._run, function, seq, arguments, recorded)

    async def _nested(self, function: Function[Any, Any], arguments: dict[str, Any]) -> Any:
        """Inside a step another one is a plain call: it is part of that step."""
        step = self._run.own_step(function.name)
        if (chosen_thread.get() or step.thread) != threading.get_ident():
            raise OutsideJob(f"{function.name} was called from a thread of your own: call steps from the workflow itself")
        if function.kind != "transaction":
            return await self._run.invoke(function, **arguments)
        if step.tx is None:
            raise OutsideJob(
                f"{function.name} is a transaction and was called inside a step, which has none: call it from the workflow"
            )
        if function.is_async != isinstance(step.tx, psycopg.AsyncConnection):
            raise WrongColour(
                f"{function.name} is {'an async def' if function.is_async else 'a def'}, and the transaction that it was called "
                "in is not: it cannot use that connection"
            )
        return await self._run.invoke(function, step.tx, **arguments)

    def enqueue(self, descriptions: Sequence[dict[str, Any]]) -> list[str]:
        """Jobs enqueued by the job's code: in the open transaction, else (in a workflow's body) as a step of their own."""
        self._run.check_ending()
        if self._run.ground.on_loop:
            raise WrongColour("enqueue() would block the event loop: in async code write await f.aenqueue(...)")
        if open_step.get() is not None:
            tx = self._run.own_step("enqueue()").tx
            if isinstance(tx, psycopg.AsyncConnection):
                raise WrongColour(
                    "enqueue() in a thread cannot join the transaction of an async def: await f.aenqueue(...) in it"
                )
            return self._run.app.client.send(self._children(descriptions), tx)
        if self._run.ground.is_async:
            raise WrongColour(
                "enqueue() was called in a thread of an async workflow: call await f.aenqueue(...) from the workflow"
            )
        return blocking(self._enqueued(_enqueue_step(self._run.app), descriptions))

    def aenqueue(self, descriptions: Sequence[dict[str, Any]]) -> Coroutine[Any, Any, list[str]]:
        """The same, to be awaited."""
        self._run.check_ending()
        if not self._run.ground.on_loop:
            raise WrongColour("aenqueue() has to be awaited, and was called in a def: use enqueue()")
        if open_step.get() is not None:
            return self._run.app.async_client.send(self._children(descriptions), self._run.own_step("aenqueue()").tx)
        return self._enqueued(_async_enqueue_step(self._run.app), descriptions)

    def _enqueued(self, step: Function[Any, Any], descriptions: Sequence[dict[str, Any]]) -> Coroutine[Any, Any, list[str]]:
        """The ids of the jobs that this step enqueues, or has enqueued."""
        seq = self._number(step)
        children = self._children(descriptions, seq)

        async def enqueued() -> list[str]:
            kept = await self._call(step, seq, {"descriptions": children})
            await compare(self._run, seq or 0, kept["started"], children)
            ids: list[str] = kept["ids"]
            return ids

        return enqueued()

    def _children(self, descriptions: Sequence[dict[str, Any]], seq: int | None = None) -> list[dict[str, Any]]:
        """They are children of this job: they are cancelled with it, and have its meta."""
        step = open_step.get()
        place = seq or (step.seq if step is not None else None)
        return [
            {**self._run.inherited(), **d, "parent": self.job_id, "parent_seq": place, "ordinal": i}
            for i, d in enumerate(descriptions)
        ]

    def _durable(self, what: str, awaited: bool) -> None:
        """Something for the body of a workflow is called."""
        self._run.only_in_the_worker()
        if not self.in_body:
            raise OutsideJob(f"{what} was called inside a step: it is for the workflow itself")
        if awaited and not self._run.ground.on_loop:
            raise WrongColour(f"{what}: .aio() has to be awaited, and was called in a def: leave out .aio")
        if not awaited and self._run.ground.is_async:
            raise WrongColour(f"{what} would block the event loop: in async code write await {what.partition('(')[0]}.aio(...)")
        self._run.check_free(what)

    def tell(self, name: str, call: protocol.Call[T]) -> T:
        if not self.in_body:
            tx = self._run.own_step(name).tx
            return run(tx, call) if tx is not None else blocking(self._run.app.client.pool.run(call))
        self._durable(name, awaited=False)

        def tell(tx: psycopg.Connection[Any]) -> T:
            return run(tx, call)

        step: Function[Any, T] = Transaction(self._run.app, tell, Definition(name=name))
        told: T = blocking(self._call(step, self._number(step), {}))
        return told

    def atell(self, name: str, call: protocol.Call[T]) -> Coroutine[Any, Any, T]:
        if not self.in_body:
            tx = self._run.own_step(name).tx
            return run_async(tx, call) if tx is not None else self._run.app.async_client.pool.run(call)
        self._durable(name, awaited=True)

        async def tell(tx: psycopg.AsyncConnection[Any]) -> T:
            return await run_async(tx, call)

        step: Function[Any, T] = AsyncTransaction(self._run.app, tell, Definition(name=name))
        return self._call(step, self._number(step), {})

    def report(self, fraction: float | None, note: str | None) -> None:
        self._run.check_ending()
        self._run.ground.reports.progress(self._run.claim, fraction, note)

    def write(self, stream: str, value: str) -> None:
        if self._streams_soon("stream.write()", value):
            if not self._run.ground.reports.write(self._run.claim, stream, value):
                blocking(self._run.flush())
        else:
            self.tell("pgqueue.stream", protocol.write_stream(self.job_id, None, stream, [value]))

    async def awrite(self, stream: str, value: str) -> None:
        if self._streams_soon("stream.awrite()", value):
            if not self._run.ground.reports.write(self._run.claim, stream, value):
                await self._run.flush()
        else:
            await self.atell("pgqueue.stream", protocol.write_stream(self.job_id, None, stream, [value]))

    def _streams_soon(self, what: str, value: str) -> bool:
        """Is the caller a step without a transaction?"""
        self._run.only_in_the_worker()
        self._run.check_ending()
        check_size(value.encode(), "a value of a stream", self._run.max_bytes)
        return not self.in_body and self._run.own_step(what).tx is None

    def wait(self, wait: Wait) -> Any:
        self._durable(wait.what, awaited=False)
        return blocking(self._waited(self._run.history.give(), wait))

    def await_(self, wait: Wait) -> Coroutine[Any, Any, Any]:
        self._durable(wait.what, awaited=True)
        return self._waited(self._run.history.give(), wait)

    async def _waited(self, seq: int, wait: Wait) -> Any:
        came = await waits.wait(self._run, seq, wait)
        return None if wait.kind == "sleep" else waits.value_of(came, wait)

    def gather(self, calls: Sequence[Call[Any]], return_exceptions: bool) -> list[Any]:
        self._durable("gather()", awaited=False)
        return blocking(Gather(self._run, calls).results(return_exceptions))

    def agather(self, calls: Sequence[Call[Any]], return_exceptions: bool) -> Coroutine[Any, Any, list[Any]]:
        self._durable("gather()", awaited=True)
        return Gather(self._run, calls).results(return_exceptions)

    def patched(self, name: str) -> bool:
        self._durable("patched()", awaited=False)
        return blocking(waits.patched(self._run, name))

    def apatched(self, name: str) -> Coroutine[Any, Any, bool]:
        self._durable("patched()", awaited=True)
        return waits.patched(self._run, name)

    def job_result(self, job: str, codec: Codec) -> Any:
        self._durable("result()", awaited=False)
        return blocking(waits.job_result(self._run, self._run.history.give(), job, codec))

    def ajob_result(self, job: str, codec: Codec) -> Coroutine[Any, Any, Any]:
        self._durable("result()", awaited=True)
        return waits.job_result(self._run, self._run.history.give(), job, codec)


_ENQUEUE = Definition(name="pgqueue.enqueue")


def _enqueue_step(app: App) -> Function[Any, Any]:
    """Enqueueing from the body of a workflow is a transaction like any other: the jobs and the checkpoint with their ids."""

    def enqueue(tx: psycopg.Connection[Any], descriptions: list[dict[str, Any]]) -> dict[str, Any]:
        return {"ids": app.client.send(descriptions, tx), "started": started(descriptions)}

    return Transaction(app, enqueue, _ENQUEUE)


def _async_enqueue_step(app: App) -> Function[Any, Any]:
    async def enqueue(tx: psycopg.AsyncConnection[Any], descriptions: list[dict[str, Any]]) -> dict[str, Any]:
        return {"ids": await app.async_client.send(descriptions, tx), "started": started(descriptions)}

    return AsyncTransaction(app, enqueue, _ENQUEUE)
