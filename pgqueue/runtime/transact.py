"""A transactional step: fence, the user's code, checkpoint, COMMIT, on one connection.

BEGIN          -- the step's isolation level
fence          -- does this run still hold the job? locks the claim until the end
user code      -- on this connection
checkpoint
COMMIT

Where the job is nothing but this transaction, its outcome stands for the checkpoint.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

import psycopg
from psycopg.pq import TransactionStatus

from pgqueue import protocol
from pgqueue.database import is_lost, is_transient
from pgqueue.errors import ClaimLost, TransactionMisused, TransactionTimeout
from pgqueue.failpoints import failpoint
from pgqueue.functions import Function
from pgqueue.model import ClaimedJob
from pgqueue.runtime.session import Begin, Restart, Session, Sessions

if TYPE_CHECKING:
    from pgqueue.runtime.run import JobRun


class Conflict(BaseException):
    """Another transaction was in the way: run this one again. Nobody's failure, counted as nothing."""


async def transact(
    run: JobRun, sessions: Sessions, function: Function[Any, Any], seq: int, arguments: dict[str, Any], whole: bool
) -> tuple[str, bool]:
    """Run it once; the JSON text of its result, and whether the job is to be cancelled. With ``whole`` it ends in this commit.

    Raises what the user's code raised (everything is rolled back), Conflict, ClaimLost, or Restart where the connection was
    lost: then nobody knows whether it committed, and the caller resolves that.
    """
    definition, job = function.definition, run.job
    if definition.isolation == "serializable" and not await sessions.run(protocol.continues(job.id, run.history.seen)):
        raise ClaimLost
    failpoint("transaction.before_begin")
    async with sessions.borrow() as session:
        view = None
        try:
            view, xid = await session.begin(beginning(function, job, run.history.seen))
            if xid is None:
                raise ClaimLost
            failpoint("transaction.fenced")
            run.lend(view)
            value = await run.invoke(function, view, **arguments)
            run.only_in_the_worker()
            failpoint("transaction.user_code_done")
            session.check_usable(function.name)
            text = run.result_text(function, value)
            if whole:
                closing = protocol.finish(job.id, job.token, text, xid)
            else:
                closing = protocol.checkpoint(job.id, job.token, seq, function.name, text, xid)
            answer = await session.commit(view, closing, run.upcoming() if whole else None)
        except BaseException as error:  # noqa: BLE001 -- _leave raises
            await _leave(run, session, view, error, 0 if whole else seq)
    failpoint("transaction.committed")
    return text, answer and not whole


def beginning(function: Function[Any, Any], job: ClaimedJob, seen: int = 0) -> Begin:
    """How this transaction begins."""
    how = function.definition
    return Begin(how.isolation, protocol.fence(job.id, job.token, seen, how.idle_timeout))


async def _leave(run: JobRun, session: Session, view: Any, error: BaseException, place: int) -> NoReturn:
    """Out of a transaction that did not end well: roll it back, and say what the error means."""
    run.only_in_the_worker()
    if isinstance(error, Restart):
        raise error
    # A database error may also come from another connection that the user's code has: then ours is still in its transaction.
    lost = session.lost or (is_lost(error) and session.status != TransactionStatus.INTRANS)
    untouched = not lost and session.status == TransactionStatus.INTRANS
    ended = not lost and session.status == TransactionStatus.IDLE and view is not None and not view.pgqueue_over
    committing = view is not None and view.pgqueue_over
    if view is not None:
        view.pgqueue_over = True  # before the connection goes: nobody may be about to use it
    code = getattr(error, "sqlstate", None)
    if code == "25006" and not session.lost:  # the server's doing, or the step's own?
        await session.leave(view)
        lost = not await session.run(protocol.is_writable())
    if lost or isinstance(error, ClaimLost):
        session.discard()
    await session.leave(view)
    if ended or code == "PQ008":
        raise TransactionMisused(
            "the step's code has ended the transaction that it was given. What it wrote before that may be committed, without a "
            "checkpoint, so it is not tried again. Leave COMMIT and ROLLBACK to pgqueue"
        ) from error
    if code in _TIMED_OUT:
        raise TransactionTimeout(_TIMED_OUT[code]) from error
    if lost and not isinstance(error, ClaimLost):
        raise Restart(session.part, place if committing else None) from error
    if is_transient(error) and not untouched:
        raise Conflict from error
    if isinstance(error, psycopg.errors.UniqueViolation) and error.diag.constraint_name in _ANOTHER_RUN:
        raise Restart(session.part) from error  # somebody else stored this step: forget, and read what they stored
    raise error


_TIMED_OUT = {
    "25P03": "the server ended the transaction, because its code did not talk to it for longer than idle_timeout: slow work "
    "belongs into a step, or raise idle_timeout",
    "25P04": "the server ended the transaction, because it took longer than transaction_timeout",
}
_ANOTHER_RUN = ("checkpoint_pkey", "outcome_pkey")
