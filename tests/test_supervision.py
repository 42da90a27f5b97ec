"""Workers that do not get on, what jobs leave behind, and the supervisor as process 1."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.apps import bank
from tests.shop import Shop
from tests.support import ROOT, Workers, kill, nothing_is_lost, states, wait_for, worker_pids
from tests.test_processes import alive, attempts, ready

pytestmark = pytest.mark.usefixtures("bank_db")

FIRST_ONLY = """
@app.on('worker_start')
def first_only():
    if os.path.exists('{mark}'):
        raise ValueError('taken')
    open('{mark}', 'w').close()
"""
FAULT = """
@app.step(name='fault', max_crashes=1)
def fault() -> None:
    import ctypes
    ctypes.string_at(0)
"""


# -------------------------------------------------------------------------------------- standstills, crash loops


def test_a_worker_that_hangs_in_its_boot_is_killed_with_its_stacks(shop: Shop) -> None:
    mark = shop.path / "imports"
    shop.write(
        "x",
        f"""
with open({str(mark)!r}, 'a+') as f:
    f.write('x'); f.seek(0)
    if len(f.read()) == 2:
        import time
        time.sleep(600)
""",
    )
    work = shop.start("-w", "1", "--boot-timeout", "3s")
    assert shop.answer() == "x", "the next one boots"
    assert "has not booted within 3 s" in work.log()
    assert "shop.py" in work.log()[work.log().index("stacks of worker") :]


def test_a_worker_that_does_not_move_is_killed_and_nobody_is_charged(
    bank_db: psycopg.Connection[Any], workers: Workers, tmp_path: Path
) -> None:
    """Its thread that claims stands still, outside of any question to the database."""
    work = workers.start("tests.apps.bank:app", "-w", "1", "--hang-timeout", "2s",
        env={"PGQUEUE_FAILPOINTS": "claim.before=sleep:600", "PGQUEUE_FAILPOINTS_ONCE": str(tmp_path)})  # fmt: skip
    wait_for(lambda: "has not moved for 2 s" in work.log(), what=f"the standstill to be seen\n{work.log()}")
    assert bank.deposit.enqueue(1, 1).result(timeout=60) == "told 1"
    assert "_exchange" in work.log()[work.log().index("stacks of worker") :]
    assert attempts(bank_db) == []


def locked(conn: psycopg.Connection[Any]) -> bool:
    """All that a worker looks at. False where the server chose this session to end a deadlock."""
    try:
        conn.execute("LOCK TABLE pgqueue.ready, pgqueue.scheduled, pgqueue.worker IN ACCESS EXCLUSIVE MODE")
    except psycopg.errors.DeadlockDetected:
        conn.rollback()
        return False
    return True


def test_workers_that_wait_for_the_database_do_not_stand_still(
    bank_db: psycopg.Connection[Any], workers: Workers, dsn: str
) -> None:
    """A lock on the tables, longer than all limits, also for one that boots: everybody waits, and goes on."""
    work = workers.start("tests.apps.bank:app", "-w", "1", "--hang-timeout", "1s", "--boot-timeout", "1s", "--lease", "600s")
    children = {*ready(bank_db, work, 1), *work.children()}
    with psycopg.connect(dsn) as other:
        wait_for(lambda: locked(other), what="the locks")
        work.signal(signal.SIGTTIN)
        wait_for(lambda: len(work.children()) == 3, what="another worker")
        time.sleep(8)  # more than the 3 s of the housekeeper
        assert children < set(work.children())
        other.rollback()
    ready(bank_db, work, 2)
    assert bank.deposit.enqueue(1, 1).result(timeout=30) == "told 1"
    assert "killing" not in work.log()


def test_nobody_boots_is_a_crash_loop_but_one_that_works_keeps_all_alive(shop: Shop, bank_db: psycopg.Connection[Any]) -> None:
    shop.write("x", "\n@app.on('worker_start')\ndef fails():\n    raise ValueError('not today')\n")
    work = shop.start("-w", "2")
    assert work.wait(90) == 70, work.log()
    [end] = [line for line in work.log().splitlines() if "giving up" in line]
    assert "giving up: a worker_start hook failed with ValueError: not today" in end
    mark = shop.path / "boots"
    shop.write("y", FIRST_ONLY.format(mark=str(mark)))
    work = shop.start("-w", "2")
    wait_for(lambda: work.log().count("taken") > 5, 90, f"many failures\n{work.log()}")
    assert shop.answer() == "y"
    work.signal(signal.SIGTERM)
    assert work.wait() == 0, work.log()


# ---------------------------------------------------------------------------------------- what jobs leave behind


@pytest.mark.parametrize("how", ["killed", "quit"])
def test_children_of_a_job_die_with_its_worker_also_in_a_session_of_their_own(
    shop: Shop, bank_db: psycopg.Connection[Any], how: str
) -> None:
    pids = shop.path / "pids"
    shop.write(
        "x",
        f"""
@app.step(name='starts', max_crashes=1)
def starts() -> None:
    import subprocess
    children = [subprocess.Popen(['sleep', '600'], start_new_session=new) for new in (False, True)]
    with open({str(pids)!r}, 'w') as f:
        f.write(' '.join(str(child.pid) for child in children) + '\\n')
    children[0].wait()
