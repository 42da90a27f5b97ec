"""The door to PostgreSQL: connections, running a Call, and what an error of the server means.

Everything above speaks in Calls (see protocol.py) and in the errors of pgqueue. Long, because connections, pools and what is made
of the server's errors know each other.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import psycopg
from psycopg import conninfo
from psycopg.types.string import TextLoader
from psycopg_pool import AsyncConnectionPool, ConnectionPool, PoolTimeout

from pgqueue import protocol
from pgqueue.errors import (
    BY_SQLSTATE,
    Configuration,
    DatabaseUnreachable,
    NotConfigured,
    NotPermitted,
    PgQueueError,
    SchemaMissing,
)
from pgqueue.protocol import Call

T = TypeVar("T")
log = logging.getLogger(__name__)

SCHEMA_VERSION = 14
"""The schema that this version of pgqueue needs: the highest number in sql/tables."""

#: Of libpq: any of them says that the database is named by such variables.
LIBPQ = ("PGSERVICE", "PGHOST", "PGHOSTADDR", "PGDATABASE")

#: A peer that is gone is noticed in about 25 s, also while a statement runs.
_NETWORK = {
    "keepalives_idle": "5",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "15000",
    "connect_timeout": "10",
}
_TRANSIENT = {"40001", "40P01", "55P03"}  # serialization failure, deadlock, lock not available: run it again
#: The server's trouble, never the job's: connection, shutdown, disk full, too many connections, read only, idle in transaction.
_INFRASTRUCTURE = ("08", "57P", "53100", "53300", "25006", "25P03")


def dsn_from(explicit: str | None) -> str:
    """The DSN to use: the given one, or PGQUEUE_DSN, or an empty one where libpq's own variables say where; or NotConfigured."""
    dsn = explicit or os.environ.get("PGQUEUE_DSN")
    if not dsn and not any(os.environ.get(variable) for variable in LIBPQ):
        raise NotConfigured("no database was named: set PGQUEUE_DSN, or give it in code: App('postgresql://user@host/database')")
    return dsn or ""


def masked(dsn: str) -> str:
    """A DSN that can be shown: without its secrets.

    >>> masked("postgresql://app:hunter2@db/shop")
    'user=app password=*** dbname=shop host=db'
    """
    if _is_misquoted(dsn):
        return f"(a DSN that cannot be parsed: {QUOTE})"
    try:
        parts = conninfo.conninfo_to_dict(dsn)
    except psycopg.ProgrammingError:
        return "(a DSN that cannot be parsed)"
    shown = " ".join(f"{key}={'***' if 'password' in key else value}" for key, value in parts.items())
    return shown or "(where libpq's variables say, such as PGHOST)"


QUOTE = "a password in it has to be quoted, @ as %40, / as %2F"


def _is_misquoted(dsn: str) -> bool:
    """Is there a password with @ or / in it? Then libpq takes a piece of that for a host, a port or a database, and says so."""
    if not dsn.startswith(("postgresql://", "postgres://")):
        return False
    authority, _, rest = dsn.partition("://")[2].partition("/")
    (_, at, place), rest = authority.partition("@"), rest.partition("?")[0]
    return "@" in place.partition("?")[0] or ("@" in rest and ("/" in rest or (not at and ":" in authority)))


def connect(dsn: str, name: str) -> psycopg.Connection[Any]:
    """A connection in autocommit mode with our network settings. DatabaseUnreachable where there is none to be had."""
    params = _parameters(dsn, name)
    with _unreachable(dsn):
        conn = psycopg.Connection.connect(**params)
        try:
            _configure(conn)
        except BaseException:
            conn.close()
            raise
        return conn


async def connect_async(dsn: str, name: str) -> psycopg.AsyncConnection[Any]:
    """The same for an event loop."""
    params = _parameters(dsn, name)
    with _unreachable(dsn):
        conn = await psycopg.AsyncConnection.connect(**params)
        try:
            await _configure_async(conn)
        except BaseException:
            await conn.close()
            raise
        return conn


