"""The worker's connection for the jobs it runs: opened when needed, thrown away when in doubt."""

from __future__ import annotations

import logging
import time
from typing import TypeVar

import psycopg

from pgqueue import database, protocol
from pgqueue.database import is_lost, is_transient
from pgqueue.errors import DatabaseUnreachable
from pgqueue.failpoints import failpoint
from pgqueue.protocol import Call
from pgqueue.runtime.connection import StepConnection

T = TypeVar("T")
log = logging.getLogger(__name__)


class Restart(BaseException):
    """The connection was lost: forget what this run knows, see what was committed, and replay."""


class Session:
    """One connection, on which the jobs of one worker thread run one after the other."""

    def __init__(self, dsn: str, worker: str) -> None:
        self._dsn = dsn
        self._worker = worker
        self._conn: StepConnection | None = None

    def connection(self) -> StepConnection:
        """The connection, opened if need be. Waits for as long as the database is away: no outage ends a worker."""
        tries = 0
        while self._conn is None or self._conn.closed:
            try:
                self._conn = database.connect_as(StepConnection, self._dsn, f"pgqueue:{self._worker}:step")
            except DatabaseUnreachable as error:
                log.warning("%s", error)
                tries += 1
                time.sleep(database.backoff(tries))
        return self._conn

    def run(self, call: Call[T]) -> T:
        """A verb in a transaction of its own. Conflicts are run again; a lost connection is a Restart."""
        tries = 0
        while True:
            conn = self.connection()
            try:
                return call.read(conn.engine_execute(call.sql, call.params).fetchall())
            except psycopg.Error as error:
                if is_lost(error):
                    raise Restart from error
                if not is_transient(error):
                    raise
                tries += 1
                time.sleep(database.backoff(tries))

    def discard(self) -> None:
        """Close the connection: whatever was under way on it is in doubt."""
        if self._conn is not None:
            self._conn.engine_close()
            self._conn = None

    def resolve(self, job: str, token: int) -> str:
        """After a lost connection: does this run still hold its job? Waits until the old session has ended."""
        self.discard()
        tries = 0
        while True:
            failpoint("resolve.before")
            try:
                return self.run(protocol.resolve(job, token))
            except Restart:
                self.discard()
                tries += 1
                time.sleep(database.backoff(tries))
            except psycopg.errors.LockNotAvailable:
                self._end_old_sessions()

    def _end_old_sessions(self) -> None:
        """The old session still holds the job after its time: end it, so that its commit has happened or never will."""
        self.run(protocol.end_sessions(self._worker, ":step"))
