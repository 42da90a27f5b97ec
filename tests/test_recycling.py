"""Replacing workers that are well: after so many jobs, with so much memory, by new code; and what preloaded ones share."""

from __future__ import annotations

import json
import os
import signal
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest

from chaos.processes import state
from pgqueue.supervisor import capacity
from pgqueue.supervisor.child import Scratch
from pgqueue.supervisor.sources import Sources
from pgqueue.supervisor.watch import private_memory
from tests.apps import bank
from tests.shop import Shop
from tests.support import Work, Workers, kill, nothing_is_lost, states, violations, wait_for
from tests.test_processes import attempts, ready

pytestmark = pytest.mark.usefixtures("bank_db")

LEAK = """
hoard = []
@app.step(name='leak')
def leak() -> int:
    hoard.append(os.urandom(8 << 20))
    return os.getpid()
"""


# ----------------------------------------------------------------------------------------------------- recycling


def test_a_worker_never_runs_more_jobs_than_it_may(shop: Shop, bank_db: psycopg.Connection[Any], tmp_path: Path) -> None:
    """Each job notes the process that ran it."""
    runs = tmp_path / "runs"
    shop.write("x", f"\n@app.step(name='note')\ndef note() -> None:\n    open({str(runs)!r}, 'a').write(f'{{os.getpid()}}\\n')\n")
    work = shop.start("-w", "1", "--max-jobs", "20")
    for _ in range(90):
        shop.enqueue("note")
    wait_for(lambda: states(bank_db) == {"succeeded": 90}, what=f"the end\n{work.log()}")
    by_process: dict[str, int] = {}
    for line in runs.read_text().split():
        by_process[line] = by_process.get(line, 0) + 1
    assert sum(by_process.values()) == 90
    assert max(by_process.values()) <= 20
    assert len(by_process) >= 5
    work.signal(signal.SIGTERM)
    assert work.wait() == 0, work.log()
    nothing_is_lost(bank_db, 90)


def test_a_leaking_worker_is_replaced_and_no_job_is_lost(shop: Shop, bank_db: psycopg.Connection[Any]) -> None:
    shop.write("x", LEAK)
    work = shop.start("-w", "1", "--max-memory", "100M")
    jobs = [shop.enqueue("leak") for _ in range(60)]
    wait_for(lambda: states(bank_db) == {"succeeded": 60}, what=f"the end\n{work.log()}")
    assert len({shop.result(job) for job in jobs}) > 1 or "needs" in work.log()
    wait_for(lambda: "generation 1" in work.log() or work.log().count("started") > 1, what=f"another worker\n{work.log()}")
    work.signal(signal.SIGTERM)
    assert work.wait() == 0, work.log()
    nothing_is_lost(bank_db, 60)


def test_a_limit_that_an_idle_worker_needs_is_said_and_does_not_churn(shop: Shop, bank_db: psycopg.Connection[Any]) -> None:
    work = shop.start("-w", "1", "--max-memory", "1M")

    def replaced() -> list[datetime]:
        records = [json.loads(line) for line in work.log().splitlines()]
        return [datetime.fromisoformat(record["ts"]) for record in records if "is replaced: it needs" in record["msg"]]

    times = wait_for(lambda: (found := replaced()) and len(found) >= 6 and found, what="replacements")
    assert (times[5] - times[4]).total_seconds() > 1.5, "the pause doubles from 0.1 s on"
    assert "before it has run a job: raise --max-memory, which is 1 MB" in work.log()
    assert shop.answer() == "first"
    work.signal(signal.SIGTERM)
    assert work.wait() == 0, work.log()


def test_only_memory_of_its_own_counts() -> None:
    """A forked child has all that its parent has, and almost nothing of its own."""
    ballast = os.urandom(64 << 20)
    assert private_memory(os.getpid()) > len(ballast)
    pid = os.fork()
    if pid == 0:
        time.sleep(600)
        os._exit(0)
    try:
        assert 0 < private_memory(pid) < 32 << 20
    finally:
        kill(pid)
        os.waitpid(pid, 0)
    assert private_memory(pid) == 0