def parsed(dsn: str) -> dict[str, Any]:
    """The parts of a DSN. Configuration, without its secrets, if libpq could not read it."""
    if _is_misquoted(dsn):
        raise Configuration(f"the DSN cannot be parsed: {QUOTE}")
    try:
        return conninfo.conninfo_to_dict(dsn)
    except psycopg.ProgrammingError:
        raise Configuration(
            "the DSN cannot be parsed: use postgresql://user:password@host:5432/database, or key=value pairs"
        ) from None


def _parameters(dsn: str, name: str) -> dict[str, Any]:
    return {**_NETWORK, **parsed(dsn), "application_name": name, "client_encoding": "utf8", "autocommit": True}


@contextmanager
def _unreachable(dsn: str) -> Iterator[None]:
    try:
        yield
    except psycopg.OperationalError as error:
        raise DatabaseUnreachable(f"cannot connect to {masked(dsn)}: {_harmless(error, dsn)}") from None


def _configure(conn: psycopg.Connection[Any]) -> None:
    """Ids are texts with us: cheaper than objects, and what people read. Verbs run at their level, whatever the default is."""
    conn.adapters.register_loader("uuid", TextLoader)
    if not _is_ours(conn, *run(conn, protocol.session(conn.info.backend_pid))):
        run(conn, protocol.read_committed())


async def _configure_async(conn: psycopg.AsyncConnection[Any]) -> None:
    conn.adapters.register_loader("uuid", TextLoader)
    if not _is_ours(conn, *await run_async(conn, protocol.session(conn.info.backend_pid))):
        await run_async(conn, protocol.read_committed())


def _is_ours(conn: psycopg.Connection[Any] | psycopg.AsyncConnection[Any], direct: bool, read_committed: bool) -> bool:
    """Note what was found out of the session. Can it be used as it is?

    Behind a pooler the session is lent for one transaction. So nothing may be left in it: no prepared statements, which older
    ones cannot do, and no settings."""
    if not direct:
        conn.prepare_threshold = None
        conn.__dict__["pgqueue_pooled"] = True
        if not read_committed:
            raise Configuration(
                "behind a connection pooler the sessions have to begin at READ COMMITTED: "
                "ALTER ROLE ... SET default_transaction_isolation = 'read committed', for the role that connects"
            )
    return read_committed


def is_pooled(conn: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> bool:
    """Does one of our connections lead to a pooler, and not to a session of its own?"""
    return bool(conn.__dict__.get("pgqueue_pooled"))


def secrets_of(dsn: str) -> list[str]:
    """What of a DSN must not be seen; also of one that is not written as it should be."""
    raw = re.match(r"postgres(?:ql)?://[^:@/]*:(.*)@", dsn, re.DOTALL)
    found = [raw[1], *(re.split("[@/]", raw[1]) if _is_misquoted(dsn) else ())] if raw else []
    try:
        return [*found, *(str(v) for k, v in conninfo.conninfo_to_dict(dsn).items() if "password" in k and v)]
    except psycopg.ProgrammingError:
        return found


def brief(error: BaseException) -> str:
    """What an error says, in one line. Of an error of the server without DETAIL, which quotes whole rows."""
    text = error.diag.message_primary if isinstance(error, psycopg.Error) else None
    try:
        return " ".join((text or str(error)).split())
    except Exception:  # noqa: BLE001 -- somebody's __str__
        return "(no message)"


def _harmless(error: BaseException, dsn: str) -> str:
    """The message of an error without the password, in case a library put it there."""
    text = " ".join(str(error).split())
    for secret in secrets_of(dsn):
        text = text.replace(secret, "***")
    return text


def run(conn: psycopg.Connection[Any], call: Call[T]) -> T:
    """Execute a call. Errors of psycopg come out as they are; wrap them with errors_translated() towards users."""
    return call.read(conn.execute(call.sql, call.params).fetchall())


@contextmanager
def errors_translated() -> Iterator[None]:
    """Turn errors of psycopg into those of pgqueue, where they have a meaning there."""
    try:
        yield
    except PoolTimeout as error:
        raise DatabaseUnreachable(f"no connection to be had from the pool: {error}") from None
    except psycopg.Error as error:
        kind = BY_SQLSTATE.get(error.sqlstate or "")
        if kind is SchemaMissing:
            raise SchemaMissing(
                'this database has no (or an older) pgqueue schema: run "pgqueue migrate". '
                f"PostgreSQL says: {error.diag.message_primary}"
            ) from None
        if kind is NotPermitted and not error.diag.message_hint:
            raise NotPermitted(f'{error.diag.message_primary}: see "pgqueue grant --help" for what each role may do') from None
        if kind is not None:
            raise kind(". ".join(filter(None, (error.diag.message_primary, error.diag.message_hint)))) from None
        if is_lost(error):
            raise DatabaseUnreachable(f"the connection to the database was lost: {brief(error)}") from None
        raise


def is_transient(error: BaseException) -> bool:
    """A conflict with another transaction: worth running again, and nobody's failure."""
    return isinstance(error, psycopg.Error) and error.sqlstate in _TRANSIENT


def is_lost(error: BaseException) -> bool:
    """The connection, or the server, is in trouble: nothing can be concluded from it about the job."""
    if not isinstance(error, psycopg.Error):
        return isinstance(error, DatabaseUnreachable)
    if error.sqlstate is None:
        return isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError))
    return error.sqlstate.startswith(_INFRASTRUCTURE)


