"""A PgBouncer in front of the server under test, in transaction mode."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import psycopg
from psycopg import conninfo

PORT = 6432
#: Debian's own settings, but for what a test needs. Nothing here helps pgqueue.
CONFIG = """
[databases]
* = host={host} port={port}
[pgbouncer]
pool_mode = transaction
listen_port = {own_port}
unix_socket_dir = {home}
auth_type = trust
auth_file = {home}/users
max_client_conn = 500
default_pool_size = {pool_size}
query_wait_timeout = 60
logfile = {home}/pgbouncer.log
log_connections = 0
log_disconnections = 0
"""


def program() -> str | None:
    """Where PgBouncer is, if it is anywhere."""
    return shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


class Pooler:
    """One process; knows the users that it was told of."""

    def __init__(self, dsn: str, pool_size: int = 30) -> None:
        server = conninfo.conninfo_to_dict(dsn)
        self.home = Path(tempfile.mkdtemp(prefix="pgqueue-pooler-"))
        self._users: dict[str, str] = {}
        config = CONFIG.format(
            host=server["host"], port=server.get("port", 5432), own_port=PORT, home=self.home, pool_size=pool_size
        )
        (self.home / "pgbouncer.ini").write_text(config)
        self.know(str(server["user"]), str(server.get("password", "")))
        account = _account_of(str(server["host"])) if os.getuid() == 0 else None
        if account is not None:  # PgBouncer refuses to run as root, and the server's socket is private
            for path in (self.home, *self.home.iterdir()):
                os.chown(path, *account)
        found = program()
        assert found is not None
        self._process = subprocess.Popen(
            [found, "-q", str(self.home / "pgbouncer.ini")],
            **({"user": account[0], "group": account[1], "extra_groups": []} if account else {}),  # type: ignore[arg-type]
        )
        deadline = time.monotonic() + 60
        while not (self.home / f".s.PGSQL.{PORT}").exists():
            assert self._process.poll() is None, (self.home / "pgbouncer.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def know(self, user: str, password: str) -> None:
        """Let this user in, and through to the server."""
        self._users[user] = password
        (self.home / "users").write_text("".join(f'"{name}" "{secret}"\n' for name, secret in self._users.items()))

    def dsn(self, dsn: str) -> str:
        """The same database and user, through here."""
        return conninfo.make_conninfo(dsn, host=str(self.home), port=PORT)

    def forget(self, database: str) -> None:
        """Close the connections to a database that is about to be dropped."""
        admin = conninfo.make_conninfo(host=str(self.home), port=PORT, user=next(iter(self._users)), dbname="pgbouncer")
        with psycopg.connect(admin, autocommit=True, prepare_threshold=None) as conn:
            conn.execute(f"KILL {database}")  # type: ignore[arg-type]

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self.home)


def _account_of(directory: str) -> tuple[int, int]:
    status = os.stat(directory)
    return status.st_uid, status.st_gid
