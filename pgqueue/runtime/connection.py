"""The connection that a transactional step is given: all of psycopg's, except what would end the transaction.

pgqueue begins and commits it, because the step's writes and its checkpoint must be one commit.
"""

from __future__ import annotations

import re
from typing import Any, NoReturn

import psycopg
from psycopg.rows import tuple_row

from pgqueue.errors import TransactionMisused
from pgqueue.model import Isolation

#: Statements that begin or end a transaction, behind any comments. ROLLBACK TO a savepoint is fine.
_CONTROL = re.compile(
    r"(?:\s|;|--[^\n]*(?:\n|$)|/\*.*?\*/)*"
    r"(?:COMMIT|END|ABORT|BEGIN|START\s+TRANSACTION|PREPARE\s+TRANSACTION|ROLLBACK(?!\s+(?:WORK\s+|TRANSACTION\s+)?TO\b))\b",
    re.IGNORECASE | re.DOTALL,
)


def _refuse(what: str) -> NoReturn:
    raise TransactionMisused(
        f"{what} is not for a step: pgqueue commits its writes together with its checkpoint when it returns, and rolls "
        "both back when it raises. Use savepoints (with tx.transaction()) for parts that may fail."
    )


class StepCursor(psycopg.Cursor[Any]):
    """Refuses statements that control the transaction. Always speaks the extended protocol, in which the server refuses
    several statements in one string: so looking at the first word is enough."""

    def _maybe_prepare_gen(self, pgq: Any, **how: Any) -> Any:
        _guard(pgq.query)
        return super()._maybe_prepare_gen(pgq, **how)

    def _execute_send(self, query: Any, *, force_extended: bool = False, binary: bool | None = None) -> None:
        _guard(query.query)
        super()._execute_send(query, force_extended=True, binary=binary)


def _guard(statement: bytes) -> None:
    text = bytes(statement).decode("utf-8", "replace")
    if _CONTROL.match(text):
        _refuse(text.strip()[:40])


class StepConnection(psycopg.Connection[Any]):
    """A connection on which only pgqueue begins and ends transactions (with the methods that begin with ``engine_``)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cursor_factory = StepCursor

    def engine_execute(self, sql: str, params: Any = None) -> psycopg.Cursor[Any]:
        """A statement of pgqueue's own."""
        return psycopg.Cursor(self, row_factory=tuple_row).execute(sql, params)

    def engine_begin(self, isolation: Isolation) -> None:
        """Queue the BEGIN. The user's settings of the last step are forgotten."""
        self.row_factory = tuple_row
        self.cursor_factory = StepCursor
        self.engine_execute("BEGIN ISOLATION LEVEL " + isolation)

    def engine_rollback(self) -> bool:
        """Back to no transaction. False: the connection is lost, and closed."""
        try:
            if self.pgconn.transaction_status != psycopg.pq.TransactionStatus.IDLE:
                self.engine_execute("ROLLBACK")
        except psycopg.Error:
            self.engine_close()
        return not self.closed

    def engine_close(self) -> None:
        """Really close."""
        super().close()

    @property
    def in_error(self) -> bool:
        """Did a statement fail, so that this transaction can only be rolled back?"""
        return self.pgconn.transaction_status == psycopg.pq.TransactionStatus.INERROR

    def commit(self) -> NoReturn:
        _refuse("tx.commit()")

    def rollback(self) -> NoReturn:
        _refuse("tx.rollback()")

    def close(self) -> NoReturn:
        _refuse("tx.close()")

    def set_autocommit(self, value: bool) -> None:
        _refuse("tx.autocommit")

    def __enter__(self) -> NoReturn:
        _refuse("'with tx:'")

    def tpc_begin(self, xid: Any) -> NoReturn:
        _refuse("tx.tpc_begin()")
