"""F11: the server has no connections left, or no room on its disk."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psycopg

from chaos.arena import Arena
from chaos.faults import OWN_SERVER
from chaos.pooler import Pooler
from chaos.server import OwnServer
from chaos.waiting import wait_for
from pgqueue.database import is_lost

BROKEN = """All connections that the server has are taken, and half of pgqueue's are ended. Or (for root only) checkpoints are
moved to a disk of 16 MB, which is filled, and freed after a while. Or the PgBouncer (in transaction mode) that one host works
through is stopped or killed, and started again."""
EXPECTED = "Infrastructure, not failures: everybody backs off and comes again, and no attempt is used up."
SEEN_BY = ("expectations", "charges", "effects", "atomicity", "liveness")
LANE = "server"
NEEDS = (OWN_SERVER,)

_HALF = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
 WHERE datname = current_database() AND application_name LIKE 'pgqueue:%%' AND pid %% 2 = 0
"""


def inject(arena: Arena, chance: random.Random) -> str | None:
    """One of the three."""
    assert isinstance(arena.server, OwnServer)
    seconds = chance.uniform(0.5, 2.5)
    if arena.pooler is not None and chance.random() < 0.6:
        return _restart(arena, arena.pooler, chance.choice((signal.SIGTERM, signal.SIGKILL)), seconds)
    if os.geteuid() == 0 and chance.random() < 0.5:
        with arena.outages.under_way(), _small_disk(arena, arena.server) as disk:
            _fill(disk)
            time.sleep(seconds)
            (disk / "filler").unlink()
        return f"the disk of checkpoints was full for {seconds:.1f} s"
    arena.interrupt_all()
    with arena.outages.under_way(), ExitStack() as taken:
        ended = len(arena.chaos.query(_HALF))
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            try:
                taken.enter_context(psycopg.connect(arena.server.dsn, application_name="hog"))
            except psycopg.OperationalError:
                time.sleep(0.02)
    return f"no connections were left for {seconds:.1f} s, {ended} were ended"


def _restart(arena: Arena, pooler: Pooler, number: signal.Signals, seconds: float) -> str:
    arena.interrupt(arena.setup.workers)
    with arena.outages.under_way(pooler.dsn(arena.dsn)):
        pooler.stop(number)
        time.sleep(seconds)
        pooler.start()
    return f"PgBouncer got {number.name}, and was away for {seconds:.1f} s"


def _fill(disk: Path) -> None:
    with (disk / "filler").open("wb") as file:
        try:
            while True:
                file.write(b"x" * 65536)
                file.flush()
        except OSError:
            return


@contextmanager
def _small_disk(arena: Arena, server: OwnServer) -> Iterator[Path]:
    """A file system in memory that checkpoints are on, as long as the block lasts."""
    disk = server.directory / "small"
    disk.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m,mode=700", "tmpfs", str(disk)], check=True)
    try:
        space = disk / "space"
        space.mkdir()
        owner = (server.primary.home / "data").stat()
        for place in (disk, space):
            os.chown(place, owner.st_uid, owner.st_gid)
        _do(arena, f"CREATE TABLESPACE small LOCATION '{space}'")
        _do(arena, "ALTER TABLE pgqueue.checkpoint SET TABLESPACE small")
        yield disk
        _do(arena, "ALTER TABLE pgqueue.checkpoint SET TABLESPACE pg_default")
        _do(arena, "DROP TABLESPACE IF EXISTS small")
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
        shutil.rmtree(disk, ignore_errors=True)


def _do(arena: Arena, statement: str) -> None:
    """Until it is done: other faults end sessions, and locks take their time."""

    def done() -> bool:
        try:
            arena.chaos.conn.execute(statement)
        except psycopg.errors.DuplicateObject:
            return True
        except psycopg.Error as error:
            if not is_lost(error):
                raise
            return False
        return True

    wait_for(done, statement)
