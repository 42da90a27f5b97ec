"""App: the explicit registry of an application's workflows, steps, transactions and queues.

Long, because it is what applications write against, in one place: signatures, overloads for both colours, and what they mean.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Concatenate, Literal, ParamSpec, Protocol, TypeVar, overload

import msgspec
import psycopg

from pgqueue import protocol
from pgqueue.client import AsyncClient, AsyncJob, Client, Job, encoded
from pgqueue.colour import blocking
from pgqueue.config import read_settings
from pgqueue.context import Current, joined_run
from pgqueue.database import errors_translated
from pgqueue.functions import (
    AsyncStep,
    AsyncTransaction,
    AsyncWorkflow,
    Call,
    Definition,
    Function,
    Step,
    Transaction,
    Workflow,
    check_retry,
    versioned,
    whole_number,
)
from pgqueue.instruments import Counter, Gauge, Histogram, Instrument, check
from pgqueue.meter import Meter
from pgqueue.metrics import SECONDS, Combine, Family
from pgqueue.model import NAME, Isolation, Queue, chosen_limits
from pgqueue.retry import ONCE, Duration, Retry, seconds
from pgqueue.schedules import MISFIRES, Declared, Misfire, following, times_of
from pgqueue.unique import Uniqueness, described

P = ParamSpec("P")
R = TypeVar("R")
Hook = Literal["worker_start", "worker_stop"]
H = TypeVar("H", bound=Callable[[], Any])
M = TypeVar("M", bound=Callable[[Current], Iterator[None]])
F = TypeVar("F", bound=Function[Any, Any])
I = TypeVar("I", bound=Instrument)  # noqa: E741 -- one letter, like the others


class _WorkflowDecorator(Protocol):
    @overload
    def __call__(self, fn: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncWorkflow[P, R]: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, fn: Callable[P, R], /) -> Workflow[P, R]: ...


class _StepDecorator(Protocol):
    @overload
    def __call__(self, fn: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncStep[P, R]: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, fn: Callable[P, R], /) -> Step[P, R]: ...


_AsyncTx = Callable[Concatenate[psycopg.AsyncConnection[Any], P], Coroutine[Any, Any, R]]
_Tx = Callable[Concatenate[psycopg.Connection[Any], P], R]


class _TransactionDecorator(Protocol):
    @overload
    def __call__(self, fn: _AsyncTx[P, R], /) -> AsyncTransaction[P, R]: ...
    @overload
    def __call__(self, fn: _Tx[P, R], /) -> Transaction[P, R]: ...


class App:
    """The functions and queues of one application. Building it neither connects nor needs a DSN.

    ``dsn``: where the application's database is; without it ``PGQUEUE_DSN`` is used at the first connection.
    ``queues``: those that exist besides ``default``. ``include``: modules to import at start, because they register functions.
    ``name``: whose schedules are whose, where several Apps share a database; the module that builds the App unless given.
    ``settings``: of ``pgqueue work``, for whoever gives no others: ``App(settings={"threads": 4, "drain_timeout": "2m"})``.

    >>> app = App(queues=[Queue("mail")])
    >>> @app.step(name="send_mail", queue="mail")
    ... def send_mail(to: str) -> str:
    ...     return "sent to " + to
    >>> send_mail("ann@example.org")     # outside of a job: the plain function
    'sent to ann@example.org'
    """

    def __init__(
        self,
        dsn: str | None = None,
        *,
        queues: Iterable[Queue] = (),
        include: Sequence[str] = (),
        name: str | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.settings = read_settings(dict(settings or {}))
        if "dsn" in self.settings:
            raise ValueError("settings has no place for the DSN: App(dsn)")
        self.name = name or str(sys._getframe(1).f_globals.get("__name__", "__main__"))
        self.client = Client(dsn)
        self.async_client = AsyncClient(dsn)
        self.queues: dict[str, Queue] = {"default": Queue("default")}
        for queue in queues:
            if not isinstance(queue, Queue):
                raise TypeError(f"queues takes Queue objects, not {queue!r}")
            if queue.name in self.queues and queue.name != "default":
                raise ValueError(f"queue {queue.name!r} is declared twice")
            self.queues[queue.name] = queue
        self.include = tuple(include)
        self.functions: dict[str, Function[Any, Any]] = {}
        self.schedules: dict[str, Declared] = {}
        self.middlewares: list[Callable[[Current], AbstractContextManager[None]]] = []
        self.instruments: dict[str, Instrument] = {}
        self.meter = Meter()  # in a worker, that of its process
        self.hooks: dict[Hook, list[Callable[[], Any]]] = {"worker_start": [], "worker_stop": []}

    @property
    def dsn(self) -> str:
        """The DSN in use. NotConfigured where none was given."""
        return self.client.pool.dsn

    @dsn.setter
    def dsn(self, dsn: str | None) -> None:
        self.client.pool.given_dsn = self.async_client.pool.given_dsn = dsn

    # ------------------------------------------------------------------------------------------ decorators

    @overload
    def workflow(self, fn: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncWorkflow[P, R]: ...  # type: ignore[overload-overlap]
    @overload
    def workflow(self, fn: Callable[P, R], /) -> Workflow[P, R]: ...
    @overload
    def workflow(
        self,
        *,
        name: str | None = None,
        aliases: Sequence[str] = (),
        queue: str = "default",
        priority: int = 5,
        retry: Retry = ONCE,
        max_crashes: int = 3,
        key: str | None = None,
        version: int = 1,
        timeout: Duration | None = None,
        on_failure: Function[Any, Any] | None = None,
        unique: Uniqueness | None = None,
    ) -> _WorkflowDecorator: ...
    def workflow(self, *fn: Any, **said: Any) -> Any:
        """Register a workflow: plain code that calls steps and transactions, and survives any crash.

        ``retry``: tries of the whole workflow (none by default: its steps have their own). ``max_crashes``: after so many
        dead worker processes without progress in between it fails. ``key``: the parameter whose value is the job's key.

        ``timeout``: the time that a job may take from the moment at which it is due, waiting and sleeping included; then it
        fails, and what it runs is killed. ``on_failure``: what is enqueued when a job has failed, in the same commit; its one
        parameter is called ``failure`` (see Failure). ``version``: for a change that running jobs cannot follow; workers run the
        versions that they have, and leave the others to workers that have those. ``unique``: there is one such job at a time (see
        Unique and Debounce); not of those that a ``gather`` starts, or an ``on_failure``.
        """
        return self._register(Workflow, AsyncWorkflow, *fn, **{"retry": ONCE, **said})

    @overload
    def step(self, fn: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncStep[P, R]: ...  # type: ignore[overload-overlap]
    @overload
    def step(self, fn: Callable[P, R], /) -> Step[P, R]: ...
    @overload
    def step(
        self,
        *,
        name: str | None = None,
        aliases: Sequence[str] = (),
        queue: str = "default",
        priority: int = 5,
        retry: Retry = ...,
        max_crashes: int = 3,
        key: str | None = None,
        timeout: Duration | None = None,
        on_failure: Function[Any, Any] | None = None,
        unique: Uniqueness | None = None,
    ) -> _StepDecorator: ...
    def step(self, *fn: Any, **said: Any) -> Any:
        """Register a step: its result is checkpointed after it ran, so it runs at least once. For the outside world.

        ``retry``: five tries by default, 2 s doubling, with jitter; between them no worker is held. ``timeout``: of each try. An
        ``async def`` is cancelled then; a ``def`` cannot be, so its worker is killed, and the job goes on in another one.
        """
        return self._register(Step, AsyncStep, *fn, **said)

    @overload
    def transaction(self, fn: _AsyncTx[P, R], /) -> AsyncTransaction[P, R]: ...
    @overload
    def transaction(self, fn: _Tx[P, R], /) -> Transaction[P, R]: ...
    @overload
    def transaction(
        self,
        *,
        name: str | None = None,
        aliases: Sequence[str] = (),
        queue: str = "default",
        priority: int = 5,
        retry: Retry = ...,
        max_crashes: int = 3,
        key: str | None = None,
        timeout: Duration | None = None,
        on_failure: Function[Any, Any] | None = None,
        unique: Uniqueness | None = None,
        isolation: Isolation = "read committed",
        idle_timeout: Duration = 20,
    ) -> _TransactionDecorator: ...
    def transaction(self, *fn: Any, isolation: Isolation = "read committed", idle_timeout: Duration = 20, **said: Any) -> Any:
        """Register a transaction: its writes through the connection it is given, and its checkpoint, are one commit.

        So they happen exactly once, whatever is killed when. ``isolation``: conflicts at the higher levels are run again and
        not counted. ``idle_timeout``: the server ends it when the code talks to nobody for so long (a stopped worker must
        not hold locks): slow work belongs into a step.
        """
        if isolation not in ("read committed", "repeatable read", "serializable"):
            raise ValueError(f"isolation={isolation!r}: use 'read committed', 'repeatable read' or 'serializable'")
        return self._register(Transaction, AsyncTransaction, *fn, isolation=isolation, idle_timeout=seconds(idle_timeout), **said)

    def _register(self, kind: type[Any], async_kind: type[Any], fn: Callable[..., Any] | None = None, **said: Any) -> Any:
        if fn is None:
            return lambda fn: self._register(kind, async_kind, fn, **said)
        if isinstance(fn, Function):
            raise TypeError(f"{fn.name} is registered already: use one decorator for one function")
        said["name"] = said.get("name") or default_name(fn)
        if isinstance(said.get("aliases"), str):
            raise TypeError(f"aliases={said['aliases']!r}: give a list of names")
        said["aliases"] = tuple(said.get("aliases", ()))
        if said.get("timeout") is not None:
            said["timeout"] = seconds(said["timeout"])
            if said["timeout"] < 0.001:
                raise ValueError(f"{said['name']}: timeout={said['timeout']:g}: at least a millisecond")
        if not isinstance(said.get("version", 1), int) or said.get("version", 1) < 1:
            raise ValueError(f"version={said['version']!r}: a whole number, from 1 on")
        _check_on_failure(said.get("on_failure"))
        for option in {"priority", "max_crashes"} & said.keys():
            whole_number(option, said[option])
        check_retry(said.get("retry", ONCE))
        queue = self.queues.get(said.get("queue", "default"))
        if queue is None:
            raise ValueError(f"{said['name']}: queue {said['queue']!r} is not declared: App(queues=[Queue({said['queue']!r})])")
        if "version" in said and kind is not Workflow:
            raise TypeError(f"{said['name']}: only a workflow has a version: give a new {kind.kind} another name with name=")
        function = (async_kind if inspect.iscoroutinefunction(fn) else kind)(self, fn, Definition(**said))
        parameters = function.signature.parameters  # says now what is wrong with them
        if queue.fair_by is not None and queue.fair_by not in parameters:
            raise TypeError(
                f"{function.name}: its queue {queue.name!r} is shared fairly by {queue.fair_by!r}, which is not a parameter: "
                "give it that parameter, or another queue"
            )
        version = function.definition.version
        for name in (versioned(name, version) for name in (function.name, *function.definition.aliases)):
            if name in self.functions:
                raise ValueError(f"two functions are called {name!r}: give one of them another with name=")
            self.functions[name] = function
        return function

    def schedule(
        self,
        cron: str | None = None,
        *,
        every: Duration | None = None,
        timezone: str = "UTC",
        name: str | None = None,
        input: Mapping[str, Any] | None = None,
        queue: str | None = None,
        priority: int | None = None,
        misfire: Misfire = "once",
        grace: Duration = 60,
        overlap: bool = True,
    ) -> Callable[[F], F]:
        """Enqueue a job of a workflow, step or transaction at these times: a decorator above the one that registers it.

        ``cron``: five fields (minute hour day month weekday), or six with the seconds in front, in this ``timezone``; where its
        clock is changed, it does what Debian's cron does. Or ``every``: an interval from 1 second to 366 days, counted from 1970
        in UTC. ``input``: the arguments by name. ``name``: of the schedule; that of the function unless given.

        ``misfire``: what becomes of ticks that are more than ``grace`` late, because nobody was there: ``once`` (one job for all
        of them), ``skip`` (none) or ``all`` (each). ``overlap=False``: a tick is left out while an earlier job has not ended.
        ``current().meta`` of the job has ``schedule``, its name, and ``due_at``, the tick.

        >>> app = App()
        >>> @app.schedule("0 9 * * mon-fri", timezone="Europe/London", overlap=False)
        ... @app.workflow(name="report")
        ... def report() -> None: ...
        """

        def declare(function: F) -> F:
            if not isinstance(function, Function) or function.app is not self:
                raise TypeError(
                    f"{function!r} is not registered with this App: put @app.schedule(...) above @app.workflow, @app.step or "
                    "@app.transaction"
                )
            declared = self._declared(
                function,
                cron,
                every,
                timezone,
                name or function.name,
                dict(input or {}),
                queue,
                priority,
                misfire,
                grace,
                overlap,
            )
            if declared.name in self.schedules:
                raise ValueError(f"two schedules are called {declared.name!r}: give one of them another with name=")
            self.schedules[declared.name] = declared
            return function

        return declare

    def _declared(
        self, function: Function[Any, Any], cron: str | None, every: Duration | None, timezone: str, name: str,
        input: dict[str, Any], queue: str | None, priority: int | None, misfire: Misfire, grace: Duration, overlap: bool,
    ) -> Declared:  # fmt: skip
        where = f"schedule {name}"
        if cron is not None and not isinstance(cron, str):
            raise TypeError(f"{where}: {cron!r} is no cron expression: give a text such as '0 9 * * mon-fri'")
        if not NAME.fullmatch(name):
            raise ValueError(f"{name!r} cannot be the name of a schedule: 1 to 128 letters, digits and _ . : -")
        if misfire not in MISFIRES:
            raise ValueError(f"{where}: misfire={misfire!r}: use {', '.join(map(repr, MISFIRES))}")
        if not 1 <= seconds(grace) <= 366 * 86400:
            raise ValueError(f"{where}: grace={grace!r}: from 1 second to 366 days")
        if priority is not None and not 0 <= priority <= 9:
            raise ValueError(f"{where}: priority={priority!r}: 0 (first) to 9 (last)")
        if queue is not None and queue not in self.queues:
            raise ValueError(f"{where}: queue {queue!r} is not declared: App(queues=[Queue({queue!r})])")
        interval = None if every is None else seconds(every)
        try:
            times = times_of(cron, interval, timezone)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        if following(times, datetime.now(UTC)) is None:
            raise ValueError(f"{where}: {cron!r} never comes")
        try:
            arguments = function.bind((), input)
        except TypeError as error:
            raise TypeError(f"{where}: {error}: give the arguments with input={{...}}") from None
        stored = function.compared(arguments, function.definition.unique)
        text = function.input.encode(stored, f"the input of {where}")
        return Declared(
            name, function.name, cron, interval, timezone, text, queue, priority, misfire, seconds(grace), bool(overlap)
        )

    # ---------------------------------------------------------------------------------------------- hooks

    def on(self, event: Hook) -> Callable[[H], H]:
        """Register a function to be called in every worker process: at ``worker_start`` before its first job (an error ends the
        worker), at ``worker_stop`` after its last one. Where jobs are ``async def``, it may be one too.

        >>> app = App()
        >>> @app.on("worker_start")
        ... def warm_up() -> None:
        ...     print("ready")
        """
        if event not in self.hooks:
            raise ValueError(f"{event!r} is no event: {' and '.join(self.hooks)} are")

        def register(hook: H) -> H:
            self.hooks[event].append(hook)
            return hook

        return register

    def middleware(self, fn: M) -> M:
        """Register a generator function that wraps every run of every job: what is before its ``yield`` happens before the
        job's code, what is behind it afterwards. It gets what ``current()`` is inside. The first one registered is the outermost.

        The code of a job runs again after a crash, and so does this. Errors come out of the ``yield`` and must go on.

        >>> app = App()
        >>> @app.middleware
        ... def log(job):
        ...     print("begin", job.name)
        ...     yield
        """
        yields = inspect.isgeneratorfunction(fn)
        if not yields:
            raise TypeError(f"{fn.__qualname__}: a middleware is a def with one yield")
        self.middlewares.append(contextmanager(fn))
        return fn

    # --------------------------------------------------------------------------------------------- metrics

    def counter(self, name: str, help: str, labels: Sequence[str] = ()) -> Counter:
        """A counter of your own, shown by the supervisor beside pgqueue's: see the guide to metrics. Its name ends with _total.

        >>> app = App()
        >>> mails = app.counter("mails_total", "Mails that were sent.", ["provider"])
        >>> mails.inc(provider="ours")
        """
        return self._instrument(Counter, Family(name, "counter", help, tuple(labels)))

    def gauge(self, name: str, help: str, labels: Sequence[str] = (), combine: Combine = "sum") -> Gauge:
        """A number that goes up and down. Each worker has its own; ``combine`` says what is shown: the ``sum``, the ``max`` or
        ``min`` of those of living workers, or the ``latest`` that any of them has set."""
        return self._instrument(Gauge, Family(name, "gauge", help, tuple(labels), combine=combine))

    def histogram(self, name: str, help: str, labels: Sequence[str] = (), buckets: Sequence[float] = SECONDS) -> Histogram:
        """How many values fell into which range. ``buckets``: the upper ends; those for seconds unless given."""
        return self._instrument(Histogram, Family(name, "histogram", help, tuple(labels), tuple(map(float, buckets))))

    def _instrument(self, kind: type[I], family: Family) -> I:
        if family.name in self.instruments:
            raise ValueError(f"two metrics are called {family.name!r}: give one of them another name")
        made = kind(self, check(family))
        self.instruments[family.name] = made
        return made

    # ------------------------------------------------------------------------------------------- producing

    def enqueue_many(self, calls: Sequence[Call[R]], *, conn: psycopg.Connection[Any] | None = None) -> list[Job[R]]:
        """Enqueue many calls at once, all or none: ``app.enqueue_many(send_mail.map(addresses))``. Handles in the same order."""
        wanted = _descriptions(calls)
        run = joined_run() if conn is None else None
        ids = run.enqueue(wanted) if run is not None else self.client.send(wanted, conn)
        return [Job(self.client.pool, id, call.function.result) for id, call in zip(ids, calls, strict=True)]

    def aenqueue_many(
        self, calls: Sequence[Call[R]], *, conn: psycopg.AsyncConnection[Any] | None = None
    ) -> Coroutine[Any, Any, list[AsyncJob[R]]]:
        """``enqueue_many`` for async code, to be awaited."""
        wanted = _descriptions(calls)
        run = joined_run() if conn is None else None
        sending = run.aenqueue(wanted) if run is not None else self.async_client.send(wanted, conn)
        return self._async_handles(sending, calls)

    async def _async_handles(self, sending: Coroutine[Any, Any, list[str]], calls: Sequence[Call[R]]) -> list[AsyncJob[R]]:
        ids = await sending
        return [AsyncJob(self.async_client.pool, id, call.function.result) for id, call in zip(ids, calls, strict=True)]

    def send_event(self, key: str, value: Any = None, *, conn: psycopg.Connection[Any] | None = None) -> bool:
        """Say that something has happened: workflows that wait for it with ``wait_event(key)`` go on, now or when they come to
        it. The first value of a key counts, and is kept. True: this was the first.

        With ``conn`` it happens if and only if that transaction commits; in a transaction of a job it joins that one.
        """
        run = joined_run() if conn is None else None
        if run is None:
            return self.client.send_event(key, value, conn=conn)
        return run.tell("pgqueue.send_event", protocol.send_event(key, encoded(value, f"the value of event {key!r}")))

    async def asend_event(self, key: str, value: Any = None, *, conn: psycopg.AsyncConnection[Any] | None = None) -> bool:
        """``send_event`` for async code, to be awaited."""
        run = joined_run() if conn is None else None
        if run is None:
            return await self.async_client.send_event(key, value, conn=conn)
        return await run.atell("pgqueue.send_event", protocol.send_event(key, encoded(value, f"the value of event {key!r}")))

    @overload
    def using(self, conn: psycopg.Connection[Any]) -> AppUsing: ...
    @overload
    def using(self, conn: psycopg.AsyncConnection[Any]) -> AsyncAppUsing: ...
    def using(self, conn: Any) -> Any:
        """The same on the caller's connection: ``app.using(conn).send_event(key)`` happens if and only if it commits."""
        if isinstance(conn, psycopg.Connection):
            return AppUsing(self, conn)
        if isinstance(conn, psycopg.AsyncConnection):
            return AsyncAppUsing(self, conn)
        raise TypeError(f"using() takes a psycopg.Connection or AsyncConnection, not {type(conn).__name__}")

    def limit(self, queue: str, **limits: Any) -> dict[str, Any]:
        """Choose limits of a queue, for the whole cluster and at once: the arguments of Queue by name. ``None`` takes a choice
        back, so that what the App declares holds again; 0: no such limit. ``weights``: of those that are named, in the same way.
        What is chosen wins, and stays when workers start again. Returns what is in force now.

        Errors: UnknownQueue; TypeError or ValueError for what is no limit.
        """
        call = protocol.limit_queue(queue, chosen_limits(queue, limits))
        with errors_translated():
            return blocking(self.client.pool.run(call))

    def pause(self, queue: str) -> None:
        """Nobody claims from this queue any more, until ``resume``. What runs goes on. UnknownQueue if there is none."""
        with errors_translated():
            blocking(self.client.pool.run(protocol.pause(queue)))

    def resume(self, queue: str) -> None:
        """Workers claim from this queue again. UnknownQueue if there is none."""
        with errors_translated():
            blocking(self.client.pool.run(protocol.resume(queue)))

    async def alimit(self, queue: str, **limits: Any) -> dict[str, Any]:
        """``limit`` for async code, to be awaited."""
        call = protocol.limit_queue(queue, chosen_limits(queue, limits))
        with errors_translated():
            return await self.async_client.pool.run(call)

    async def apause(self, queue: str) -> None:
        """``pause`` for async code, to be awaited."""
        with errors_translated():
            await self.async_client.pool.run(protocol.pause(queue))

    async def aresume(self, queue: str) -> None:
        """``resume`` for async code, to be awaited."""
        with errors_translated():
            await self.async_client.pool.run(protocol.resume(queue))

    def job(self, id: str) -> Job[Any]:
        """The handle of a job."""
        return self.client.job(id)

    def async_job(self, id: str) -> AsyncJob[Any]:
        """The handle of a job, for async code."""
        return self.async_client.job(id)

    def close(self) -> None:
        """Close the connections of this process. Those of an event loop: ``await app.aclose()``, in it."""
        self.client.close()

    async def aclose(self) -> None:
        """Close the connections of this event loop."""
        await self.async_client.close()

    # -------------------------------------------------------------------------------------------- starting

    def load(self) -> None:
        """Import the modules named in ``include``."""
        for module in self.include:
            importlib.import_module(module)

    def registration(self, *, exact: bool = False) -> protocol.Call[None]:
        """The call that makes queues and workflows known to SQL producers, and schedules to housekeepers. ``exact``: also where
        what is known of a workflow is of a later version."""
        newest: dict[str, Function[Any, Any]] = {}
        for f in self.functions.values():
            if f.name not in newest or f.definition.version > newest[f.name].definition.version:
                newest[f.name] = f
        workflows = [
            {
                "name": f.name,
                "aliases": f.definition.aliases,
                "kind": f.kind,
                "queue": f.definition.queue,
                "priority": f.definition.priority,
                "max_crashes": f.definition.max_crashes,
                "key": f.definition.key,
                "version": f.definition.version,
                "timeout": f.definition.timeout if f.kind == "workflow" else None,
                "on_failure": f.definition.on_failure.name if f.definition.on_failure is not None else None,
                "exact": exact,
                "uniqueness": (described(f.definition.unique) or None) if f.definition.unique is not None else None,
            }
            for f in newest.values()
        ]
        queues = [{"name": queue.name, "limits": queue.limits()} for queue in self.queues.values()]
        schedules = [declared.description() for declared in self.schedules.values()]
        return protocol.register_app(
            msgspec.json.encode(queues).decode(),
            msgspec.json.encode(workflows).decode(),
            self.name,
            msgspec.json.encode(schedules).decode(),
        )


