"""When the server refuses to store how a job ended: because of a value in it, or of a constraint or trigger that somebody added.

The batch that it was in is settled one by one, and the job that is to blame has failed, with the reason. Otherwise it would hold
up its worker's other jobs, again and again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import msgspec
import psycopg
from psycopg import pq

from pgqueue import protocol
from pgqueue.errors import BadValue
from pgqueue.model import Settlement
from pgqueue.runtime.failure import described
from pgqueue.runtime.wire import check, rows

log = logging.getLogger(__name__)
T = TypeVar("T")

REFUSED = (psycopg.DataError, psycopg.IntegrityError, psycopg.errors.RaiseException, psycopg.errors.ProgramLimitExceeded)


def answer(conn: psycopg.Connection[Any], call: protocol.Call[T], result: pq.abc.PGresult) -> T | psycopg.Error:
    """What a call gave back, or that the server refuses what it was given."""
    try:
        check([result])
    except REFUSED as error:
        return error
    return call.read(rows(conn, result))


def granted(answer: T | psycopg.Error) -> T:
    """What a call gave back that cannot be refused."""
    if isinstance(answer, psycopg.Error):
        raise answer
    return answer


def settle_singly(
    batch: Sequence[Settlement], send: Callable[[protocol.Call[dict[str, str]]], dict[str, str] | psycopg.Error]
) -> dict[str, str]:
    """What ``settle`` answers for the whole batch."""
    answers: dict[str, str] = {}
    for settlement in batch:
        answer = send(protocol.settle([settlement]))
        if isinstance(answer, psycopg.Error):
            log.error("job %s: its end (%s) cannot be stored: SQLSTATE %s", settlement.job.id, settlement.how, answer.sqlstate)
            answer = granted(send(protocol.settle([_failed(settlement, answer)])))
        answers |= answer
    return answers


def _failed(settlement: Settlement, error: psycopg.Error) -> Settlement:
    reason = BadValue(f"how it ended ({settlement.how}) cannot be stored: {error.diag.message_primary}")
    detail = {"errors": [described(reason)], "failed_seqs": []}
    return Settlement(settlement.job, "failed", None, settlement.seen, msgspec.json.encode(detail).decode())
