"""A transactional step: fence, the user's code, checkpoint, COMMIT, on one connection.

BEGIN          -- the step's isolation level
fence          -- does this run still hold the job? locks the claim until the end
user code      -- on this connection
checkpoint     -- or, where the job is this one transaction, its outcome
COMMIT
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

import psycopg
from psycopg.pq import TransactionStatus

from pgqueue import protocol
from pgqueue.database import is_lost, is_transient
from pgqueue.errors import ClaimLost, PgQueueError
from pgqueue.failpoints import failpoint
from pgqueue.functions import Transaction
from pgqueue.runtime.connection import StepConnection
from pgqueue.runtime.session import Restart

if TYPE_CHECKING:
    from pgqueue.runtime.run import JobRun


class Conflict(BaseException):
    """Another transaction was in the way: run this one again. Nobody's failure, counted as nothing."""


def transact(run: JobRun, function: Transaction[Any, Any], seq: int, arguments: dict[str, Any], whole: bool) -> tuple[str, bool]:
    """Run it once; the JSON text of its result, and whether the job is to be cancelled. With ``whole`` it ends in this commit.

    Raises what the user's code raised (everything is rolled back), Conflict, ClaimLost, or Restart where the connection was
    lost: then nobody knows whether it committed, and the caller resolves that.
    """
    definition, job = function.definition, run.job
    if definition.isolation == "serializable" and not run.session.run(protocol.continues(job.id, run.history.seen)):
        raise ClaimLost
    failpoint("transaction.before_begin")
    conn = run.session.connection()
    try:
        xid = _begin(conn, run, function)
        failpoint("transaction.fenced")
        run.tx = conn
        try:
            value = function.fn(conn, **arguments)
        finally:
            run.only_in_the_worker()
            run.tx = None
        failpoint("transaction.user_code_done")
        if conn.in_error:
            raise PgQueueError(
                f"{function.name} went on after a database error, which had ended its transaction: let the error out, or "
                "guard the statement that may fail with a savepoint (with tx.transaction())"
            )
        text = run.result_text(function, value)
        if whole:
            closing = protocol.finish(job.id, job.token, text, xid)
        else:
            closing = protocol.checkpoint(job.id, job.token, seq, function.name, text, xid)
        answer = _commit(conn, closing)
    except BaseException as error:  # noqa: BLE001 -- _leave raises
        _leave(run, conn, error)
    failpoint("transaction.committed")
    return text, answer and not whole


def _begin(conn: StepConnection, run: JobRun, function: Transaction[Any, Any]) -> str:
    """BEGIN and fence in one round trip. The id of the transaction."""
    definition, job = function.definition, run.job
    call = protocol.fence(job.id, job.token, run.history.seen, definition.idle_timeout)
    with conn.pipeline():
        conn.engine_begin(definition.isolation)
        fenced = conn.engine_execute(call.sql, call.params)
    xid = call.read(fenced.fetchall())
    if xid is None:
        raise ClaimLost
    return str(xid)


def _commit(conn: StepConnection, closing: protocol.Call[bool]) -> bool:
    """The checkpoint (or outcome) and COMMIT in one round trip."""
    with conn.pipeline():
        answer = conn.engine_execute(closing.sql, closing.params)
        failpoint("transaction.checkpointed")
        commit = conn.engine_execute("COMMIT")
        failpoint("transaction.committing")
    if commit.statusmessage != "COMMIT":  # COMMIT of an aborted transaction "succeeds" with ROLLBACK
        raise PgQueueError(f"the transaction was rolled back by the server ({commit.statusmessage})")
    return closing.read(answer.fetchall())


def _leave(run: JobRun, conn: StepConnection, error: BaseException) -> NoReturn:
    """Out of a transaction that did not end well: roll it back, and say what the error means."""
    # A database error may also come from another connection that the user's code has: then this one is still in its transaction.
    untouched = conn.pgconn.transaction_status == TransactionStatus.INTRANS
    rolled_back = conn.engine_rollback()
    if isinstance(error, ClaimLost):
        run.session.discard()
    elif not rolled_back or (is_lost(error) and not untouched):
        raise Restart from error
    elif is_transient(error) and not untouched:
        raise Conflict from error
    elif isinstance(error, psycopg.errors.UniqueViolation) and error.diag.constraint_name in _ANOTHER_RUN:
        raise Restart from error  # somebody else stored this step: forget, and read what they stored
    raise error


_ANOTHER_RUN = ("checkpoint_pkey", "outcome_pkey")
