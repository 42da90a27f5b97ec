"""What a service manager hears, on a socket of our own."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from chaos.processes import state
from tests.apps import bank
from tests.shop import Shop
from tests.support import Workers, kill, wait_for
from tests.test_processes import ready

pytestmark = pytest.mark.usefixtures("bank_db")

ENVIRONMENT = """
@app.step(name='env')
def env() -> str:
    return ' '.join(v for v in os.environ if v in ('NOTIFY_SOCKET', 'WATCHDOG_USEC'))
"""


# ----------------------------------------------------------------------------------------------- service manager


class Manager:
    """The socket of a service manager, and what was said to it."""

    def __init__(self, path: Path) -> None:
        self.path = path / "notify"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self.path))
        self._socket.setblocking(False)
        self.heard: list[str] = []

    def hear(self, prefix: str) -> list[str]:
        while True:
            try:
                self.heard += self._socket.recv(4096).decode().splitlines()
            except BlockingIOError:
                return [line for line in self.heard if line.startswith(prefix)]

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    made = Manager(tmp_path)
    yield made
    made.close()


def test_what_a_service_manager_hears(shop: Shop, bank_db: psycopg.Connection[Any], workers: Workers, manager: Manager) -> None:
    shop.write("x", ENVIRONMENT)
    work = workers.start("shop:app", "-w", "1",
        env={"PYTHONPATH": str(shop.path), "NOTIFY_SOCKET": str(manager.path), "WATCHDOG_USEC": "2000000"})  # fmt: skip
    wait_for(lambda: manager.hear("READY=1"), what=f"READY\n{work.log()}")
    assert "worker" in work.log(), "not before a worker was there"
    job = shop.enqueue("env")
    wait_for(lambda: shop.result(job) == '""', what="a job that does not see the socket")
    wait_for(lambda: manager.hear("STATUS=1 worker, 0 busy, "), what="STATUS")
    work.signal(signal.SIGHUP)
    wait_for(lambda: manager.hear("RELOADING=1"), what="RELOADING")
    [stamp] = manager.hear("MONOTONIC_USEC=")
    assert 0 <= time.monotonic() * 1e6 - int(stamp.partition("=")[2]) < 60e6
    wait_for(lambda: len(manager.hear("READY=1")) == 2, what="READY again")
    fed = len(manager.hear("WATCHDOG=1"))
    wait_for(lambda: len(manager.hear("WATCHDOG=1")) > fed + 2, what="the watchdog to be fed")
    kill(work.pid, signal.SIGSTOP)
    wait_for(lambda: state(work.pid) == "T")
    fed = len(manager.hear("WATCHDOG=1"))
    time.sleep(2.5)
    assert len(manager.hear("WATCHDOG=1")) == fed, "nobody feeds it for a loop that stands still"
    kill(work.pid, signal.SIGCONT)
    work.signal(signal.SIGTERM)
    assert work.wait() == 0, work.log()
    assert manager.hear("STOPPING=1")
    assert manager.hear("EXTEND_TIMEOUT_USEC=")
    assert manager.heard.index("STOPPING=1") > manager.heard.index("READY=1")


def test_the_watchdog_stops_when_the_loop_is_stuck(bank_db: psycopg.Connection[Any], workers: Workers, manager: Manager) -> None:
    """All threads of the process live; only its loop does not go round."""
    work = workers.start("tests.apps.bank:app", "-w", "1",
        env={"NOTIFY_SOCKET": str(manager.path), "WATCHDOG_USEC": "1000000",
             "PGQUEUE_FAILPOINTS": "drain.signal=sleep:4"})  # fmt: skip
    ready(bank_db, work, 1)
    wait_for(lambda: manager.hear("WATCHDOG=1"))
    work.signal(signal.SIGTERM)
    wait_for(lambda: manager.hear("STOPPING=1"))
    fed = len(manager.hear("WATCHDOG=1"))
    time.sleep(2)
    assert len(manager.hear("WATCHDOG=1")) == fed
    assert work.wait() == 0, work.log()


def test_the_watchdog_is_told_that_importing_takes_a_while(
    bank_db: psycopg.Connection[Any], workers: Workers, manager: Manager
) -> None:
    """systemd watches from when it is first fed, which is before READY; with --preload the loop imports the App itself."""
    env = {"NOTIFY_SOCKET": str(manager.path), "WATCHDOG_USEC": "2000000"}
    workers.start("tests.apps.bank:app", "-w", "1", "--preload", "--boot-timeout", "50s", env=env)
    wait_for(lambda: manager.hear("READY=1"), what="READY")
    assert manager.hear("WATCHDOG_USEC") == ["WATCHDOG_USEC=52000000", "WATCHDOG_USEC=2000000"]


def test_an_abstract_socket_and_one_that_nobody_reads(bank_db: psycopg.Connection[Any], workers: Workers) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(f"\0pgqueue-test-{os.getpid()}")
        listener.setblocking(False)
        work = workers.start("tests.apps.bank:app", "-w", "1",
            env={"NOTIFY_SOCKET": f"@pgqueue-test-{os.getpid()}", "WATCHDOG_USEC": "40000", "WATCHDOG_PID": "1"})  # fmt: skip
        heard = wait_for(lambda: _receive(listener), what="something to be said")
        assert heard.startswith(("READY", "STATUS")), "the watchdog is for another process"
    job = bank.noop.enqueue()
    assert job.result(timeout=30) is None, "the socket is gone: no reason to stop working"
    work.signal(signal.SIGTERM)
    assert work.wait() == 0, work.log()


def _receive(listener: socket.socket) -> str:
    try:
        return listener.recv(4096).decode()
    except BlockingIOError:
        return ""
