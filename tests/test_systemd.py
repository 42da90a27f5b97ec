"""The unit of deploy/ under a real systemd: started, reloaded, hung and stopped. Systemd is pid 1 of namespaces of its own, sees
this machine read-only but for /tmp, and has no unit but ours."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest

from chaos.waiting import wait_for
from pgqueue import migrate
from pgqueue.database import connect
from pgqueue.embedded import Embedded
from tests.apps import bank
from tests.support import ROOT, nothing_is_lost, states, violations
from tests.test_exposition import free_port
from tests.test_supervision import children_of

SYSTEMD = "/lib/systemd/systemd"
#: Its control groups are below one of their own, also where the machine has both kinds.
BEGIN = """
set -e
for tree in /sys/fs/cgroup /sys/fs/cgroup/systemd /sys/fs/cgroup/unified; do
    [ -e $tree/cgroup.procs ] || continue
    mkdir -p "$tree/$1"
    echo $$ > "$tree/$1/cgroup.procs"
done
exec unshare --pid --mount --uts --ipc --cgroup --fork --kill-child --mount-proc sh -c "$2" sh "$3"
"""
INSIDE = """
set -e
mount --make-rprivate /
both=; [ ! -d /sys/fs/cgroup/unified ] || both=yes
umount -l /sys/fs/cgroup
if [ $both ]; then
    mount -t tmpfs tmpfs /sys/fs/cgroup
    mkdir /sys/fs/cgroup/systemd /sys/fs/cgroup/unified
    mount -t cgroup -o none,name=systemd cgroup /sys/fs/cgroup/systemd
    mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified
else
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
fi
mount --bind /tmp /tmp
mount --bind "$1" "$1"
mount -o remount,ro,bind /
mount -t tmpfs tmpfs /run
SYSTEMD_UNIT_PATH="$1/units" SYSTEMD_LOG_TARGET=console container=other exec /lib/systemd/systemd --system --unit=only.target
"""
#: What a test has elsewhere than a host: the program, its user, its settings, and a watchdog that need not be waited for.
HERE = """[Service]
ExecStart=
ExecStart={python} -m pgqueue work tests.apps.bank:app -w 1
User=root
WorkingDirectory={root}
EnvironmentFile=
EnvironmentFile={place}/env
ProtectHome=no
PrivateTmp=no
WatchdogSec=10s
StandardError=append:{place}/log
"""


class Systemd:
    """One that runs. ``systemctl`` asks it."""

    def __init__(self, pid: int) -> None:
        self._pid = pid

    def systemctl(self, *arguments: str, check: bool = True) -> str:
        command = ["nsenter", "-t", str(self._pid), "-m", "-p", "systemctl", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def show(self, unit: str, *names: str) -> tuple[str, ...]:
        values = dict(line.partition("=")[::2] for line in self.systemctl("show", unit, f"-p{','.join(names)}").splitlines())
        return tuple(values[name] for name in names)


@contextmanager
def booted(place: Path) -> Iterator[Systemd]:
    """With the units that are there."""
    if os.getuid() != 0 or not Path(SYSTEMD).exists() or shutil.which("nsenter") is None:
        pytest.skip("SKIPPED LOUDLY: a systemd of our own needs root, and Debian's package systemd")
    group = f"pgqueue-test-{os.getpid()}"
    with (place / "systemd.log").open("wb") as log:
        process = subprocess.Popen(
            ["sh", "-c", BEGIN, "sh", group, INSIDE, str(place)], stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        up = wait_for(lambda: process.poll() is not None or started(process.pid), what="systemd to start")
        if not isinstance(up, Systemd):
            said = (place / "systemd.log").read_text()
            pytest.skip(f"SKIPPED LOUDLY: no namespaces for a systemd to be had here: {said}")
        yield up
    finally:
        process.kill()
        process.wait()
        for tree in ("/sys/fs/cgroup", "/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified"):
            wait_for(lambda at=Path(tree, group): not at.exists() or empty(at), what="its control groups to be empty")  # type: ignore[misc]


def name_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""  # a command of the shell before


def started(parent: int) -> Systemd | None:
    for pid in children_of(parent):
        if name_of(pid) == "systemd":
            systemd = Systemd(pid)
            return systemd if systemd.systemctl("is-system-running", check=False).strip() in ("starting", "running") else None
    return None


def empty(group: Path) -> bool:
    """Removed, as nothing is in it any more."""
    try:
        for directory, _, _ in os.walk(group, topdown=False):
            os.rmdir(directory)
    except OSError:
        return False
    return True


@pytest.fixture
def conn(tmp_path: Path) -> Iterator[psycopg.Connection[Any]]:
    """A server that is reached by its address, as root without its privileges reaches no socket of others."""
    server = Embedded(tmp_path / "data", settings={"listen_addresses": "127.0.0.1", "port": str(free_port())})
    try:
        with connect(server.start(), "tests") as conn:
            migrate.migrate(conn)
            yield conn
    finally:
        server.remove()


@pytest.fixture
def place(tmp_path: Path, conn: psycopg.Connection[Any]) -> Path:
    """The units: ours as it is, with a drop-in; and those that systemd wants."""
    place = tmp_path / "place"
    unit = (ROOT / "deploy" / "systemd" / "pgqueue.service").read_text()
    (place / "units" / "pgqueue.service.d").mkdir(parents=True)
    (place / "units" / "pgqueue.service").write_text(unit)
    drop_in = HERE.format(python=sys.executable, root=ROOT, place=place)
    (place / "units" / "pgqueue.service.d" / "here.conf").write_text(drop_in)
    (place / "units" / "only.target").write_text("[Unit]\nDefaultDependencies=no\nWants=pgqueue.service\n")
    for name in ("sysinit", "basic", "shutdown"):
        (place / "units" / f"{name}.target").write_text("[Unit]\nDefaultDependencies=no\n")
    info = conn.info
    dsn = f"host=127.0.0.1 port={info.port} user={info.user} password={info.password} dbname={info.dbname}"
    (place / "env").write_text(f'PGQUEUE_DSN="{dsn}"\nBANK_FILE={place}/bank\n')
    return place


@pytest.mark.deploy
def test_the_unit(place: Path, conn: psycopg.Connection[Any]) -> None:
    jobs = 0

    def work() -> None:
        nonlocal jobs
        jobs += 1
        conn.execute("SELECT pgqueue.enqueue_workflow(%s, queue => 'default')", (bank.noop.name,))
        wait_for(lambda: states(conn) == {"succeeded": jobs}, what=lambda: f"{states(conn)}")

    with booted(place) as systemd:
        state = partial(systemd.systemctl, "status", "pgqueue", "sysinit.target", check=False)
        wait_for(lambda: systemd.show("pgqueue", "ActiveState") == ("active",), state, 120)
        pid, status = systemd.show("pgqueue", "MainPID", "StatusText")
        assert "worker" in status
        work()

        systemd.systemctl("reload", "pgqueue")
        work()
        assert systemd.show("pgqueue", "MainPID", "NRestarts") == (pid, "0")

        systemd.systemctl("kill", "--kill-whom=main", "--signal=STOP", "pgqueue")
        wait_for(lambda: systemd.show("pgqueue", "ActiveState", "NRestarts") == ("active", "1"), what="another start")
        assert systemd.show("pgqueue", "MainPID") != (pid,)
        work()

        systemd.systemctl("stop", "pgqueue")
        assert systemd.show("pgqueue", "ActiveState", "Result", "ExecMainStatus") == ("inactive", "success", "0")
        nothing_is_lost(conn, jobs)
        assert violations(conn) == []
