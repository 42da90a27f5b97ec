"""Waiting for jobs to end, from outside: any number of waiters, on one connection per process and database.

A thread listens for what has ended, and wakes those who wait for it; they look for themselves. What is heard is only a hint: once
a second the thread looks at all that are waited for, and more often where it may hear nothing (behind a connection pooler).
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from contextlib import closing
from typing import Any

import psycopg

from pgqueue import protocol
from pgqueue.database import connect, run
from pgqueue.descriptors import readable
from pgqueue.errors import PgQueueError
from pgqueue.listening import Listener

log = logging.getLogger(__name__)

LOOK = 1.0  # seconds between two looks at all
LOOK_DEAF = 0.05  # the same where nothing may be heard
HEAR = 30.0  # seconds for which whoever ends jobs is asked to say so; renewed with each look
LINGER = 20.0  # seconds for which the connection is kept when nobody waits
PAGE = 1000  # jobs in one question


class Results:
    """Who waits for which job."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._lock = threading.Lock()
        self._waiters: dict[str, list[Future[None]]] = {}
        self._fresh: list[str] = []
        self._call: int | None = None  # where a byte calls the thread, while there is one

    def expect(self, job: str) -> Future[None]:
        """Done when the job may have ended or does not exist, or the connection is lost. Look then; come back if it goes on."""
        future: Future[None] = Future()
        with self._lock:
            self._waiters.setdefault(job, []).append(future)
            self._fresh.append(job)
            if self._call is None:
                heard, self._call = os.pipe()
                threading.Thread(target=self._serve, args=(heard,), name="pgqueue-results", daemon=True).start()
            elif len(self._fresh) == 1:
                os.write(self._call, b".")
        return future

    def forget(self, job: str, future: Future[None]) -> None:
        """Nobody waits with this one any more."""
        with self._lock:
            futures = self._waiters.get(job, [])
            if future in futures:
                futures.remove(future)
            if not futures:
                self._waiters.pop(job, None)

    def close(self) -> None:
        """Close the connection if nobody waits."""
        with self._lock:
            if self._call is not None and not self._waiters:
                os.write(self._call, b"!")

    # ------------------------------------------------------------------------------------------- the thread

    def _serve(self, called: int) -> None:
        try:
            with connect(self._dsn, "pgqueue:results") as conn:
                listen_dsn = os.environ.get("PGQUEUE_LISTEN_DSN")
                with closing(Listener(conn, listen_dsn, "pgqueue:results", "pgqueue_results")) as listener:
                    self._listen(conn, listener, called)
        except (psycopg.Error, PgQueueError) as error:
            log.warning("waiting for results goes on without its connection: %s", error)
            time.sleep(LOOK)
        finally:
            with self._lock:
                os.close(called)
                os.close(self._call or -1)
                self._call = None
                self._fresh.clear()
                left = list(self._waiters)
            self._tell(left)

    def _listen(self, conn: psycopg.Connection[Any], listener: Listener, called: int) -> None:
        look_at = alone_since = time.monotonic()
        while True:
            now = time.monotonic()
            with self._lock:
                fresh, self._fresh = self._fresh, []
                everyone = list(self._waiters) if now >= look_at else []
                if self._waiters:
                    alone_since = now
                elif now > alone_since + LINGER:
                    return
            if now >= look_at:
                look_at = now + (LOOK_DEAF if listener.deaf else LOOK)
            self._look(conn, everyone or fresh)
            if named := [notice.payload for notice in listener.heard()]:
                self._tell(payload[i : i + 36] for payload in named for i in range(0, len(payload), 36))
                continue
            patience = max(0.0, look_at - time.monotonic())
            if called in readable([*listener.filenos(), called], patience) and b"!" in os.read(called, 4096):
                return

    def _look(self, conn: psycopg.Connection[Any], jobs: Sequence[str]) -> None:
        for i in range(0, len(jobs), PAGE):
            over = run(conn, protocol.awaited(jobs[i : i + PAGE], HEAR))
            self._tell(over)

    def _tell(self, jobs: Iterable[str]) -> None:
        with self._lock:
            futures = [future for job in jobs for future in self._waiters.pop(job, ())]
        for future in futures:
            future.set_result(None)


_all: dict[tuple[int, str], Results] = {}


def results_of(dsn: str) -> Results:
    """Of this process and database."""
    return _all.setdefault((os.getpid(), dsn), Results(dsn))


def let_go(dsn: str | None) -> None:
    """A client is closed: close the connection too, unless somebody waits."""
    for (pid, other), results in list(_all.items()):
        if pid == os.getpid() and other == (dsn or os.environ.get("PGQUEUE_DSN")):
            results.close()
