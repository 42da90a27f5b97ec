"""What the decorators make of a function: workflows, steps and transactions, and the ways to call and enqueue them.

Long, because each kind is there for both colours, typed.
"""

from __future__ import annotations

import asyncio
import inspect
import typing
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property, update_wrapper
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypedDict, TypeVar, Unpack, overload

import msgspec
import psycopg

from pgqueue.context import active_run
from pgqueue.errors import BadValue, OutsideJob, WrongColour
from pgqueue.model import NAME, Isolation, Kind
from pgqueue.retry import Duration, Retry, seconds
from pgqueue.unique import Uniqueness, counted, described
from pgqueue.values import Codec, InputCodec

if TYPE_CHECKING:
    from pgqueue.app import App
    from pgqueue.client import AsyncJob, Job

_ANY = Codec(Any)
P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)  # so that calls with different results can be in one list


class Options(TypedDict, total=False):
    """What can be said about one job when it is enqueued."""

    queue: str
    priority: int  #: 0 (first) to 9 (last)
    delay: Duration  #: not before so much time has passed
    at: datetime  #: not before this moment; must have a time zone
    id: str  #: the same id, name and input is the same job
    key: str
    retry: Retry
    timeout: Duration  #: how long it may take, counted from the moment at which it is due; then it fails
    expires: Duration  #: how long it may wait for a worker, counted from then; after that it is cancelled
    meta: dict[str, Any]  #: what middleware and children are to know: a trace context, a tenant
    unique: Uniqueness  #: there is one such job: True (by all arguments), a list of parameters, Unique(...) or Debounce(...)
    cost: int  #: what it counts for in the concurrency and rate of its queue (1)
    max_crashes: int  #: how many dead worker processes in a row, without progress, make the job fail


@dataclass(frozen=True)
class Definition:
    """What the decorator said about a function."""

    name: str
    aliases: tuple[str, ...] = ()
    queue: str = "default"
    priority: int = 5
    retry: Retry = field(default_factory=Retry)
    max_crashes: int = 3
    key: str | None = None
    isolation: Isolation = "read committed"
    idle_timeout: float = 20.0  # seconds
    version: int = 1
    timeout: float | None = None  # seconds: of each try of a step, of a workflow as a whole
    on_failure: Function[Any, Any] | None = None
    unique: Uniqueness | None = None


@dataclass(frozen=True)
class Call(Generic[R_co]):
    """A call that is not yet made: what ``f.call(...)`` and ``f.map(...)`` return, and ``app.enqueue_many`` takes."""

    function: Function[Any, R_co]
    arguments: Mapping[str, Any]
    options: Options

    def description(self) -> dict[str, Any]:
        """The job that this call asks for, as ``enqueue_workflows`` takes it."""
        f, o = self.function, self.options
        arguments = f.compared(self.arguments, o.get("unique", f.definition.unique))
        wanted: dict[str, Any] = {
            "name": f.name,
            "input": msgspec.Raw(f.input.encode(arguments, f"the input of {f.name}").encode()),
            "queue": f.definition.queue,
            "priority": f.definition.priority,
            "version": f.definition.version,
        }
        if f.definition.key is not None:
            wanted["key"] = _key_text(self.arguments.get(f.definition.key))
        if f.kind == "workflow" and f.definition.timeout is not None:
            wanted["timeout"] = f.definition.timeout
        if f.definition.unique is not None:
            wanted["unique"] = described(f.definition.unique)
        return wanted | describe_options(o)


#: What these options can be. The database has the last word.
BOUNDS = {"priority": (0, 9), "cost": (1, 1_000_000), "max_crashes": (1, 2_147_483_647)}


def versioned(name: str, version: int) -> str:
    """As claim() has it."""
    return name if version == 1 else f"{name}@{version}"


