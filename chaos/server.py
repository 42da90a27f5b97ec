"""PostgreSQL servers that the suite may break: one address, behind it a primary that crashes, restarts, fails over or goes back.

The address is a symbolic link to the directory of the primary's socket. A failover points it to the standby: clients find the new
primary as they would behind a virtual address, and nothing stands between them and the server.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import psycopg
from psycopg import conninfo

from chaos.databases import memory
from chaos.leftovers import new_name
from chaos.waiting import wait_for
from pgqueue.embedded import Embedded
from pgqueue.embedded.binaries import environment, own_directory


class CannotRun(Exception):
    """What was asked for cannot be done here. Says what to do."""


#: What makes a server quick to break and to bring back, without making it untrue: fsync stays on.
SETTINGS = {
    "max_connections": "200",
    "wal_level": "logical",
    "max_wal_size": "1GB",
    "checkpoint_timeout": "1h",
    "shared_buffers": "64MB",
    "hot_standby": "on",
    "client_connection_check_interval": "5s",
}


class Copy(Embedded):
    """A cluster that was copied from a running one: to follow it, or to go back to."""

    def take(self, source: Embedded, follows: bool) -> None:
        """Copy the cluster as it is now. ``follows``: it will be a standby."""
        parts = conninfo.conninfo_to_dict(source.dsn)
        target = own_directory(self.home / "data", 0o700, (source._account.uid, source._account.gid))
        made = subprocess.run(
            [
                source._binaries() / "bin" / "pg_basebackup", "-D", target, "-h", str(parts["host"]), "-p", str(parts["port"]),
                "-U", "postgres", "-c", "fast", "-X", "stream", *(["-R"] if follows else []),
            ],
            cwd="/", env={**environment(), "PGPASSWORD": str(parts["password"])}, capture_output=True, text=True,
            **source._account.switch,
        )  # fmt: skip
        if made.returncode != 0:
            raise RuntimeError(f"pg_basebackup failed: {made.stderr}")
        shutil.copy2(source.home / "password", self.home / "password")


class OwnServer:
    """The server of one run, and those that take its place."""

    own = True

    def __init__(self, version: int | None = None) -> None:
        self.name = new_name()
        self._place = Path(tempfile.mkdtemp(prefix="pgqueue-chaos-", dir=memory()))
        self.directory: Path = self._place
        self.place = f"{self._place.parent}, fsync on"
        self._place.chmod(0o755)
        self._version = version
        self._made = 0
        self._all: list[Embedded] = []
        self._link = self._place / "current"
        self.primary = self._new(Embedded)
        self._standby: Copy | None = None
        self.accepting_since = time.time()

    def _new(self, kind: type[Any]) -> Any:
        self._made += 1
        server = kind(self._place / f"pg{self._made}", version=self._version, settings=SETTINGS)
        self._all.append(server)
        return server

    def __enter__(self) -> OwnServer:
        self.primary.start()
        self._point()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for server in self._all:
            server.remove()
        shutil.rmtree(self._place, ignore_errors=True)

    def _point(self) -> None:
        """The address leads to the primary."""
        new = self._place / "new"
        new.symlink_to(str(conninfo.conninfo_to_dict(self.primary.dsn)["host"]))
        os.replace(new, self._link)
        self.accepting_since = time.time()

    @property
    def dsn(self) -> str:
        """Of the database postgres, through the address that follows the primary."""
        return conninfo.make_conninfo(self.primary.dsn, host=str(self._link))

    # ------------------------------------------------------------------------------------------------ faults

    def restart(self, mode: Literal["fast", "immediate"], down: float = 0.0) -> None:
        """Stop it so, and start it after this time. ``immediate`` is a crash: it recovers from its log."""
        self.primary.stop(mode)
        time.sleep(down)
        self.primary.start()
        self.accepting_since = time.time()

    def crash_itself(self, kill: Callable[[], bool]) -> bool:
        """``kill`` one of its processes: it ends all, and recovers. Returns when it accepts connections again; False where
        nobody was killed."""
        witness = psycopg.connect(self.primary.dsn, autocommit=True)
        if not kill():
            witness.close()
            return False
        wait_for(lambda: not _answers(witness), "the server to notice that a process of its was killed")
        wait_for(lambda: _accepts(self.primary.dsn), "the server to have recovered")
        self.accepting_since = time.time()
        return True

    def prepare_standby(self) -> None:
        """A standby that follows the primary, and has all of it."""
        if self._standby is None:
            self._standby = self._new(Copy)
            self._standby.take(self.primary, follows=True)
            self._standby.start()
        self._caught_up()

    def _caught_up(self) -> None:
        with psycopg.connect(self.primary.dsn, autocommit=True) as conn:
            [here] = conn.execute("SELECT pg_current_wal_lsn()").fetchone() or (None,)
            there = "SELECT count(*) FROM pg_stat_replication WHERE replay_lsn >= %s::pg_lsn"
            wait_for(lambda: conn.execute(there, (here,)).fetchone() != (0,), "the standby to have caught up")

    def fail_over(self, until: Callable[[], bool] | None = None) -> None:
        """The standby takes over. ``until``: cut it off first, and lose what is committed before this says that it is enough.
        Without it nothing is lost."""
        self.prepare_standby()
        if until is not None:
            self.cut_off()
            wait_for(until, "enough commits to lose")
        self.take_over(lossless=until is None)

    def cut_off(self) -> None:
        """From now on the standby hears of nothing any more."""
        assert self._standby is not None
        with psycopg.connect(self._standby.dsn, autocommit=True) as conn:
            conn.execute("ALTER SYSTEM SET primary_conninfo = ''")
            conn.execute("SELECT pg_reload_conf()")
            receiving = "SELECT count(*) FROM pg_stat_wal_receiver"
            wait_for(lambda: conn.execute(receiving).fetchone() == (0,), "the standby to be cut off")

    def take_over(self, lossless: bool = False) -> None:
        """The primary ends (in peace it sends the last of its log first), and the standby is promoted."""
        standby = self._standby
        assert standby is not None
        self.primary.stop("fast" if lossless else "immediate")
        with psycopg.connect(standby.dsn, autocommit=True) as conn:
            conn.execute("SELECT pg_promote(true, 60)")
        self._replace(standby)

    def keep(self) -> Copy:
        """A backup of now, to go back to."""
        copy: Copy = self._new(Copy)
        copy.take(self.primary, follows=False)
        return copy

    def go_back(self, kept: Copy) -> None:
        """The server is lost. What was kept takes its place."""
        self.primary.stop("immediate")
        kept.start()
        self._replace(kept)

    def _replace(self, successor: Copy) -> None:
        old, self.primary, self._standby = self.primary, successor, None
        self._point()
        old.remove()
        self._all.remove(old)


def _answers(conn: psycopg.Connection[Any]) -> bool:
    try:
        conn.execute("SELECT 1")
    except psycopg.OperationalError:
        conn.close()
        return False
    return True


def _accepts(dsn: str) -> bool:
    try:
        psycopg.connect(dsn).close()
    except psycopg.OperationalError:
        return False
    return True


class GivenServer:
    """A server of somebody else: nothing is done to it but what any client can do."""

    own = False

    def __init__(self, dsn: str) -> None:
        self.name = new_name()
        self.dsn = dsn
        self.directory: Path | None = None  # it has none of ours
        self.place = "given"
        self.accepting_since = time.time()

    def __enter__(self) -> GivenServer:
        self._session = psycopg.connect(
            self.dsn, autocommit=True, application_name=self.name
        )  # the run lives: chaos/leftovers.py
        may = "SELECT rolcreatedb OR rolsuper, rolname FROM pg_roles WHERE rolname = current_user"
        allowed, role = self._session.execute(may).fetchall()[0]
        if not allowed:
            self._session.close()
            raise CannotRun(f"the role {role} may not make databases: ALTER ROLE {role} CREATEDB")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """It stays as it is."""
        self._session.close()


Server = OwnServer | GivenServer
