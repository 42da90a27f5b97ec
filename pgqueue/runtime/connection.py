"""The connection that a transactional step is given: all of psycopg's, except what would end the transaction.

pgqueue begins and commits it, because the step's writes and its checkpoint must be one commit. What the step's code is given
is a view of the worker's connection, good for this one transaction: whoever keeps it, or uses it in a thread, can do nothing
with it afterwards.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from types import GeneratorType
from typing import Any, NoReturn, TypeVar

import psycopg
from psycopg._cursor_base import BaseCursor
from psycopg.rows import tuple_row

from pgqueue.database import is_pooled
from pgqueue.errors import TransactionMisused

C = TypeVar("C", bound="psycopg.Connection[Any] | psycopg.AsyncConnection[Any]")

_GAP = re.compile(rb"(?:[\s;]|--[^\r\n]*)*")
_WORD = re.compile(rb"[a-z_\x80-\xff][a-z0-9_$\x80-\xff]*", re.IGNORECASE)
_LASTING = re.compile(rb"\btemp(?:orary)?\s+(?:table|view|sequence)\b|\bpg_(?:try_)?advisory_lock(?:_shared)?\b", re.IGNORECASE)
_ORDINARY = re.compile(rb"\s*(?:select|insert|update|delete|with|copy)\b", re.IGNORECASE)
_COMMENT = re.compile(rb"/\*|\*/")


def _refuse(what: str) -> NoReturn:
    raise TransactionMisused(
        f"{what} is not for a step: pgqueue commits its writes together with its checkpoint when it returns, and rolls "
        "both back when it raises. Use savepoints (with tx.transaction()) for parts that may fail."
    )


def _guard(view: Any, statement: bytes) -> None:
    """Refuse what begins or ends a transaction. ROLLBACK TO a savepoint is fine."""
    if _LASTING.search(statement):
        _change(view, statement)
    if _ORDINARY.match(statement):
        return
    words = _words(statement)
    first, second = next(words, b""), b""
    if first in (b"START", b"PREPARE", b"ROLLBACK", b"SET"):
        second = next(words, b"")
        if first == b"ROLLBACK" and second in (b"WORK", b"TRANSACTION"):
            second = next(words, b"")
    if first == b"DEALLOCATE":
        view.pgqueue_deallocated = True
    elif first == b"SET" and second not in (b"LOCAL", b"TRANSACTION", b"CONSTRAINTS"):
        _change(view, statement)
    elif (
        first in (b"COMMIT", b"END", b"ABORT", b"BEGIN")
        or (first in (b"START", b"PREPARE") and second == b"TRANSACTION")
        or (first == b"ROLLBACK" and second != b"TO")
    ):
        _refuse(_beginning(statement))


def _change(view: Any, statement: bytes) -> None:
    """The step changes its session, which is closed afterwards. Behind a pooler that would change somebody else's."""
    if is_pooled(view) and b"on commit drop" not in statement.lower():
        raise TransactionMisused(
            f"{_beginning(statement)!r} outlives the transaction, and behind a connection pooler the session is not ours: use "
            "SET LOCAL, pg_advisory_xact_lock(), or CREATE TEMP TABLE ... ON COMMIT DROP"
        )
    view.pgqueue_changed = True


def _beginning(statement: bytes) -> str:
    return statement.decode("utf-8", "replace").strip()[:40]


def _words(statement: bytes) -> Iterator[bytes]:
    """The words that it begins with, in capitals. Comments may be between them, and comments in them."""
    at = 0
    while True:
        at = _GAP.match(statement, at).end()  # type: ignore[union-attr]  # it matches everywhere
        if statement.startswith(b"/*", at):
            at = _behind_comment(statement, at)
        elif word := _WORD.match(statement, at):
            yield word[0].upper()
            at = word.end()
        else:
            return


def _behind_comment(statement: bytes, at: int) -> int:
    depth = 0
    for mark in _COMMENT.finditer(statement, at):
        depth += 1 if mark[0] == b"/*" else -1
        if depth == 0:
            return mark.end()
    return len(statement)


class _GuardedCursor:
    """Refuses statements that control the transaction. Always speaks the extended protocol, in which the server refuses
    several statements in one string: so looking at the first words is enough."""

    _conn: Any

    def _maybe_prepare_gen(self, pgq: Any, **how: Any) -> Any:
        _guard(self._conn, pgq.query)
        return super()._maybe_prepare_gen(pgq, **how)  # type: ignore[misc]

    def _execute_send(self, query: Any, *, force_extended: bool = False, binary: bool | None = None) -> None:
        _guard(self._conn, query.query)
        super()._execute_send(query, force_extended=True, binary=binary)  # type: ignore[misc]


