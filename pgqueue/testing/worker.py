"""A worker that has no process of its own: it claims and settles one job at a time, on one connection."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from psycopg import sql

from pgqueue import protocol
from pgqueue.app import App
from pgqueue.database import connect, run
from pgqueue.errors import PgQueueError
from pgqueue.failpoints import failpoint
from pgqueue.housekeeper.recovery import bury
from pgqueue.ids import Process, new_token
from pgqueue.model import ENDED, LANES, ClaimedJob, Settlement
from pgqueue.values import read_error

_OUTCOMES = {"suspend": "suspended"}
_ENDED = (resources.files("pgqueue.testing") / "ended.sql").read_text()
BUSY_PAUSE = 0.05  # seconds before a settlement is sent again that a session of its job still holds


@dataclass(frozen=True)
class Ran:
    """One run of one job."""

    job: ClaimedJob
    outcome: str  #: what became of the job; ``retry``: tried again later; ``suspended``: it waits; ``lost``: taken away
    error: dict[str, Any] | None  #: what is stored of the error of a job that failed
    raised: BaseException | None  #: what was raised in this run


class Worker:
    """Claims what is ready, and settles it. When it is closed, what it still holds is given back."""

    def __init__(self, app: App, dsn: str) -> None:
        self._names = list(app.functions)
        self._queues = list(app.queues)
        self.id = str(uuid.uuid4())
        self._conn = connect(dsn, f"pgqueue:{self.id}:claims")
        self.max_bytes = run(self._conn, protocol.register_worker(self.id, Process.of(os.getpid())))

    def claim(self) -> ClaimedJob | None:
        """The next job that is ready, or due by now."""
        run(self._conn, protocol.promote(1000))
        more = True
        while more or run(self._conn, protocol.cancel_waiting()):
            _, more, _ = run(self._conn, protocol.wake(1000))
        hints = [0] * LANES * len(self._queues)
        while True:
            for job, _ in run(self._conn, protocol.claim(self.id, new_token(), self._queues, self._names, 1, hints)):
                return job
            soon = run(self._conn, protocol.has_work(self._queues))
            if soon is None or soon > 0:
                return None
            # The claim came upon a job that is cancelled, or that nobody here knows. Behind it there are others.
            if not run(self._conn, protocol.heartbeat([self.id])):
                raise PgQueueError("the housekeeper of other workers in this database has taken this drain for dead")

    def settle(self, job: ClaimedJob, settlement: Settlement | None, raised: BaseException | None) -> Ran:
        """End the claim, and see what became of the job."""
        failpoint("settle.before")
        answer = "" if settlement is None else "busy"
        while settlement is not None and answer == "busy":
            answer = run(self._conn, protocol.settle([settlement])).get(job.id, "")
            if answer == "busy":
                time.sleep(BUSY_PAUSE)
        row = run(self._conn, protocol.job_value(job.id))
        status, error = (row[1], row[4]) if row is not None else ("active", None)
        if status == "active":
            return Ran(
                job, "lost" if settlement is None or answer else _OUTCOMES.get(settlement.how, settlement.how), None, raised
            )
        return Ran(job, status, read_error(error) if status == "failed" else None, raised)

    def ended_otherwise(self, ran: Sequence[Ran]) -> list[Ran]:
        """Jobs that have ended meanwhile, but not in a run: they were cancelled, or their time was over."""
        known = {one.job.id for one in ran if one.outcome in ENDED}
        rows = self._conn.execute(sql.SQL(_ENDED).format(worker=sql.Literal(self.id)))
        return [
            Ran(ClaimedJob(id, 0, name, "", queue, 0, None), state, read_error(error) if state == "failed" else None, None)
            for id, name, queue, state, error in rows
            if id not in known
        ]

    def close(self) -> None:
        """Leave."""
        try:
            bury(self._conn, self.id, None, (), None)
        finally:
            self._conn.close()