def backoff(tries: int, longest: float = 2.0) -> float:
    """Seconds to wait after so many failed tries, with jitter."""
    return random.uniform(0.5, 1.0) * min(longest, 0.02 * 2.0 ** min(tries, 10))  # noqa: S311 -- no secret


def schema_fits(conn: psycopg.Connection[Any]) -> bool:
    """Is the schema there and new enough?"""
    try:
        check_schema(conn)
    except SchemaMissing:
        return False
    return True


def check_schema(conn: psycopg.Connection[Any]) -> None:
    """SchemaMissing unless the schema is there and new enough."""
    try:
        found = run(conn, protocol.schema_version())
    except psycopg.errors.UndefinedTable:
        raise SchemaMissing('this database has no pgqueue schema: run "pgqueue migrate"') from None
    except psycopg.errors.InvalidSchemaName:
        raise SchemaMissing('this database has no pgqueue schema: run "pgqueue migrate"') from None
    if found < SCHEMA_VERSION:
        raise SchemaMissing(f'the pgqueue schema has version {found}, this pgqueue needs {SCHEMA_VERSION}: run "pgqueue migrate"')


async def run_async(conn: psycopg.AsyncConnection[Any], call: Call[T]) -> T:
    """``run`` on a connection of an event loop."""
    return call.read(await (await conn.execute(call.sql, call.params)).fetchall())


_POOL: dict[str, Any] = {"min_size": 0, "timeout": 30.0, "name": "pgqueue"}


def _pooled(dsn: str) -> dict[str, Any]:
    params = _parameters(dsn, "pgqueue:client")
    return {key: value for key, value in params.items() if key not in conninfo.conninfo_to_dict(dsn)}


class Pool:
    """Connections for producers, made at first use in each process: a fork never shares them."""

    def __init__(self, dsn: str | None, size: int = 10) -> None:
        self.given_dsn = dsn
        self._size = size
        self._lock = threading.Lock()
        self._pools: dict[int, ConnectionPool[psycopg.Connection[Any]]] = {}

    def __repr__(self) -> str:
        return "Pool()"  # never the DSN

    @property
    def dsn(self) -> str:
        return dsn_from(self.given_dsn)

    async def run(self, call: Call[T]) -> T:
        """Execute a call in a transaction of its own; again on a lost connection, so it must be safe to repeat. Blocks."""
        for tries in range(4):
            try:
                with self._pool().connection() as conn:
                    return run(conn, call)
            except psycopg.Error as error:
                if not is_lost(error) or tries == 3:
                    raise
                await self.pause(backoff(tries))
        raise PgQueueError("unreachable")

    @staticmethod
    async def pause(seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)

    @staticmethod
    async def until(future: Future[None], seconds: float | None) -> None:
        """Wait for that, or so long."""
        wait((future,), seconds)

    def _pool(self) -> ConnectionPool[psycopg.Connection[Any]]:
        pid = os.getpid()
        pool = self._pools.get(pid)
        if pool is None:
            with self._lock:
                pool = self._pools.get(pid) or self._open(pid)
        return pool

    def _open(self, pid: int) -> ConnectionPool[psycopg.Connection[Any]]:
        dsn = self.dsn
        connect(dsn, "pgqueue:client").close()  # a clear error at once, where a pool would try for half a minute
        pool: ConnectionPool[psycopg.Connection[Any]] = ConnectionPool(
            dsn, **_POOL, max_size=self._size, open=True, kwargs=_pooled(dsn), configure=_configure
        )
        self._pools[pid] = pool
        return pool

    def close(self) -> None:
        """Close this process's connections."""
        pool = self._pools.pop(os.getpid(), None)
        if pool is not None:
            pool.close()


