"""gather(): steps that run at once in one job, and children, which are jobs of their own.

The numbers of all of them are given at the call, so that they do not depend on who ends first. All are waited for, also where one
fails: the first failure in the order of the arguments is raised, which is the same in every replay.
"""

from __future__ import annotations

import asyncio
import contextvars
import hashlib
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from pgqueue.colour import blocking
from pgqueue.context import Wait
from pgqueue.errors import BadValue, UnknownJob, WrongColour
from pgqueue.functions import AsyncTransaction, Call, Definition, Function, Transaction
from pgqueue.runtime.endings import merged
from pgqueue.runtime.history import Recorded, Wanted
from pgqueue.runtime.started import Started, compare, started
from pgqueue.runtime.steps import perform
from pgqueue.runtime.waits import child_results, read_failure, result_of, wait

if TYPE_CHECKING:
    from pgqueue.app import App
    from pgqueue.runtime.run import JobRun

AT_ONCE = 10
"""Steps of a def workflow that run at once, each in a thread with a connection."""


class Raised:
    """In place of a result: the error that a call has ended with."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


class Gather:
    """Calls that were given their numbers."""

    def __init__(self, run: JobRun, calls: Sequence[Call[Any]]) -> None:
        self._run = run
        self._calls = calls
        self._children = [i for i, call in enumerate(calls) if call.function.kind == "workflow"]
        self._steps = [i for i, call in enumerate(calls) if call.function.kind != "workflow"]
        for call in (calls[i] for i in self._steps):
            if call.function.is_async and not run.ground.on_loop:
                raise WrongColour(f"{call.function.name} is an async def, and gather() was called in a def")
            if call.options:
                said = ", ".join(call.options)
                raise TypeError(
                    f"{call.function.name}: {said}: that is for a job, and gather() calls steps: say it in the decorator"
                )
        for call in (calls[i] for i in self._children):
            if "id" in call.options:
                raise TypeError(f"{call.function.name}: a child in gather() gets its id from its parent, give none")
        give = run.history.give
        self._start = give() if self._children else 0
        self._seqs = [give() for _ in self._steps]
        self._join = give() if self._children else 0

    async def results(self, return_exceptions: bool) -> list[Any]:
        """Run them. Results in the order of the calls."""
        results: list[Any] = [None] * len(self._calls)
        fresh = await self._start_children() if self._children else False
        if self._steps:
            for i, result in zip(self._steps, await self._run_steps(), strict=True):
                results[i] = result
        if self._children:
            for i, result in zip(self._children, await self._join_children(fresh), strict=True):
                results[i] = result
        for result in results:
            if isinstance(result, Raised) and not return_exceptions:
                raise result.error
        return [result.error if isinstance(result, Raised) else result for result in results]

    # ------------------------------------------------------------------------------------------------- steps

    async def _run_steps(self) -> list[Any]:
        run = self._run
        run.check_free("gather()")
        calls = [self._calls[i] for i in self._steps]
        found = await run.find(
            [Wanted(seq, c.function.name, c.function.known_names) for seq, c in zip(self._seqs, calls, strict=True)]
        )
        branches = list(zip(calls, self._seqs, found, strict=True))
        run.in_parallel = True
        try:
            results = await (_as_tasks(run, branches) if run.ground.is_async else _in_threads(run, branches))
        finally:
            run.in_parallel = False
        run.only_in_the_worker()
        endings = [r.error for r in results if isinstance(r, Raised) and not isinstance(r.error, Exception)]
        if endings:
            run.end(merged(run, endings))
        return results

    # ---------------------------------------------------------------------------------------------- children

    async def _start_children(self) -> bool:
        """Enqueue them, all in the transaction of one checkpoint. True: just now, so that none can have ended."""
        run = self._run
        calls = [self._calls[i] for i in self._children]
        if any(call.options.get("unique") for call in calls):
            raise BadValue("gather() waits for jobs of its own, which cannot be unique: leave out unique, or enqueue() them")
        descriptions = [
            {
                **run.inherited(),
                **call.description(),
                **({"unique": False} if call.function.definition.unique else {}),
                "job_id": child_id(run.job_id, self._join, ordinal),
                "parent": run.job_id,
                "parent_seq": self._join,
                "ordinal": ordinal,
            }
            for ordinal, call in enumerate(calls)
        ]
        run.check_free("gather()")
        step = _start_step(run.app, run.ground.is_async)
        with run.inside(self._start):
            [recorded] = await run.find([Wanted(self._start, step.name, step.known_names)])
            kept = await perform(run, step, self._start, {"descriptions": descriptions}, recorded)
            await compare(run, self._start, kept, descriptions)
        return recorded is None

    async def _join_children(self, fresh: bool) -> list[Any]:
        run, seq = self._run, self._join
        came = await wait(run, seq, Wait("children", f"{seq}:0", None, "the end of the children"), fresh)
        failed = {int(ordinal): ending for ordinal, ending in came["failed"].items()}
        parent = came["parent"]
        texts = await child_results(run, parent, seq) if len(failed) < len(self._children) else {}
        results: list[Any] = []
        for ordinal, i in enumerate(self._children):
            function: Function[Any, Any] = self._calls[i].function
            job = child_id(parent, seq, ordinal)
            try:
                if ordinal in failed:
                    ending = failed[ordinal]
                    if "error" in ending:
                        ending["error"] = read_failure(ending["error"])
                    result_of(ending, job, function.name, function.result, seq)
                elif ordinal in texts:
                    results.append(function.result.decode(texts[ordinal], f"the result of job {job} ({function.name})"))
                else:
                    raise UnknownJob(f"there is no job {job} ({function.name}) any more: it was pruned")
            except Exception as error:  # noqa: BLE001 -- raised, or returned, where the caller wants it
                results.append(Raised(error))
        return results


async def _branch(run: JobRun, call: Call[Any], seq: int, recorded: Recorded | None) -> Any:
    try:
        with run.inside(seq):
            return await perform(run, call.function, seq, dict(call.arguments), recorded)
    except BaseException as error:  # noqa: BLE001 -- looked at when all have ended
        return Raised(error)


async def _in_threads(run: JobRun, branches: Sequence[tuple[Call[Any], int, Recorded | None]]) -> list[Any]:
    with ThreadPoolExecutor(min(len(branches), AT_ONCE), "pgqueue-gather") as pool:
        futures = [
            pool.submit(contextvars.copy_context().run, lambda b=branch: blocking(_branch(run, *b))) for branch in branches
        ]
        return [future.result() for future in futures]


async def _as_tasks(run: JobRun, branches: Sequence[tuple[Call[Any], int, Recorded | None]]) -> list[Any]:
    """Where we are cancelled, each step is, as one alone would be: that is a failed try, and all are waited for."""
    tasks = [asyncio.ensure_future(_branch(run, *branch)) for branch in branches]
    while not all(task.done() for task in tasks):
        try:
            await asyncio.wait(tasks)
        except asyncio.CancelledError:
            for task in tasks:
                task.cancel()
    return [task.result() for task in tasks]


def child_id(parent: str, seq: int, ordinal: int) -> str:
    """The id of a child: a UUID of version 8, from its parent and its place there."""
    digest = hashlib.sha256(f"{parent}:{seq}:{ordinal}".encode()).digest()
    value = int.from_bytes(digest[:16]) & ~(0xF << 76) & ~(0x3 << 62) | 8 << 76 | 2 << 62
    return str(uuid.UUID(int=value))


_START = Definition(name="pgqueue.start")


def _start_step(app: App, is_async: bool) -> Function[Any, Any]:
    def start(tx: Any, descriptions: list[dict[str, Any]]) -> Started:
        app.client.send(descriptions, tx)
        return started(descriptions)

    async def start_async(tx: Any, descriptions: list[dict[str, Any]]) -> Started:
        await app.async_client.send(descriptions, tx)
        return started(descriptions)

    return AsyncTransaction(app, start_async, _START) if is_async else Transaction(app, start, _START)
