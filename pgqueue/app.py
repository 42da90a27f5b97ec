"""App: the explicit registry of an application's workflows, steps, transactions and queues."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar, overload

import msgspec
import psycopg

from pgqueue import protocol
from pgqueue.client import Client, Job
from pgqueue.context import joined_run
from pgqueue.functions import Call, Definition, Function, Step, Transaction, Workflow
from pgqueue.model import Isolation, Queue
from pgqueue.retry import ONCE, Duration, Retry, seconds

P = ParamSpec("P")
R = TypeVar("R")
F = TypeVar("F", bound=Function[Any, Any])


class App:
    """The functions and queues of one application. Building it neither connects nor needs a DSN.

    ``dsn``: where the application's database is; without it ``PGQUEUE_DSN`` is used at the first connection.
    ``queues``: those that exist besides ``default``. ``include``: modules to import at start, because they register functions.

    >>> app = App(queues=[Queue("mail")])
    >>> @app.step(name="send_mail", queue="mail")
    ... def send_mail(to: str) -> str:
    ...     return "sent to " + to
    >>> send_mail("ann@example.org")     # outside of a job: the plain function
    'sent to ann@example.org'
    """

    def __init__(self, dsn: str | None = None, *, queues: Iterable[Queue] = (), include: Sequence[str] = ()) -> None:
        self.client = Client(dsn)
        self.queues: dict[str, Queue] = {"default": Queue("default")}
        for queue in queues:
            if not isinstance(queue, Queue):
                raise TypeError(f"queues takes Queue objects, not {queue!r}")
            if queue.name in self.queues and queue.name != "default":
                raise ValueError(f"queue {queue.name!r} is declared twice")
            self.queues[queue.name] = queue
        self.include = tuple(include)
        self.functions: dict[str, Function[Any, Any]] = {}

    @property
    def dsn(self) -> str:
        """The DSN in use. NotConfigured where none was given."""
        return self.client.pool.dsn

    # ------------------------------------------------------------------------------------------ decorators

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
    ) -> Callable[[Callable[P, R]], Workflow[P, R]]: ...
    def workflow(self, *fn: Any, **said: Any) -> Any:
        """Register a workflow: plain code that calls steps and transactions, and survives any crash.

        ``retry``: tries of the whole workflow (none by default: its steps have their own). ``max_crashes``: after so many
        dead worker processes without progress in between it fails. ``key``: the parameter whose value is the job's key.
        """
        return self._register(Workflow, *fn, **{"retry": ONCE, **said})

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
    ) -> Callable[[Callable[P, R]], Step[P, R]]: ...
    def step(self, *fn: Any, **said: Any) -> Any:
        """Register a step: its result is checkpointed after it ran, so it runs at least once. For the outside world.

        ``retry``: five tries by default, 2 s doubling, with jitter; between them no worker is held.
        """
        return self._register(Step, *fn, **said)

    @overload
    def transaction(self, fn: Callable[Concatenate[psycopg.Connection[Any], P], R], /) -> Transaction[P, R]: ...
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
        isolation: Isolation = "read committed",
        idle_timeout: Duration = 20,
    ) -> Callable[[Callable[Concatenate[psycopg.Connection[Any], P], R]], Transaction[P, R]]: ...
    def transaction(self, *fn: Any, isolation: Isolation = "read committed", idle_timeout: Duration = 20, **said: Any) -> Any:
        """Register a transaction: its writes through the connection it is given, and its checkpoint, are one commit.

        So they happen exactly once, whatever is killed when. ``isolation``: conflicts at the higher levels are run again and
        not counted. ``idle_timeout``: the server ends it when the code talks to nobody for so long (a stopped worker must
        not hold locks): slow work belongs into a step.
        """
        if isolation not in ("read committed", "repeatable read", "serializable"):
            raise ValueError(f"isolation={isolation!r}: use 'read committed', 'repeatable read' or 'serializable'")
        return self._register(Transaction, *fn, isolation=isolation, idle_timeout=seconds(idle_timeout), **said)

    def _register(self, kind: type[F], fn: Callable[..., Any] | None = None, **said: Any) -> Any:
        if fn is None:
            return lambda fn: self._register(kind, fn, **said)
        if isinstance(fn, Function):
            raise TypeError(f"{fn.name} is registered already: use one decorator for one function")
        if inspect.iscoroutinefunction(fn):
            raise TypeError(f"{fn.__qualname__}: async def functions are not supported yet; use def")
        said["name"] = said.get("name") or default_name(fn)
        said["aliases"] = tuple(said.get("aliases", ()))
        if not 0 <= said.get("priority", 5) <= 9:
            raise ValueError(f"priority={said['priority']!r}: 0 (first) to 9 (last)")
        if said.get("max_crashes", 3) < 1:
            raise ValueError(f"max_crashes={said['max_crashes']!r}: at least 1")
        if said.get("queue", "default") not in self.queues:
            raise ValueError(f"{said['name']}: queue {said['queue']!r} is not declared: App(queues=[Queue({said['queue']!r})])")
        function = kind(self, fn, Definition(**said))
        _ = function.signature  # says now what is wrong with the parameters
        for name in (function.name, *function.definition.aliases):
            if name in self.functions:
                raise ValueError(f"two functions are called {name!r}: give one of them another with name=")
            self.functions[name] = function
        return function

    # ------------------------------------------------------------------------------------------- producing

    def enqueue_many(self, calls: Sequence[Call[R]], *, conn: psycopg.Connection[Any] | None = None) -> list[Job[R]]:
        """Enqueue many calls at once, all or none: ``app.enqueue_many(send_mail.map(addresses))``. Handles in the same order."""
        for call in calls:
            if not isinstance(call, Call):
                raise TypeError(f"enqueue_many takes calls, made with f.call(...) or f.map(...), not {call!r}")
        wanted = [call.description() for call in calls]
        run = joined_run() if conn is None else None
        ids = run.enqueue(wanted) if run is not None else self.client.send(wanted, conn)
        return [Job(self.client, id, call.function.result) for id, call in zip(ids, calls, strict=True)]

    def job(self, id: str) -> Job[Any]:
        """The handle of a job."""
        return self.client.job(id)

    def close(self) -> None:
        """Close the connections of this process."""
        self.client.close()

    # -------------------------------------------------------------------------------------------- starting

    def load(self) -> None:
        """Import the modules named in ``include``."""
        for module in self.include:
            importlib.import_module(module)

    def registration(self) -> protocol.Call[None]:
        """The call that makes queues and workflows known to SQL producers."""
        functions = [f for name, f in self.functions.items() if name == f.name]
        workflows = [
            {
                "name": f.name,
                "aliases": f.definition.aliases,
                "kind": f.kind,
                "queue": f.definition.queue,
                "priority": f.definition.priority,
                "max_crashes": f.definition.max_crashes,
                "key": f.definition.key,
            }
            for f in functions
        ]
        queues = [{"name": name} for name in self.queues]
        return protocol.register_app(msgspec.json.encode(queues).decode(), msgspec.json.encode(workflows).decode())


def default_name(fn: Callable[..., Any]) -> str:
    """``module.qualname``. ValueError where that would not be the same in every process."""
    if fn.__module__ == "__main__" or "<locals>" in fn.__qualname__:
        raise ValueError(
            f"{fn.__qualname__} lives in {fn.__module__}: its name would not be the same in other processes, "
            "so give it one: @app.step(name='...')"
        )
    return f"{fn.__module__}.{fn.__qualname__}"