class AsyncPool:
    """The same for event loops: each has its own connections, because a connection belongs to the loop that opened it."""

    def __init__(self, dsn: str | None, size: int = 10) -> None:
        self.given_dsn = dsn
        self._size = size
        self._pools: dict[asyncio.AbstractEventLoop, asyncio.Task[Any]] = {}
        self._guards: dict[asyncio.AbstractEventLoop, asyncio.Task[None]] = {}

    def __repr__(self) -> str:
        return "AsyncPool()"

    @property
    def dsn(self) -> str:
        return dsn_from(self.given_dsn)

    async def run(self, call: Call[T]) -> T:
        """Execute a call in a transaction of its own; again on a lost connection, so it must be safe to repeat."""
        for tries in range(4):
            try:
                pool = await self._pool()
                async with pool.connection() as conn:
                    return await run_async(conn, call)
            except psycopg.Error as error:
                if not is_lost(error) or tries == 3:
                    raise
                await self.pause(backoff(tries))
        raise PgQueueError("unreachable")

    @staticmethod
    async def pause(seconds: float) -> None:
        """Wait, and let others work."""
        await asyncio.sleep(seconds)

    @staticmethod
    async def until(future: Future[None], seconds: float | None) -> None:
        """Wait for that, or so long."""
        await asyncio.wait((asyncio.wrap_future(future),), timeout=seconds)

    async def _pool(self) -> AsyncConnectionPool[psycopg.AsyncConnection[Any]]:
        loop = asyncio.get_running_loop()
        opening = self._pools.get(loop)
        if opening is None:
            for closed in [other for other in self._pools if other.is_closed()]:
                del self._pools[closed]  # its connections close with their last reference
                self._guards.pop(closed, None)
            opening = self._pools[loop] = loop.create_task(self._open())
        try:
            pool: AsyncConnectionPool[psycopg.AsyncConnection[Any]] = await asyncio.shield(opening)
        except BaseException:
            if opening.done() and self._pools.get(loop) is opening:
                del self._pools[loop]  # the next call tries again
            raise
        return pool

    async def _open(self) -> AsyncConnectionPool[psycopg.AsyncConnection[Any]]:
        dsn = self.dsn
        await (await connect_async(dsn, "pgqueue:client")).close()  # a clear error at once
        pool: AsyncConnectionPool[psycopg.AsyncConnection[Any]] = AsyncConnectionPool(
            dsn, **_POOL, max_size=self._size, open=False, kwargs=_pooled(dsn), configure=_configure_async
        )
        await pool.open()
        self._guards[asyncio.get_running_loop()] = asyncio.create_task(_closed_in_the_end(pool), name="pgqueue-guard")
        return pool

    async def close(self) -> None:
        """Close the connections of this event loop."""
        opening = self._pools.pop(asyncio.get_running_loop(), None)
        if opening is not None:
            await opening
            guard = self._guards.pop(asyncio.get_running_loop())
            guard.cancel()
            await asyncio.wait((guard,))


async def _closed_in_the_end(pool: AsyncConnectionPool[psycopg.AsyncConnection[Any]]) -> None:
    """Where nobody closes the pool, asyncio.run() cancels all tasks at its end and waits for them. A worker of the pool that
    connects at this moment may miss that, and wait for ever: closing ends it."""
    with suppress(asyncio.CancelledError):
        await asyncio.get_running_loop().create_future()
    with suppress(asyncio.CancelledError):
        await pool.close()
