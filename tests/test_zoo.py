"""Jobs that are bad for their process (F15), each of them once: how it ends, and that its neighbours and its queue are well."""

from __future__ import annotations

import os
import signal
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from chaos.processes import state
from chaos.workloads import bank
from chaos.workloads.everything import app, zoo
from pgqueue.database import run
from tests.shop import Shop
from tests.support import Workers, nothing_is_lost, states, violations, wait_for
from tests.test_processes import ready

CGROUPS = Path("/sys/fs/cgroup")

ERROR = "SELECT (error::json ->> 'type') || ': ' || (error::json ->> 'message') FROM pgqueue.job_values WHERE id = %s"


@pytest.fixture
def bank_of_chaos(
    conn: psycopg.Connection[Any], dsn: str, bank_file: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[psycopg.Connection[Any]]:
    monkeypatch.setenv("PGQUEUE_DSN", dsn)
    conn.execute(bank.TABLES)
    run(conn, app.registration())
    yield conn
    app.close()


def test_each_ends_as_it_should_and_blames_nobody(
    bank_of_chaos: psycopg.Connection[Any], workers: Workers, bank_file: Path
) -> None:
    conn = bank_of_chaos
    animals = {name: getattr(zoo, name).enqueue() for name in zoo.EXPECTED}
    neighbours = app.enqueue_many([zoo.ignore_term.call()] * 30)
    work = workers.start("chaos.workloads.everything:app", "-w", "3", "-q", "zoo", "--drain-timeout", "5s")
    wait_for(lambda: not {"ready", "running", "scheduled"} & set(states(conn)), 200, f"all to end\n{work.log()[-3000:]}")
    for name, job in animals.items():
        status, said, _ = zoo.EXPECTED[name]
        error = conn.execute(ERROR, (job.id,)).fetchone()
        assert job.status() == status, (name, error)
        assert error is not None
        assert [part for part in said if part not in (error[0] or "")] == [], (name, error)
    assert [len(animals[name].attempts()) for name in ("segfault", "leave", "shoot_itself")] == [3, 3, 3]
    assert {job.status() for job in neighbours} == {"succeeded"}
    assert [attempt for job in neighbours for attempt in job.attempts() if attempt.kind != "lost"] == [], (
        "no neighbour is charged"
    )
    work.signal(signal.SIGTERM)
    assert work.wait() == 0, work.log()
    wait_for(lambda: theirs(bank_file) == [], what="what they have started to be gone")
    assert violations(conn) == []


def theirs(bank_file: Path) -> list[int]:
    """Processes that inherited their environment from these workers."""
    mark = f"BANK_FILE={bank_file}".encode()
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (place / "environ").read_bytes().split(b"\0") and state(int(place.name)) not in "ZX":
                found.append(int(place.name))
        except OSError:
            continue
    return [pid for pid in found if pid != os.getpid()]


# ------------------------------------------------------------------------------------------------------ out of memory

HOARD = """
@app.step(name='hoard')
def hoard() -> None:
    kept = []
    while True:
        kept.append(bytearray(b'x') * (8 << 20))
"""
ENTER = """
import os, sys
open(os.path.join({group!r}, "cgroup.procs"), "w").write(str(os.getpid()))
os.execv(sys.executable, [sys.executable, "-m", "pgqueue", *sys.argv[1:]])
"""


@pytest.fixture
def small_room() -> Iterator[Path]:
    """A control group with 256 MB. Needs root."""
    v1 = (CGROUPS / "memory").is_dir()
    group = (CGROUPS / "memory" if v1 else CGROUPS) / f"pgqueue-{uuid.uuid4().hex[:8]}"
    limit = "memory.limit_in_bytes" if v1 else "memory.max"
    try:
        group.mkdir()
        (group / limit).write_text(str(256 << 20))
    except OSError as error:
        if group.is_dir():
            group.rmdir()
        pytest.skip(f"no control group can be made here ({error}): NOT TESTED with the kernel's out-of-memory killer")
    yield group
    wait_for(lambda: (group / "cgroup.procs").read_text() == "", what="the group to be empty")
    group.rmdir()


def test_the_kernel_kills_a_job_that_eats_all_memory(
    shop: Shop, bank_db: psycopg.Connection[Any], workers: Workers, small_room: Path
) -> None:
    """It fails after three crashes, and says how; everybody else lives."""
    shop.write("x", HOARD)
    program = (sys.executable, "-c", ENTER.format(group=str(small_room)))
    work = workers.start("shop:app", "-w", "2", env={"PYTHONPATH": str(shop.path)}, program=program)
    ready(bank_db, work, 2)
    eater = shop.enqueue("hoard")
    wait_for(lambda: states(bank_db) == {"failed": 1}, 120, f"the end\n{work.log()[-3000:]}")
    [(error,)] = bank_db.execute("SELECT error FROM pgqueue.job_values WHERE id = %s", (eater,)).fetchall()
    assert "killed by SIGKILL (perhaps out of memory)" in error
    assert bank_db.execute("SELECT kind FROM pgqueue.attempts").fetchall() == [("crash",)] * 3
    assert shop.answer() == "x", "the others work on"
    assert "housekeeper ended" not in work.log()
    bank_db.execute("DELETE FROM pgqueue.attempt")
    work.signal(signal.SIGTERM)
    assert work.wait() == 0, work.log()
    nothing_is_lost(bank_db, 2)