def whole_number(option: str, value: object) -> int:
    """This value of one of BOUNDS. TypeError, BadValue."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{option}={value!r}: a whole number")
    least, most = BOUNDS[option]
    if not least <= value <= most:
        raise BadValue(f"{option}={value!r}: a whole number from {least} to {most}")
    return value


def check_retry(value: object) -> Retry:
    """A Retry, or TypeError."""
    if not isinstance(value, Retry):
        raise TypeError(f"retry={value!r}: give a Retry(...); Retry(attempts=1) runs once")
    return value


def describe_options(options: Options) -> dict[str, Any]:
    """Options as ``enqueue_workflows`` takes them. Errors for what cannot be meant."""
    wanted: dict[str, Any] = {}
    for option, value in options.items():
        if option == "delay":
            if "at" in options:
                raise TypeError("delay and at: give one of them")
            wanted["delay"] = f"{seconds(typing.cast(Duration, value))} seconds"
        elif option == "at":
            if not isinstance(value, datetime) or value.tzinfo is None:
                raise BadValue(f"at={value!r}: give a datetime with a time zone, such as datetime.now(timezone.utc)")
            wanted["run_at"] = value.isoformat()
        elif option in ("timeout", "expires"):
            wanted[option] = seconds(typing.cast(Duration, value))
            if option == "timeout" and wanted[option] < 0.001:
                raise BadValue(f"timeout={value!r}: at least a millisecond")
        elif option in ("priority", "cost", "max_crashes"):
            wanted[option] = whole_number(option, value)
        elif option in ("key", "id"):
            if not isinstance(value, str):
                raise TypeError(f"{option}={value!r}: a text")
            wanted[option] = value
        elif option == "meta":
            if not isinstance(value, dict):
                raise TypeError(f"meta={value!r}: give a dict")
            wanted["meta"] = msgspec.Raw(_ANY.encode(value, "meta").encode())
        elif option == "retry":
            wanted["retry"] = check_retry(value).numbers()
        elif option == "unique":
            wanted["unique"] = described(typing.cast(Uniqueness, value))
        elif option in Options.__annotations__:
            wanted[option] = value
        else:
            raise TypeError(f"{option!r} is not an option of enqueue: {', '.join(Options.__annotations__)}")
    return wanted


def _together(options: Options, more: Options) -> Options:
    """Later ones replace earlier ones. Errors for what cannot be meant."""
    all_of_them = Options(**{**options, **more})
    describe_options(all_of_them)
    return all_of_them


def _key_text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else msgspec.json.encode(value).decode()


async def _only(jobs: Coroutine[Any, Any, list[AsyncJob[R]]]) -> AsyncJob[R]:
    return (await jobs)[0]


class Enqueueable(Generic[P, R]):
    """A function, with what was said about the job."""

    def __init__(self, function: Function[P, R], options: Options) -> None:
        self._function = function
        self._options = options

    def call(self, *args: P.args, **kwargs: P.kwargs) -> Call[R]:
        """A call that is not yet made. A wrong argument is a TypeError here, in the producer."""
        return Call(self._function, self._function.bind(args, kwargs), self._options)

    def map(self, items: Iterable[Any]) -> list[Call[R]]:
        """One call per item, which becomes the first parameter."""
        return [Call(self._function, self._function.bind((item,), {}), self._options) for item in items]

    def enqueue(self, *args: P.args, **kwargs: P.kwargs) -> Job[R]:
        """Enqueue a job with these arguments. Inside a transaction of a job it joins that transaction; after ``using(conn)``
        it joins the caller's; otherwise it commits by itself, and can be repeated safely after a lost connection.

        Errors: BadValue for arguments that cannot be stored, UnknownQueue, IdConflict, UniqueConflict, DatabaseUnreachable.
        """
        return self._function.app.enqueue_many([self.call(*args, **kwargs)])[0]

    def aenqueue(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, AsyncJob[R]]:
        """``enqueue`` for async code, to be awaited."""
        return _only(self._function.app.aenqueue_many([self.call(*args, **kwargs)]))

    def options(self, **options: Unpack[Options]) -> Enqueueable[P, R]:
        """The same with options for the job: ``f.options(delay="10m", priority=2, id="order-7").enqueue(7)``."""
        return Enqueueable(self._function, _together(self._options, options))

    @overload
    def using(self, conn: psycopg.Connection[Any]) -> Using[P, R]: ...
    @overload
    def using(self, conn: psycopg.AsyncConnection[Any]) -> AsyncUsing[P, R]: ...
    def using(self, conn: Any) -> Any:
        """The same on the caller's connection: the job exists if and only if its transaction commits."""
        if isinstance(conn, psycopg.Connection):
            return Using(self._function, self._options, conn)
        if isinstance(conn, psycopg.AsyncConnection):
            return AsyncUsing(self._function, self._options, conn)
        raise TypeError(f"using() takes a psycopg.Connection or AsyncConnection, not {type(conn).__name__}")