class StepCursor(_GuardedCursor, psycopg.Cursor[Any]):
    """A cursor of a step."""


class AsyncStepCursor(_GuardedCursor, psycopg.AsyncCursor[Any]):
    """A cursor of an ``async def`` step."""


_HARMLESS = (_GuardedCursor, psycopg.ServerCursor, psycopg.AsyncServerCursor)  # what these send begins with DECLARE
_ENDINGS = ("_commit_gen", "_rollback_gen", "_tpc_begin_gen", "_tpc_finish_gen")  # of psycopg's connections


class _View:
    """What both colours have in common. A view shares the worker's connection, its lock and its prepared statements."""

    _pool: Any = None  # as psycopg sees it, somebody else closes this connection
    pgqueue_over = False  # set, under the lock, with the statement that ends the transaction
    pgqueue_changed = False  # the step has changed the session, which must not last longer than the step
    pgqueue_deallocated = False  # prepared statements are gone, and perhaps ours
    pgqueue_pid = 0

    def _deallocate(self, name: bytes | None) -> Any:
        if name is None:  # psycopg forgets them all after a ROLLBACK TO a savepoint, for example
            self.pgqueue_deallocated = True
        return super()._deallocate(name)  # type: ignore[misc]

    def _check(self, gen: Any) -> None:
        """May this piece of psycopg's work be done on this connection now?"""
        worker = gen.gi_frame.f_locals.get("self") if isinstance(gen, GeneratorType) and gen.gi_frame is not None else None
        if isinstance(worker, BaseCursor) and not isinstance(worker, _HARMLESS):
            raise TransactionMisused(
                f"a {type(worker).__name__} is not for the connection of a step, because it could end the transaction: "
                "use tx.execute() and the cursors of tx.cursor()"
            )
        if getattr(gen, "__name__", "") in _ENDINGS:
            _refuse(gen.__name__.strip("_").removesuffix("_gen"))
        if self.pgqueue_over:
            raise TransactionMisused(
                "this connection belonged to a step that has ended: a thread or a task that outlives the step cannot use it"
            )
        if self.pgqueue_pid != os.getpid():
            raise TransactionMisused("the connection of a step cannot be used in a child process: it belongs to the parent")


class StepConnection(_View, psycopg.Connection[Any]):
    """The connection of one transactional step."""

    def wait(self, gen: Any, *args: Any, **kwargs: Any) -> Any:
        self._check(gen)
        return super().wait(gen, *args, **kwargs)

    def commit(self) -> NoReturn:
        _refuse("tx.commit()")

    def rollback(self) -> NoReturn:
        _refuse("tx.rollback()")

    def close(self) -> NoReturn:
        _refuse("tx.close()")

    def set_autocommit(self, value: bool) -> NoReturn:
        _refuse("tx.autocommit")

    def __enter__(self) -> NoReturn:
        _refuse("'with tx:'")

    def tpc_begin(self, xid: Any) -> NoReturn:
        _refuse("tx.tpc_begin()")


class AsyncStepConnection(_View, psycopg.AsyncConnection[Any]):
    """The connection of one ``async def`` transactional step."""

    async def wait(self, gen: Any, *args: Any, **kwargs: Any) -> Any:
        self._check(gen)
        return await super().wait(gen, *args, **kwargs)

    async def commit(self) -> NoReturn:
        _refuse("tx.commit()")

    async def rollback(self) -> NoReturn:
        _refuse("tx.rollback()")

    async def close(self) -> NoReturn:
        _refuse("tx.close()")

    async def set_autocommit(self, value: bool) -> NoReturn:
        _refuse("tx.autocommit")

    async def __aenter__(self) -> NoReturn:
        _refuse("'async with tx:'")

    async def tpc_begin(self, xid: Any) -> NoReturn:
        _refuse("tx.tpc_begin()")


AnyConnection = psycopg.Connection[Any] | psycopg.AsyncConnection[Any]
AnyView = StepConnection | AsyncStepConnection


def view_of(conn: AnyConnection) -> AnyView:
    """A view for one transaction. What its user sets on it (factories, adapters, handlers) goes with it."""
    view: Any
    cursors: type[_GuardedCursor]
    if isinstance(conn, psycopg.AsyncConnection):
        view, cursors = object.__new__(AsyncStepConnection), AsyncStepCursor
    else:
        view, cursors = object.__new__(StepConnection), StepCursor
    conn._notice_handlers, conn._notify_handlers = [], []
    view.__dict__.update(conn.__dict__, row_factory=tuple_row, cursor_factory=cursors, pgqueue_pid=os.getpid())
    view._adapters = None  # those of psycopg: ours are for our own statements
    return view  # type: ignore[no-any-return]
