"""A database for one case: several cases can then run on one server at the same time. And where servers may live."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from psycopg import conninfo

ROOM = 4 << 30  # bytes
COPY = "STRATEGY file_copy"  # a tenth of the time through the log where files are in memory; on a disk a little more


def memory() -> Path | None:
    """Where a file system in memory has room: the suite breaks servers, not machines, and a crashed server that has to fsync a
    thousand files first is away for long where disks are busy. None: the usual place for temporary files."""
    place = Path("/dev/shm")
    return place if place.is_dir() and os.access(place, os.W_OK) and shutil.disk_usage(place).free > ROOM else None


@contextmanager
def copy_of(server_dsn: str, template: str) -> Iterator[str]:
    """A copy of a database, as long as the block lasts: its DSN."""
    name = f"{template}_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(server_dsn, autocommit=True) as conn:
        conn.execute(f"CREATE DATABASE {name} TEMPLATE {template} {COPY}")
    try:
        yield conninfo.make_conninfo(server_dsn, dbname=name)
    finally:
        with psycopg.connect(server_dsn, autocommit=True) as conn:
            conn.execute(f"DROP DATABASE {name} WITH (FORCE)")
