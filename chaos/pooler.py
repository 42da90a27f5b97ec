"""A PgBouncer in front of a server, in transaction mode unless said otherwise: it can be stopped, killed and started again at the
same address. The tests and the fault of a pooler that restarts use it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType

from psycopg import conninfo

from chaos.waiting import wait_for

PORT = 6432
#: PgBouncer's own defaults, but for what is needed here. Nothing in it helps pgqueue.
#: (After a crash of the server it would refuse everybody for 15 s, and what is started then ends with 69. Here it is one second.)
TRANSACTIONS = """
[databases]
* = {server}
[pgbouncer]
pool_mode = transaction
max_client_conn = 500
default_pool_size = 30
query_wait_timeout = 60
server_login_retry = 1
log_connections = 0
log_disconnections = 0
"""
OWN = """
listen_addr =
listen_port = {port}
unix_socket_dir = {home}
auth_type = trust
auth_file = {home}/users
logfile = {home}/pgbouncer.log
"""


def program() -> str | None:
    """Where PgBouncer is, if it is anywhere."""
    return shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


class Pooler:
    """One address, and the process behind it. ``config`` ends in its section [pgbouncer]; ``{server}`` in it stands for how to
    reach the server of ``dsn``. Lets in the user of that DSN."""

    def __init__(self, dsn: str, config: str = TRANSACTIONS) -> None:
        server = conninfo.conninfo_to_dict(dsn)
        self.home = Path(tempfile.mkdtemp(prefix="pgqueue-pooler-"))
        self._account = _account_of(str(server["host"])) if os.getuid() == 0 else None  # PgBouncer refuses to run as root
        reach = f"host={server['host']} port={server.get('port', 5432)}"
        self._file = self.home / "pgbouncer.ini"
        self._file.write_text(config.replace("{server}", reach) + OWN.format(port=PORT, home=self.home))
        (self.home / "users").write_text(f'"{server["user"]}" "{server.get("password", "")}"\n')
        for path in (self.home, *self.home.iterdir()):
            if self._account is not None:
                os.chown(path, *self._account)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Pooler:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop(signal.SIGKILL)
        shutil.rmtree(self.home)

    def start(self) -> None:
        """Returns when it listens."""
        found = program()
        assert found is not None, "there is no PgBouncer here: apt install pgbouncer"
        account = self._account
        self._process = subprocess.Popen(
            [found, "-q", str(self._file)],
            stderr=subprocess.DEVNULL,  # it is in the log
            **({"user": account[0], "group": account[1], "extra_groups": []} if account else {}),  # type: ignore[arg-type]
        )
        wait_for(self._listens, lambda: f"PgBouncer to listen: {(self.home / 'pgbouncer.log').read_text()}")

    def _listens(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.home / "pgbouncer.log").read_text()
        return (self.home / f".s.PGSQL.{PORT}").exists()

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End it with this signal: SIGTERM cuts all connections, SIGINT lets transactions end first, SIGKILL is a crash."""
        if self._process is None:
            return
        self._process.send_signal(number)
        self._process.wait()
        self._process = None
        (self.home / f".s.PGSQL.{PORT}").unlink(missing_ok=True)  # a crash leaves it behind

    def dsn(self, dsn: str) -> str:
        """The same database and user, through here."""
        return conninfo.make_conninfo(dsn, host=str(self.home), port=PORT)


def _account_of(directory: str) -> tuple[int, int]:
    status = os.stat(directory)
    return status.st_uid, status.st_gid