def test_recycling_leaves_nothing_behind(bank_db: psycopg.Connection[Any], workers: Workers) -> None:
    recycle(bank_db, workers, 20)


@pytest.mark.operations
@pytest.mark.timeout(7200)
def test_10000_recycles_leave_nothing_behind(bank_db: psycopg.Connection[Any], workers: Workers) -> None:
    recycle(bank_db, workers, 10_000, "--preload")


def recycle(conn: psycopg.Connection[Any], workers: Workers, times: int, *options: str) -> None:
    """Each job has a worker of its own. Afterwards the supervisor has what it had before."""
    work = workers.start("tests.apps.bank:app", "-w", "2", "--max-jobs", "1", *options)
    ready(conn, work, 2)

    def pass_through(count: int) -> None:
        bank.app.enqueue_many([bank.noop.call()] * count)
        wait_for(lambda: set(states(conn)) == {"succeeded"}, 600 + 3 * count, f"{count} jobs\n{work.log()[-2000:]}")
        wait_for(lambda: len(work.children()) == 3 and "Z" not in map(state, work.children()), what="two workers again")

    pass_through(10)
    before = footprint(work)
    for done in range(0, times, 1000):
        pass_through(min(1000, times - done))
        after = footprint(work)
        print(f"\n{min(times, done + 1000)} recycles: supervisor before {before}, now {after}", flush=True)
    assert after["descriptors"] <= before["descriptors"] + 2  # one for each worker, and workers come and go
    assert after["memory"] < before["memory"] + (4 << 20)
    sessions = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'pgqueue:%'"
    wait_for(lambda: conn.execute(sessions).fetchone()[0] <= 7, what="no connection to be left")  # type: ignore[index]
    assert attempts(conn) == []
    assert violations(conn) == []


def footprint(work: Work) -> dict[str, int]:
    return {"memory": private_memory(work.pid), "descriptors": len(os.listdir(f"/proc/{work.pid}/fd"))}


# ---------------------------------------------------------------------------------------------------- preloading


def test_preloaded_workers_share_memory_and_hup_restarts_in_place(shop: Shop, bank_db: psycopg.Connection[Any]) -> None:
    ballast = "\nimport random\nballast = [random.random() for _ in range(1_000_000)]\n"
    shop.write("first", ballast)
    plain = shop.start("-w", "1")
    [separate] = ready(bank_db, plain, 1)
    own = private_memory(separate)
    plain.signal(signal.SIGTERM)
    assert plain.wait() == 0
    work = shop.start("-w", "1", "--preload")
    [first] = ready(bank_db, work, 1)
    shared = private_memory(first)
    print(f"\nprivate memory of a worker: {own / 1e6:.1f} MB, preloaded {shared / 1e6:.1f} MB")
    assert shared < own - (24 << 20)
    assert shop.answer() == "first"
    shop.write("broken", "\nimport nowhere_to_be_found\n")
    work.signal(signal.SIGHUP)
    wait_for(lambda: "not reloaded" in work.log(), what=f"the failure\n{work.log()}")
    assert shop.answer() == "first"
    shop.write("second one")
    work.signal(signal.SIGHUP)
    wait_for(lambda: "restarting" in work.log(), what=f"the restart\n{work.log()}")
    assert shop.answer() == "second one"
    assert work.process.poll() is None, "the same process id"
    work.signal(signal.SIGTERM)
    assert work.wait() == 0, work.log()
    nothing_is_lost(bank_db, 3)


def test_a_term_during_the_restart_is_obeyed(shop: Shop, bank_db: psycopg.Connection[Any]) -> None:
    work = shop.start("-w", "1", "--preload")
    ready(bank_db, work, 1)
    shop.enqueue("nap", '{"seconds": 2}')
    wait_for(lambda: states(bank_db).get("running"), what="the job to begin")
    work.signal(signal.SIGHUP)
    wait_for(lambda: "restarting" in work.log(), what=f"the restart\n{work.log()}")
    work.signal(signal.SIGTERM)
    assert work.wait() == 0, work.log()
    nothing_is_lost(bank_db, 1)