@dataclass(frozen=True)
class AppUsing:
    """An App on the connection of its caller."""

    app: App
    conn: psycopg.Connection[Any]

    def enqueue_many(self, calls: Sequence[Call[R]]) -> list[Job[R]]:
        """Enqueue calls if and only if the connection's transaction commits."""
        return self.app.enqueue_many(calls, conn=self.conn)

    def send_event(self, key: str, value: Any = None) -> bool:
        """Send an event if and only if the connection's transaction commits."""
        return self.app.send_event(key, value, conn=self.conn)


@dataclass(frozen=True)
class AsyncAppUsing:
    """An App on the async connection of its caller."""

    app: App
    conn: psycopg.AsyncConnection[Any]

    def aenqueue_many(self, calls: Sequence[Call[R]]) -> Coroutine[Any, Any, list[AsyncJob[R]]]:
        """Enqueue calls if and only if the connection's transaction commits. To be awaited."""
        return self.app.aenqueue_many(calls, conn=self.conn)

    def asend_event(self, key: str, value: Any = None) -> Coroutine[Any, Any, bool]:
        """Send an event if and only if the connection's transaction commits. To be awaited."""
        return self.app.asend_event(key, value, conn=self.conn)


def _descriptions(calls: Sequence[Call[Any]]) -> list[dict[str, Any]]:
    for call in calls:
        if not isinstance(call, Call):
            raise TypeError(f"enqueue_many takes calls, made with f.call(...) or f.map(...), not {call!r}")
    return [call.description() for call in calls]


def _check_on_failure(function: Any) -> None:
    if function is None:
        return
    if not isinstance(function, Function):
        raise TypeError(f"on_failure={function!r}: give a registered workflow, step or transaction")
    others = [p for p in function.signature.parameters.values() if p.name != "failure" and p.default is p.empty]
    if others or "failure" not in function.signature.parameters:
        raise TypeError(f"{function.name}: what on_failure enqueues takes one parameter, called failure (see pgqueue.Failure)")


def default_name(fn: Callable[..., Any]) -> str:
    """``module.qualname``. ValueError where that would not be the same in every process."""
    if fn.__module__ == "__main__" or "<locals>" in fn.__qualname__:
        raise ValueError(
            f"{fn.__qualname__} lives in {fn.__module__}: its name would not be the same in other processes, "
            "so give it one: @app.step(name='...')"
        )
    return f"{fn.__module__}.{fn.__qualname__}"
