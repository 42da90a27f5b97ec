"""Ticking: enqueue the jobs of the schedules that are due. Any number of processes may do it at the same time, on any number of
hosts; for each tick the database lets one of them. What time it is only the database says."""

from __future__ import annotations

import logging
import time
from typing import Any

import psycopg

from pgqueue import protocol
from pgqueue.database import is_lost, is_transient, run
from pgqueue.failpoints import failpoint
from pgqueue.schedules import Due, Plan, plan

log = logging.getLogger(__name__)
AT_ONCE = 100  # schedules of one look
LONGEST_PROBLEM = 1000
OTHERS_FIRST = 5.0  # seconds for a host that can tell when it is due, where this one cannot


def tick_due(conn: psycopg.Connection[Any]) -> tuple[int, float | None]:
    """Deal with all ticks that are due. How many jobs were enqueued, and in how many seconds the next tick is due (None: nobody
    knows of one); 0: there is more to do at once."""
    failpoint("tick.before")
    due, now, next_due = run(conn, protocol.due_schedules(AT_ONCE))
    began = time.monotonic()
    enqueued, more = 0, len(due) == AT_ONCE
    for schedule in due:
        planned = _planned(conn, schedule, now)
        if planned is None:
            continue
        failpoint("tick.planned")
        made = _tick(conn, schedule, planned)
        failpoint("tick.committed")
        if made is not None:
            enqueued += made
            if planned.next is not None:
                left = (planned.next - now).total_seconds()
                more = more or left <= 0
                next_due = left if next_due is None else min(left, next_due)
    if more:
        return enqueued, 0.0
    return enqueued, None if next_due is None else max(0.01, next_due - (time.monotonic() - began))


def _planned(conn: psycopg.Connection[Any], due: Due, now: Any) -> Plan | None:
    try:
        return plan(due.times, due.done_until, now, due.misfire, due.grace)
    except ValueError as error:  # an operator's cron expression; a time zone that this machine does not have
        _put_off(conn, due, str(error), OTHERS_FIRST)
        return None


def _tick(conn: psycopg.Connection[Any], due: Due, planned: Plan) -> int | None:
    try:
        return run(conn, protocol.tick(due, planned))
    except psycopg.Error as error:
        if is_lost(error):
            raise
        if not is_transient(error):
            _put_off(conn, due, str(error.diag.message_primary), 0)
        return None


def _put_off(conn: psycopg.Connection[Any], due: Due, problem: str, due_for: float) -> None:
    """One schedule that cannot be must not keep the others from their ticks. It is tried every ten seconds, and said once."""
    problem = problem[:LONGEST_PROBLEM]
    known = run(conn, protocol.schedule_problem(due.name))
    if run(conn, protocol.postpone_tick(due, problem, due_for)) and known != problem:
        log.warning("schedule %s cannot tick: %s", due.name, problem)
