"""A real PgBouncer before the server under test. Debian's package has it."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tests.support import wait_for


@contextmanager
def bouncer(config: str, dsn: str) -> Iterator[str]:
    """One with this configuration, and with what only the test knows: where the server is, and where to listen. In ``config``
    ``{server}`` stands for how to reach the database. The DSN without a database."""
    binary = shutil.which("pgbouncer", path="/usr/sbin:/usr/bin")
    if binary is None:
        pytest.skip("pgbouncer is not installed: apt install pgbouncer")
    server = conninfo_to_dict(dsn)
    reach = " ".join(f"{key}={server[key]}" for key in ("host", "port", "dbname", "user", "password") if server.get(key))
    with tempfile.TemporaryDirectory(prefix="bouncer-") as home:
        Path(home).chmod(0o755)
        sockets = Path(home) / "s"
        sockets.mkdir()
        sockets.chmod(0o777)
        file = Path(home) / "pgbouncer.ini"
        file.write_text(config.replace("{server}", reach) + f"\nunix_socket_dir = {sockets}\nlisten_addr =\nauth_type = any\n")
        file.chmod(0o644)
        account = Path(str(server["host"])).owner()  # who may reach the socket of the server
        process = subprocess.Popen([binary, "-q", "-u", account, str(file)], stderr=subprocess.DEVNULL)
        try:
            wait_for(lambda: (sockets / ".s.PGSQL.6432").exists(), what="pgbouncer to listen")
            yield make_conninfo(host=str(sockets), port=6432, user=str(server["user"]))
        finally:
            process.terminate()
            process.wait()