@pytest.mark.parametrize(
    ("more", "names"),
    [("import threading, time\nthreading.Thread(target=time.sleep, args=(60,), name='sender', daemon=True).start()", "'sender'"),
     ("import psycopg\nconn = psycopg.connect(os.environ['PGQUEUE_DSN'])", "a connection to PostgreSQL")],
)  # fmt: skip
def test_preload_refuses_what_cannot_cross_a_fork(shop: Shop, more: str, names: str) -> None:
    shop.write("x", "\n" + more + "\n")
    work = shop.start("-w", "1", "--preload")
    assert work.wait() == 78, work.log()
    assert names in work.log()
    assert "worker_start" in work.log(), "what to do instead"


def test_check_looks_and_starts_nothing(shop: Shop, bank_db: psycopg.Connection[Any]) -> None:
    assert shop.start("--check").wait() == 0
    shop.write("x", "\nimport nowhere_to_be_found\n")
    broken = shop.start("--check")
    assert broken.wait() == 78
    assert "nowhere_to_be_found" in broken.log()


# -------------------------------------------------------------------------------------------------------- reload


def test_reload_follows_the_files(shop: Shop, bank_db: psycopg.Connection[Any]) -> None:
    work = shop.start("-w", "1", "--reload")
    assert shop.answer() == "first"
    shop.write("second one")
    wait_for(lambda: "reloaded" in work.log(), what=f"the reload\n{work.log()}")
    assert shop.answer() == "second one"
    shop.write("x", "\ndef broken(:\n")
    wait_for(lambda: "SyntaxError" in work.log(), what=f"the error\n{work.log()}")
    assert shop.answer() == "second one"


def test_sources_see_new_changed_and_deleted_files(tmp_path: Path) -> None:
    sources = Sources([str(tmp_path)])
    assert not sources.have_changed()
    file = tmp_path / "new.py"
    file.write_text("1")
    assert sources.have_changed()
    assert not sources.have_changed()
    os.utime(file, ns=(1, 1))
    assert sources.have_changed()
    (tmp_path / "notes.txt").write_text("not our concern")
    assert not sources.have_changed()
    file.unlink()
    assert sources.have_changed()


# ------------------------------------------------------------------------------------------------------ capacity


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "processors", "memory"),
    [
        ({}, 8, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n", "sys/fs/cgroup/memory.max": "max\n"},
         2, None),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "300000 100000", "sys/fs/cgroup/a/b/cpu.max": "max 100000",
          "sys/fs/cgroup/a/b/memory.max": "1048576"}, 3, 1 << 20),
        ({"proc/self/cgroup": "0::/host/path\n", "sys/fs/cgroup/cpu.max": "20000 100000"}, 1, None),
        ({"proc/self/cgroup": "4:memory:/docker/1\n2:cpu,cpuacct:/docker/1\n",
          "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "250000",
          "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
          "sys/fs/cgroup/memory/docker/1/memory.limit_in_bytes": "9223372036854771712",
          "sys/fs/cgroup/memory/memory.limit_in_bytes": "2097152"}, 3, 2 << 20),
        ({"proc/self/cgroup": "2:cpu:/\n", "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
          "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, 8, None),
    ],
)  # fmt: skip
def test_limits_of_control_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], processors: int, memory: int | None
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    root = tree(tmp_path / "root", files)
    assert capacity.processors(root) == processors
    assert capacity.memory_limit(root) == memory


def test_what_was_written_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where there are no files in memory (macOS)."""
    for _ in range(2):
        scratch = Scratch()
        os.write(scratch.descriptor, b"one")
        assert scratch.take() == b"one"
        assert scratch.take() == b""
        os.write(scratch.descriptor, b"two")
        assert scratch.take() == b"two"
        scratch.close()
        monkeypatch.delattr(os, "memfd_create", raising=False)
