"""Hearing notifications, also where the database is behind a connection pooler.

A pooler that lends its sessions for one transaction (PgBouncer) has none to listen on. Who says where the server itself is
(PGQUEUE_LISTEN_DSN) gets one more connection that only listens. Otherwise nothing is heard, and polling is enough: a
notification is a hint. Used by the housekeeper, and by results.py.
"""

from __future__ import annotations

import logging
import time
from typing import Any

import psycopg
from psycopg import sql

from pgqueue import database
from pgqueue.errors import PgQueueError

log = logging.getLogger(__name__)
AGAIN = 10.0  # seconds until a listening connection that was lost is tried again


class Listener:
    """Hears what is notified on these channels.

    On ``conn`` itself; behind a pooler on a connection of its own to ``dsn``, if there is one. Errors of ``conn`` come out; the
    loss of the other one only makes this deaf for a while.
    """

    def __init__(self, conn: psycopg.Connection[Any], dsn: str | None, name: str, *channels: str) -> None:
        self._conn = conn
        self._dsn = dsn
        self._name = name
        self._listen = sql.SQL("; ").join(sql.SQL("LISTEN {}").format(sql.Identifier(channel)) for channel in channels)
        self._pooled = database.is_pooled(conn)
        self._own: psycopg.Connection[Any] | None = None
        self._again_at = 0.0
        if not self._pooled:
            conn.execute(self._listen)
        self._reach()

    @property
    def deaf(self) -> bool:
        """Is nothing heard at present?"""
        return self._pooled and self._own is None

    def filenos(self) -> list[int]:
        """What becomes readable when there may be something to hear."""
        return [conn.fileno() for conn in (self._conn, self._own) if conn is not None]

    def heard(self) -> list[psycopg.Notify]:
        """What has come since the last call."""
        self._reach()
        notices = list(self._conn.notifies(timeout=0))
        if self._own is not None:
            try:
                notices += self._own.notifies(timeout=0)
            except psycopg.Error as error:
                log.warning("listening: %s", " ".join(str(error).split()))
                self.close()
        return notices

    def close(self) -> None:
        """Close the connection that only listens."""
        if self._own is not None:
            self._own.close()
            self._own = None

    def _reach(self) -> None:
        if not self._pooled or self._own is not None or self._dsn is None or time.monotonic() < self._again_at:
            return
        self._again_at = time.monotonic() + AGAIN
        try:
            conn = database.connect(self._dsn, self._name)
            if database.is_pooled(conn):
                conn.close()
                self._dsn = None
                log.warning("PGQUEUE_LISTEN_DSN leads to a pooler too, where nothing can be heard: polling")
                return
            conn.execute(self._listen)
            self._own = conn
        except (psycopg.Error, PgQueueError) as error:
            log.warning("listening: %s", " ".join(str(error).split()))
