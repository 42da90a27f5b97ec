"""The heartbeat thread: renews the leases of all workers of this host, on a connection of its own that nothing can delay."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import psycopg

from pgqueue import database, protocol
from pgqueue.errors import DatabaseUnreachable
from pgqueue.failpoints import failpoint
from pgqueue.meter import Meter
from pgqueue.metrics import DB_ERRORS

log = logging.getLogger(__name__)


class Heartbeat(threading.Thread):
    """Beats for ``workers()`` every ``interval`` seconds; calls ``fenced`` for a worker that has lost its lease."""

    def __init__(
        self,
        dsn: str,
        name: str,
        interval: float,
        workers: Callable[[], Sequence[str]],
        fenced: Callable[[str], None],
        meter: Meter,
    ) -> None:
        super().__init__(name="pgqueue-heartbeat", daemon=True)
        self._dsn = dsn
        self._name = name
        self._interval = interval
        self._workers = workers
        self._fenced = fenced
        self._meter = meter

    def run(self) -> None:
        try:
            self._keep_beating()
        except BaseException:  # a bug of ours: a housekeeper that does not beat loses all its workers, a new one does not
            log.exception("internal error")
            os._exit(70)

    def _keep_beating(self) -> None:
        tries = 0
        while True:
            try:
                with database.connect(self._dsn, self._name) as conn:
                    tries = 0
                    while True:
                        self._beat(conn)
                        time.sleep(self._interval)
            except (psycopg.Error, DatabaseUnreachable) as error:
                log.warning("heartbeat: %s", database.brief(error))
                self._meter.add(DB_ERRORS, ("heartbeat",))
                tries += 1
                time.sleep(min(self._interval, database.backoff(tries)))

    def _beat(self, conn: psycopg.Connection[Any]) -> None:
        workers = self._workers()
        if not workers:
            return
        failpoint("heartbeat.before")
        alive = database.run(conn, protocol.heartbeat(workers))
        failpoint("heartbeat.acknowledged")
        for worker in workers:
            if worker not in alive:
                self._fenced(worker)
