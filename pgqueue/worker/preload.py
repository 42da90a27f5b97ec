"""Importing the App before the fork (``--preload``), and what must not be there then: nothing of libpq crosses a fork, and a
thread that holds a lock at that moment leaves it locked in the child for ever. Called by the supervisor and its probe."""

from __future__ import annotations

import gc
import os
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

from psycopg import ProgrammingError, conninfo

from pgqueue.app import App
from pgqueue.errors import Configuration
from pgqueue.loading import load_app


def preload(target: str) -> None:
    """Import the App into this process, and keep what was imported out of reach of the garbage collector: looking at an object
    writes to it, and a page that was written to is no longer shared. Configuration where it cannot be forked from here."""
    check_forkable(load_app(target))
    gc.collect()
    gc.freeze()


def check_forkable(app: App) -> None:
    """Configuration, with names, where importing the App has left threads or open connections to PostgreSQL."""
    found = [*_threads(), *_connections(app)]
    if found:
        raise Configuration(
            f"--preload is not possible: importing the App leaves {', '.join(found)} behind. "
            'Open it in a hook of @app.on("worker_start"), or work without --preload'
        )


def _threads() -> Iterator[str]:
    """Those of Python by their names, and all others by the names that the kernel knows."""
    main = os.getpid()  # as the kernel numbers threads; after a fork Python may still have another number
    pythons = {thread.native_id: thread.name for thread in threading.enumerate() if thread is not threading.main_thread()}
    try:
        numbers = [int(name) for name in os.listdir("/proc/self/task")]
    except OSError:
        numbers = [number for number in pythons if number is not None]
    for number in sorted(numbers):
        if number != main:
            yield f"the thread {pythons.get(number) or _comm(number)!r}"


def _comm(number: int) -> str:
    try:
        return Path(f"/proc/self/task/{number}/comm").read_text().strip()
    except OSError:
        return str(number)


def _connections(app: App) -> Iterator[str]:
    ports = {5432, _port(app.client.pool.given_dsn or os.environ.get("PGQUEUE_DSN") or "")}
    for name in os.listdir("/dev/fd"):
        try:
            if not stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                continue
            with socket.socket(fileno=os.dup(int(name))) as connection:
                peer = connection.getpeername()
        except OSError:
            continue  # not connected, or closed since
        if isinstance(peer, tuple) and len(peer) > 1 and peer[1] in ports:
            yield f"a connection to PostgreSQL ({peer[0]}:{peer[1]})"
        elif isinstance(peer, str) and ".s.PGSQL." in peer:
            yield f"a connection to PostgreSQL ({peer})"


def _port(dsn: str) -> int:
    try:
        return int(conninfo.conninfo_to_dict(dsn).get("port") or os.environ.get("PGPORT") or 5432)
    except (ProgrammingError, ValueError):
        return 5432
