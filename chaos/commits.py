"""Server processes held inside their COMMIT, on a stock PostgreSQL: before it is durable, and after.

Before: a deferred constraint trigger waits for an advisory lock that the test holds. After: the commit waits for a synchronous
standby that does not exist, so the client never hears of it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg

from chaos.waiting import wait_for

_LOCK = 4711
_FUNCTION = f"""
CREATE SEQUENCE held_commits;
CREATE FUNCTION hold_commit() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF current_setting('application_name') ~ TG_ARGV[0] AND nextval('held_commits') >= TG_ARGV[1]::int THEN
        PERFORM pg_advisory_xact_lock_shared({_LOCK});
    END IF;
    RETURN NULL;
END $$
"""
_TRIGGER = """
CREATE CONSTRAINT TRIGGER hold_commit AFTER {} ON {} DEFERRABLE INITIALLY DEFERRED
FOR EACH ROW EXECUTE FUNCTION hold_commit('{}', '{}')
"""
_WAITING = """
SELECT l.pid FROM pg_locks l JOIN pg_database d ON d.oid = l.database
 WHERE d.datname = current_database() AND l.locktype = 'advisory' AND l.objid = %s AND NOT l.granted
"""


class HeldCommits:
    """Until ``release()``, whoever writes to the tables waits inside its COMMIT. ``conn`` holds the lock: it must stay open."""

    def __init__(self, conn: psycopg.Connection[Any]) -> None:
        self._conn = conn
        self._conn.execute(_FUNCTION)
        self.close()

    def hold(self, table: str, event: str = "INSERT", who: str = "", nth: int = 1) -> None:
        """Hold the commits of this event on this table, from the nth row on. ``who``: a pattern for the application_name of the
        sessions meant."""
        self._conn.execute(_TRIGGER.format(event, table, who, nth))

    def waiting(self) -> list[int]:
        """The server processes that are being held."""
        return [row[0] for row in self._conn.execute(_WAITING, (_LOCK,)).fetchall()]

    def close(self) -> None:
        """Hold from now on."""
        self._conn.execute("SELECT pg_advisory_lock(%s)", (_LOCK,))

    def release(self) -> None:
        """Let them commit, and all that come later."""
        self._conn.execute("SELECT pg_advisory_unlock(%s)", (_LOCK,))


@contextmanager
def ghost_standby(conn: psycopg.Connection[Any]) -> Iterator[None]:
    """In this block every commit of the whole server that wants to be durable becomes so, and is not answered.

    Sessions with ``synchronous_commit`` ``off`` or ``local`` do not wait; ``conn`` must be one.
    """
    _set_standby(conn, "ghost")
    try:
        wait_for(lambda: _commits_wait(conn), "commits to wait for the ghost")
        yield
    finally:
        _set_standby(conn, "")


def _set_standby(conn: psycopg.Connection[Any], name: str) -> None:
    conn.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{name}'")
    conn.execute("SELECT pg_reload_conf()")


def _commits_wait(conn: psycopg.Connection[Any]) -> bool:
    """Does a commit wait already? The setting takes effect a moment after it was made."""
    with psycopg.connect(conn.info.dsn, password=conn.info.password, autocommit=True) as probe:

        def commit() -> None:
            try:
                probe.execute("SELECT pg_logical_emit_message(true, 'chaos', 'probe')")
            except psycopg.Error:
                pass  # ended below

        thread = threading.Thread(target=commit)
        thread.start()
        try:
            state = "SELECT wait_event FROM pg_stat_activity WHERE pid = %s"
            while thread.is_alive():
                if conn.execute(state, (probe.info.backend_pid,)).fetchone() == ("SyncRep",):
                    return True
            return False
        finally:
            conn.execute("SELECT pg_terminate_backend(%s)", (probe.info.backend_pid,))
            thread.join()
