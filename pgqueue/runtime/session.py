"""A worker's connections for the jobs it runs: opened when needed, thrown away when in doubt.

Written once for both colours: a BlockingSession never suspends, an AsyncSession awaits. BEGIN and the fence are one round trip,
and so are the checkpoint and COMMIT. Long, because both sessions and their pools are one answer to a lost connection.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import socket
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Awaitable, Generator, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import psycopg
from psycopg import pq, waiting

from pgqueue import database, protocol
from pgqueue.database import is_lost, is_transient
from pgqueue.errors import DatabaseUnreachable, PgQueueError, TransactionMisused
from pgqueue.failpoints import failpoint
from pgqueue.model import Isolation
from pgqueue.protocol import Call
from pgqueue.runtime.connection import AnyConnection, AnyView, view_of
from pgqueue.runtime.wire import FINE, Wire, check, rows

T = TypeVar("T")
log = logging.getLogger(__name__)

MOST_ASYNC = 10
"""Connections that the ``async def`` jobs of one worker share: each needs one for its transactions and checkpoints only."""


WAIT_INTERVAL = 0.1
"""Seconds between looks at a connection that says nothing, as in psycopg."""


class Restart(BaseException):
    """The connection was lost: forget what this run knows, see what was committed, and replay. ``session`` is its name;
    ``committing`` the step whose COMMIT was under way (0: the whole job)."""

    def __init__(self, session: str = "", committing: int | None = None) -> None:
        self.session = session
        self.committing = committing


async def undisturbed(work: Awaitable[T]) -> T:
    """Wait for it to end, whatever is cancelled meanwhile. Cancelling is for the code of a step: what pgqueue has begun on its
    behalf gets done, and counts. Otherwise a timeout could take a step that has happened for one that has not."""
    task = asyncio.ensure_future(work)
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            pass
    return task.result()


class Begin(NamedTuple):
    """How a transactional step begins."""

    isolation: Isolation
    fence: Call[Any]


def _statement(sql: str) -> Call[None]:
    return Call(sql, (), lambda _: None)


_COMMIT, _ROLLBACK = _statement("COMMIT"), _statement("ROLLBACK")


def _cut(pgconn: pq.abc.PGconn) -> None:
    try:
        with socket.socket(fileno=os.dup(pgconn.socket)) as ours:
            ours.shutdown(socket.SHUT_RDWR)
    except (OSError, psycopg.Error):
        pass  # it is broken already


class Session(ABC):
    """One connection, used by one job at a time."""

    def __init__(self, dsn: str, worker: str, numbers: Iterator[int]) -> None:
        self._dsn = dsn
        self._prefix = f"pgqueue:{worker}"
        self._numbers = numbers
        self._conn: Any = None
        self._wire: Any = None
        self._ahead: tuple[Begin, bytes | None] | None = None  # begun with the last commit, and what its fence says
        self.part = ""  # what tells this session from the worker's others; every new connection has another

    @abstractmethod
    async def _open(self, name: str) -> AnyConnection:
        """Connect."""

    @abstractmethod
    async def _exchange(self, calls: Sequence[Call[Any]], view: AnyView | None = None) -> list[pq.abc.PGresult]:
        """Send statements in one message and wait for their answers. ``view``: nobody can use it any more from then on."""

    @staticmethod
    @abstractmethod
    async def pause(seconds: float) -> None:
        """Wait, and let others work."""

    # --------------------------------------------------------------------------------- statements of our own

    async def run(self, call: Call[T], again: bool = True) -> T:
        """A verb in a transaction of its own. A lost connection is a Restart; conflicts are run again if ``again``."""
        tries = 0
        while True:
            await self._ready()
            try:
                return call.read(rows(self._conn, await self._ask(call)))
            except psycopg.Error as error:
                if is_lost(error) or self.lost:
                    self.discard()
                    raise Restart(self.part) from error
                if not (again and is_transient(error)):
                    raise
                tries += 1
                await self.pause(database.backoff(tries))

    async def begin(self, begin: Begin) -> tuple[AnyView, str | None]:
        """Begin a transaction, with its fence. A view of the connection for the code that runs in it, and what the fence says."""
        if self._ahead is not None and self._ahead[0] == begin:
            answer, self._ahead = self._ahead[1], None
        else:
            await self._ready()
            answer = (await self._ask(*self._calls(begin))).get_value(0, 0)
        return view_of(self._conn), None if answer is None else answer.decode()

    async def commit(self, view: AnyView, closing: Call[bool], then: Begin | None = None) -> bool:
        """End it, with its last statement. Errors of both come out. ``then``: what is expected to begin here next, and does so
        in the same round trip."""
        self._look_at(view)
        if view.pgqueue_changed:
            then = None
        results = await self._exchange([closing, _COMMIT, *(self._calls(then) if then is not None else ())], view)
        check(results[:2])
        if results[1].command_status != b"COMMIT":  # COMMIT of an aborted transaction "succeeds" with ROLLBACK
            raise PgQueueError("the transaction was rolled back by the server")
        if then is not None and results[-1].status in FINE:
            self._ahead = (then, results[-1].get_value(0, 0))
        elif then is not None:
            await self.leave(None)
        elif view.pgqueue_changed:
            self.discard()  # the settings of one step are not those of the next
        return results[0].get_value(0, 0) == b"t"

    def _calls(self, begin: Begin) -> list[Call[Any]]:
        """Its statements. Behind a pooler the session gets its name, by which it is found, for this transaction only."""
        name = [protocol.name_transaction(self._prefix + self.part)] if database.is_pooled(self._conn) else []
        return [_statement(f"BEGIN ISOLATION LEVEL {begin.isolation}"), *name, begin.fence]

    async def abandon(self) -> None:
        """What was begun ahead is not wanted any more."""
        if self._ahead is not None:
            self._ahead = None
            await self.leave(None)

    async def leave(self, view: AnyView | None) -> None:
        """Out of a transaction that did not end well. What cannot be rolled back is closed."""
        if view is not None:
            view.pgqueue_over = True
            self._look_at(view)
        if self._conn is None:
            return
        if self._busy:
            self.discard()  # the step left it in the middle of something
        elif self.status != pq.TransactionStatus.IDLE:
            try:
                await self._ask(_ROLLBACK)
            except psycopg.Error:
                self.discard()

    def _look_at(self, view: AnyView) -> None:
        if view.pgqueue_deallocated:
            self._wire.forget()

    def check_usable(self, name: str) -> None:
        """Can the transaction be committed, as far as one sees from here?"""
        if self.status == pq.TransactionStatus.INERROR:
            raise PgQueueError(
                f"{name} went on after a database error, which had ended its transaction: let the error out, or "
                "guard the statement that may fail with a savepoint (with tx.transaction())"
            )
        if self._conn.lock.locked():
            raise TransactionMisused(
                f"{name} returned while a thread or a task that it has started was still using its connection: wait for it to end"
            )
        if self._busy:
            raise TransactionMisused(f"{name} returned in the middle of a COPY or a pipeline: leave its 'with' block before")

    @property
    def _busy(self) -> bool:
        """In the middle of something."""
        pgconn = self._conn.pgconn
        return bool(
            self._conn.lock.locked()
            or pgconn.pipeline_status != pq.PipelineStatus.OFF
            or pgconn.transaction_status == pq.TransactionStatus.ACTIVE
        )

    @property
    def status(self) -> pq.TransactionStatus:
        """What the transaction of this session is in."""
        return pq.TransactionStatus(self._conn.pgconn.transaction_status)

    @property
    def lost(self) -> bool:
        """Is there no usable connection?"""
        return self._conn is None or bool(self._conn.closed)

    def discard(self) -> None:
        """Close the connection: whatever was under way on it is in doubt."""
        conn, self._conn, self._ahead = self._conn, None, None
        if conn is None:
            return
        if conn.lock.locked():
            # A thread or a task of the step's is inside libpq, and would go on there with memory that is somebody else's. Its
            # connection breaks, and is closed when the last one lets go of it.
            _cut(conn.pgconn)
            conn._pool = None  # psycopg need not warn of it
        else:
            conn.pgconn.finish()

    async def _ready(self) -> None:
        """Connected, and in no transaction. Waits for as long as the database is away: no outage ends a worker."""
        await self.abandon()
        tries = 0
        while self.lost:
            self.discard()
            self.part = f":step:{next(self._numbers)}"
            try:
                self._conn = await self._open(self._prefix + self.part)
                self._wire = Wire(self._conn)
            except DatabaseUnreachable as error:
                log.warning("%s", error)
                tries += 1
                await self.pause(database.backoff(tries))

    async def _ask(self, *calls: Call[Any]) -> pq.abc.PGresult:
        """The answer of the last one. The first error comes out."""
        results = await self._exchange(calls)
        check(results)
        return results[-1]


class BlockingSession(Session):
    """For ``def`` functions."""

    async def _open(self, name: str) -> AnyConnection:
        return database.connect(self._dsn, name)

    async def _exchange(self, calls: Sequence[Call[Any]], view: AnyView | None = None) -> list[pq.abc.PGresult]:
        conn = self._conn
        with conn.lock:  # a thread that the step's code has started may be in the middle of a statement
            if view is not None:
                view.pgqueue_over = True
            self._wire.send(calls)
            if view is not None:
                failpoint("transaction.committing")
            results: list[pq.abc.PGresult] = conn.wait(self._wire.answers())
            return results

    @staticmethod
    async def pause(seconds: float) -> None:
        time.sleep(seconds)


class AsyncSession(Session):
    """For ``async def`` functions."""

    async def _open(self, name: str) -> AnyConnection:
        return await undisturbed(database.connect_async(self._dsn, name))

    async def _exchange(self, calls: Sequence[Call[Any]], view: AnyView | None = None) -> list[pq.abc.PGresult]:
        conn = self._conn
        if conn.lock.locked():  # by a task that the step's code has started
            await undisturbed(conn.lock.acquire())
        else:
            await conn.lock.acquire()
        try:
            if view is not None:
                view.pgqueue_over = True
            self._wire.send(calls)
            if view is not None:
                failpoint("transaction.committing")
            answers = _resumable(self._wire.answers())
            while True:
                try:
                    results: list[pq.abc.PGresult] = await waiting.wait_async(answers, conn.pgconn.socket, WAIT_INTERVAL)
                    return results
                except asyncio.CancelledError:
                    pass  # see undisturbed(): the same without a task, because this is on the way of every step
        finally:
            conn.lock.release()

    @staticmethod
    async def pause(seconds: float) -> None:
        await undisturbed(asyncio.sleep(seconds))


def _resumable(exchange: Generator[Any, Any, T]) -> Generator[Any, Any, T]:
    """An exchange of psycopg that can be waited for again after a wait was cancelled: then it wants what it wanted."""
    try:
        wanted = next(exchange)
        while True:
            ready = yield wanted
            if ready is not None:  # not just begun again
                wanted = exchange.send(ready)
    except StopIteration as end:
        result: T = end.value
        return result


class Sessions:
    """The sessions of one worker process, of one colour. Whoever needs one borrows it, for a verb or a transaction."""

    def __init__(self, kind: type[Session], dsn: str, worker: str, numbers: Iterator[int] | None = None) -> None:
        self._kind = kind
        self._dsn = dsn
        self._worker = worker
        self._numbers = numbers if numbers is not None else itertools.count(1)
        self._free: deque[Session] = deque()
        self._room = asyncio.Semaphore(MOST_ASYNC) if kind is AsyncSession else None

    def borrow(self) -> _Borrowed:
        """``async with sessions.borrow() as session``: a session for as long as the block lasts."""
        return _Borrowed(self)

    async def take(self) -> Session:
        """The same by hand; then it has to be given back."""
        if self._room is not None:
            await (undisturbed(self._room.acquire()) if self._room.locked() else self._room.acquire())
        try:
            return self._free.pop()
        except IndexError:
            return self._kind(self._dsn, self._worker, self._numbers)

    def give(self, session: Session) -> None:
        """Give it back."""
        self._free.append(session)
        if self._room is not None:
            self._room.release()

    async def run(self, call: Call[T]) -> T:
        """A verb in a transaction of its own."""
        async with self.borrow() as session:
            return await session.run(call)

    async def pause(self, seconds: float) -> None:
        """Wait, and let others work."""
        await self._kind.pause(seconds)

    async def resolve(self, job: str, token: int, part: str) -> str:
        """After a lost connection: does this run still hold its job? Waits until the old session has ended."""
        tries = 0
        while True:
            failpoint("resolve.before")
            try:
                async with self.borrow() as session:
                    return await session.run(protocol.resolve(job, token), again=False)
            except Restart:
                tries += 1
                await self.pause(database.backoff(tries))
            except psycopg.errors.LockNotAvailable:
                # The old session still holds the job after its time: end it, so that its commit has happened or never will.
                if part:
                    await self.run(protocol.end_sessions(self._worker, part))

    async def abandon(self) -> None:
        """Nothing is begun ahead any more on those that are free."""
        for session in list(self._free):
            await session.abandon()

    def close(self) -> None:
        """Close all that are free."""
        while self._free:
            self._free.pop().discard()


class _Borrowed:
    """A borrowed session. (Not a generator: this is on the way of every transaction.)"""

    __slots__ = ("_session", "_sessions")

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    async def __aenter__(self) -> Session:
        self._session = await self._sessions.take()
        return self._session

    async def __aexit__(self, *_: object) -> None:
        self._sessions.give(self._session)