""",
    )
    job = shop.enqueue("starts")
    work = shop.start("-w", "1")
    wait_for(lambda: pids.exists() and pids.read_text().endswith("\n"), what=f"the children\n{work.log()}")
    time.sleep(1.1)  # the supervisor has seen who is there
    if how == "killed":
        kill(worker_pids(bank_db, work)[0])
    else:
        work.signal(signal.SIGQUIT)
    wait_for(lambda: not any(alive(int(pid)) for pid in pids.read_text().split()), 30, "them to die")
    if how == "quit":
        assert work.wait() == 75
        assert states(bank_db) == {"ready": 1}
    else:
        wait_for(lambda: states(bank_db) == {"failed": 1}, what=f"the job {job} to fail")


def test_the_stack_of_a_segmentation_fault_is_in_the_log(shop: Shop, bank_db: psycopg.Connection[Any]) -> None:
    shop.write("x", FAULT)
    shop.enqueue("fault")
    work = shop.start("-w", "1")
    wait_for(lambda: states(bank_db) == {"failed": 1}, what=f"the end\n{work.log()}")
    assert "Segmentation fault" in work.log()
    assert "in fault" in work.log()
    assert shop.answer() == "x"


# --------------------------------------------------------------------------------------------------------- pid 1


def test_as_pid_1_of_a_container_it_reaps_strangers_and_obeys(bank_db: psycopg.Connection[Any], dsn: str, tmp_path: Path) -> None:
    """In a pid namespace of its own, where nothing else reaps. A job leaves grandchildren that detach themselves and die."""
    if os.getuid() != 0:
        pytest.skip("SKIPPED LOUDLY: making a pid namespace needs root")
    try:
        subprocess.run(["unshare", "--pid", "--fork", "--mount-proc", "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"SKIPPED LOUDLY: no pid namespace to be had here: {error}")
    (tmp_path / "shop.py").write_text("""
import subprocess
from pgqueue import App
app = App()

@app.step(name="detach")
def detach() -> int:
    for _ in range(20):  # a shell that leaves its child behind, in a session of its own
        subprocess.run(["sh", "-c", "sleep 0.2 & sleep 0.1 &"], check=True, start_new_session=True)
    return 20
""")
    log = tmp_path / "work.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child",
             sys.executable, "-m", "pgqueue", "work", "shop:app", "-w", "1"],
            env={**os.environ, "PGQUEUE_DSN": dsn, "PYTHONPATH": f"{ROOT}:{tmp_path}"}, cwd=ROOT, stdout=out, stderr=out,
        )  # fmt: skip
    try:
        [supervisor] = wait_for(lambda: children_of(process.pid), what="the supervisor")
        wait_for(lambda: "started" in log.read_text(), what="a worker")
        assert '"pid": 1}' in log.read_text()
        bank_db.execute("SELECT pgqueue.enqueue_workflow('detach', '{}', queue => 'default')")
        wait_for(lambda: states(bank_db) == {"succeeded": 1}, what=f"the job\n{log.read_text()}")
        wait_for(lambda: len(children_of(supervisor)) == 2, what="only the housekeeper and the worker to be left, and no zombies")
        os.kill(supervisor, signal.SIGTERM)
        assert process.wait(60) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()
    nothing_is_lost(bank_db, 1)


def children_of(pid: int) -> list[int]:
    """Dead or alive."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


# ------------------------------------------------------------------------------------------------- many descriptors

HOLD_1100 = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
nothing = os.open(os.devnull, os.O_RDONLY)
for number in range(10, 1110):
    os.dup2(nothing, number)
os.execv(sys.executable, [sys.executable, "-m", "pgqueue", *sys.argv[1:]])
"""
ALLOW = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))
os.execv(sys.executable, [sys.executable, "-m", "pgqueue", *sys.argv[1:]])
"""


def test_descriptors_above_1024(bank_db: psycopg.Connection[Any], workers: Workers) -> None:
    """As of a supervisor with hundreds of workers: select() would refuse them, in each of the three roles."""
    jobs = bank.app.enqueue_many([bank.slow.call(0.1)] * 3)
    work = workers.start("tests.apps.bank:app", "-w", "1", program=(sys.executable, "-c", HOLD_1100))
    wait_for(lambda: states(bank_db) == {"succeeded": 3}, what=f"the jobs\n{work.log()}")
    work.signal(signal.SIGTERM)
    assert work.wait() == 0, work.log()
    nothing_is_lost(bank_db, len(jobs))
    assert "the housekeeper ended" not in work.log(), "the housekeeper was well"


def test_closed_standard_streams(bank_db: psycopg.Connection[Any], workers: Workers) -> None:
    """As some service managers, and some scripts, leave them."""
    bank.noop.enqueue()
    closed = ("sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, "-m", "pgqueue")
    work = workers.start("tests.apps.bank:app", "-w", "1", program=closed)
    wait_for(lambda: states(bank_db) == {"succeeded": 1} or work.process.poll() is not None, what="the job")
    work.signal(signal.SIGTERM)
    assert work.wait() == 0
    nothing_is_lost(bank_db, 1)


def test_as_many_descriptors_as_the_workers_need(bank_db: psycopg.Connection[Any], workers: Workers) -> None:
    bank.noop.enqueue()
    work = workers.start("tests.apps.bank:app", "-w", "1", program=(sys.executable, "-c", ALLOW.format(soft=64, hard=4096)))
    wait_for(lambda: states(bank_db) == {"succeeded": 1}, what=f"the job\n{work.log()}")
    refused = workers.start("tests.apps.bank:app", "-w", "400", program=(sys.executable, "-c", ALLOW.format(soft=64, hard=1024)))
    assert refused.wait() == 78, refused.log()
    assert "400 workers need" in refused.log()
    assert "LimitNOFILE" in refused.log(), "what to do"
