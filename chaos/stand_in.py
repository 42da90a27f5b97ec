"""Another host, as the database sees it: takes the jobs of a host that stands still, and sits on them.

It runs nothing. So whatever happens to these jobs while it holds them was done by somebody who does not.
"""

from __future__ import annotations

import os
import threading
import uuid
from types import TracebackType

from chaos.waiting import wait_for
from pgqueue import App, protocol
from pgqueue.database import connect, run
from pgqueue.ids import Process, new_token
from pgqueue.model import LANES, ClaimedJob, Settlement


class StandIn:
    """A worker that keeps its lease until the block ends."""

    def __init__(self, dsn: str, app: App) -> None:
        self._dsn = dsn
        self._app = app
        self._id = str(uuid.uuid4())
        self._conn = connect(dsn, f"pgqueue:{self._id}:claims")
        self._token = new_token()
        self._jobs: list[ClaimedJob] = []
        self._over = threading.Event()
        self._beating = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> StandIn:
        run(self._conn, protocol.register_worker(self._id, Process.of(os.getpid())))
        self._beating.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        self._beating.join()
        self._conn.close()

    def _beat(self) -> None:
        with connect(self._dsn, "pgqueue:stand-in") as conn:
            while not self._over.wait(0.1):
                run(conn, protocol.heartbeat([self._id]))

    def take_over(self) -> list[str]:
        """Fence all others, give back what they held, and claim whatever is ready. The jobs.

        Sessions are ended only where they hold a job: a zombie that has its connection yet is the more dangerous one.
        """
        for worker, *_ in run(self._conn, protocol.beats()):
            if worker != self._id:
                run(self._conn, protocol.fence_worker(worker, None, "it stands still"))
        for worker, reason in run(self._conn, protocol.lapsed_workers()):
            wait_for(lambda worker=worker, reason=reason: self._reap(worker, reason), f"worker {worker} to be reaped")
        queues, names = list(self._app.queues), list(self._app.functions)
        claim = protocol.claim(self._id, self._token, queues, names, 1000, [0] * LANES * len(queues))
        self._jobs = [job for job, _ in run(self._conn, claim)]
        return [job.id for job in self._jobs]

    def _reap(self, worker: str, reason: str) -> bool:
        _, _, still_held = run(self._conn, protocol.reap(worker, [], "lost", reason))
        if still_held:
            run(self._conn, protocol.end_sessions(worker))
        return still_held == 0

    def robbed(self) -> list[str]:
        """What somebody has taken from it: the jobs that it claimed and holds no more."""
        held = {job for job, token, _ in run(self._conn, protocol.held_claims([self._id])) if token == self._token}
        return [job.id for job in self._jobs if job.id not in held]

    def give_back(self) -> None:
        """Release all."""
        run(self._conn, protocol.settle([Settlement(job, "release") for job in self._jobs]))