class _OnConnection(Generic[P, R]):
    def __init__(self, function: Function[P, R], options: Options, conn: Any) -> None:
        self._function = function
        self._options = options
        self._conn = conn

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call[R]:
        return Call(self._function, self._function.bind(args, kwargs), self._options)

    def _transaction(self, is_async: bool) -> Callable[..., Any]:
        f = self._function
        if f.kind != "transaction":
            raise TypeError(f"{f.name} is a {f.kind}: only a transaction can be called on a connection")
        if f.is_async != is_async:
            raise WrongColour(f"{f.name} is {'an async def' if f.is_async else 'a def'} and needs a connection of that kind")
        return f.fn


class Using(_OnConnection[P, R]):
    """A function on the connection of its caller."""

    def enqueue(self, *args: P.args, **kwargs: P.kwargs) -> Job[R]:
        """Enqueue a job that exists if and only if the connection's transaction commits."""
        return self._function.app.enqueue_many([self._call(args, kwargs)], conn=self._conn)[0]

    def options(self, **options: Unpack[Options]) -> Using[P, R]:
        """The same with options for the job."""
        return Using(self._function, _together(self._options, options), self._conn)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run a transaction's code in the transaction of this connection. It is the caller's: pgqueue does not commit it."""
        result: R = self._transaction(is_async=False)(self._conn, *args, **kwargs)
        return result


class AsyncUsing(_OnConnection[P, R]):
    """A function on the async connection of its caller."""

    def aenqueue(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, AsyncJob[R]]:
        """Enqueue a job that exists if and only if the connection's transaction commits. To be awaited."""
        return _only(self._function.app.aenqueue_many([self._call(args, kwargs)], conn=self._conn))

    def options(self, **options: Unpack[Options]) -> AsyncUsing[P, R]:
        """The same with options for the job."""
        return AsyncUsing(self._function, _together(self._options, options), self._conn)

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run a transaction's code in the transaction of this connection. It is the caller's: pgqueue does not commit it."""
        result: R = await self._transaction(is_async=True)(self._conn, *args, **kwargs)
        return result


class Function(Enqueueable[P, R]):
    """A registered function. ``fn`` is the bare one, for unit tests."""

    kind: Kind
    is_async = False

    def __init__(self, app: App, fn: Callable[..., Any], definition: Definition) -> None:
        super().__init__(self, Options())
        self.app = app
        self.fn = fn
        self.definition = definition
        update_wrapper(self, fn)  # type: ignore[arg-type]  # callable in its subclasses
        for name in (definition.name, *definition.aliases):
            if not NAME.fullmatch(name):
                raise ValueError(f"{name!r} cannot be a name: 1 to 128 letters, digits and _ . : - (give one with name=)")
        if definition.key is not None and definition.key not in self.signature.parameters:
            raise TypeError(f"key={definition.key!r} is not a parameter of {definition.name}")
        if definition.unique is not None:
            counted(described(definition.unique), self.signature.parameters)

    @property
    def name(self) -> str:
        """The name under which jobs and checkpoints are stored."""
        return self.definition.name

    @property
    def registered(self) -> str:
        """The name by which workers know it: with its version, from the second on."""
        return versioned(self.definition.name, self.definition.version)

    @property
    def short_name(self) -> str:
        """As its author calls it."""
        return self.name.rpartition(".")[2]

    @cached_property
    def known_names(self) -> frozenset[str]:
        """The names that its checkpoints may carry."""
        return frozenset((self.definition.name, *self.definition.aliases))

    def __repr__(self) -> str:
        return f"<{self.kind} {self.name}>"

    @cached_property
    def signature(self) -> inspect.Signature:
        """The parameters that a caller gives: a transaction's connection is not among them."""
        parameters = list(inspect.signature(self.fn).parameters.values())
        if self.kind == "transaction":
            if not parameters:
                raise TypeError(f"{self.name}: a transaction takes the connection as its first parameter")
            parameters = parameters[1:]
        for parameter in parameters:
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
                raise TypeError(
                    f"{self.name}({parameter}): parameters are stored by name, so each needs one: no *args, **kwargs or /"
                )
        return inspect.Signature(parameters)

    def compared(self, arguments: Mapping[str, Any], unique: Uniqueness | None) -> Mapping[str, Any]:
        """The arguments of a job, with the defaults of those that make it unique: they are equal to the same value."""
        if unique is None:
            return arguments
        parameters = self.signature.parameters
        names = counted(described(unique), parameters)
        return {**{n: parameters[n].default for n in names if parameters[n].default is not inspect.Parameter.empty}, **arguments}

    @cached_property
    def _hints(self) -> dict[str, Any]:
        try:
            return typing.get_type_hints(self.fn, include_extras=True)
        except Exception:  # noqa: BLE001 -- names that exist for type checkers only; values then go by JSON's own types
            return {}

    @cached_property
    def input(self) -> InputCodec:
        """How arguments are stored."""
        return InputCodec(self.signature.parameters, self._hints)

    @cached_property
    def result(self) -> Codec:
        """How the return value is stored."""
        return Codec(self._hints.get("return", Any))

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments by name. TypeError where they do not fit the signature."""
        try:
            return dict(self.signature.bind(*args, **kwargs).arguments)
        except TypeError as error:
            raise TypeError(f"{self.name}{self.signature}: {error}") from None

    def encode_result(self, value: Any, limit: int) -> str:
        """JSON text of a return value, or BadValue."""
        return self.result.encode(value, f"the result of {self.name}", limit)

    def _plain(self) -> Callable[..., Any]:
        """What a call outside of any job does."""
        if self.kind == "transaction":
            raise OutsideJob(
                f"{self.name} is a transaction and needs a connection: outside of a job call "
                f"{self.short_name}.using(conn)(...), which runs it in the transaction of that connection"
            )
        return self.fn


class _Called(Function[P, R]):
    """A ``def``."""

    fn: Callable[..., R]

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        run = active_run()
        result: R = self._plain()(*args, **kwargs) if run is None else run.call(self, self.bind(args, kwargs))
        return result

    def aio(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:
        """Call it from async code: it runs in a thread, and the event loop goes on."""
        run = active_run()
        if run is None:
            return asyncio.to_thread(self._plain(), *args, **kwargs)
        return run.acall(self, self.bind(args, kwargs))


class _Awaited(Function[P, R]):
    """An ``async def``."""

    is_async = True
    fn: Callable[..., Coroutine[Any, Any, R]]

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:
        run = active_run()
        coroutine: Coroutine[Any, Any, R] = (
            self._plain()(*args, **kwargs) if run is None else run.acall(self, self.bind(args, kwargs))
        )
        return coroutine

    def aio(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:
        """The same as calling it."""
        return self(*args, **kwargs)


class Workflow(_Called[P, R]):
    """A durable function. After a crash it runs again from its first line, and what it did already is replayed."""

    kind = "workflow"


class Step(_Called[P, R]):
    """A function whose result is checkpointed after it ran: at least once. Outside of a job it is the plain function."""

    kind = "step"


class Transaction(_Called[P, R]):
    """A function whose database writes and checkpoint commit together: exactly once."""

    kind = "transaction"


class AsyncWorkflow(_Awaited[P, R]):
    """An ``async def`` workflow."""

    kind = "workflow"


class AsyncStep(_Awaited[P, R]):
    """An ``async def`` step."""

    kind = "step"


class AsyncTransaction(_Awaited[P, R]):
    """An ``async def`` transaction: its first parameter is a psycopg.AsyncConnection."""

    kind = "transaction"
