"""kill -9, an exception, and a dropped process at every failpoint, one by one: the ledger is exact each time."""

from __future__ import annotations

import re
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.apps import bank
from tests.support import ROOT, Workers, kill, states, violations, wait_for
from tests.test_kill import check_ledger

SOURCES = [path.read_text() for path in (ROOT / "pgqueue").rglob("*.py")]
FAILPOINTS = sorted({name for text in SOURCES for name in re.findall(r'failpoint\("([a-z_.]+)"\)', text)})

#: Places that this way of running does not come by, and the tests that do.
ELSEWHERE = {
    "drain.signal",  # test_processes: drains
    "resolve.before",  # test_lost_connections below
    "failure.before_recorded",  # test_a_failing_step below
    "failure.recorded",
    "supervisor.before_kill",  # test_processes: a fenced worker
    "reap.selected",  # these need a death first: test_killed_again_while_recovering
    "reap.committed",
    "supervisor.child_reaped",
}
JOBS = 6


@pytest.mark.parametrize("name", [name for name in FAILPOINTS if name not in ELSEWHERE])
@pytest.mark.parametrize("action", ["kill9", "raise"])
def test_every_failpoint(
    bank_db: psycopg.Connection[Any], workers: Workers, bank_file: Path, tmp_path: Path, name: str, action: str
) -> None:
    if action == "raise" and name.partition(".")[0] in ("supervisor", "heartbeat"):
        pytest.skip("an exception there is a bug, and ends the process: as kill9")
    bank.app.enqueue_many([bank.deposit.call(i + 1, i) for i in range(JOBS)])
    nth = 1 if name.startswith(("dispatch.forked", "heartbeat", "promote", "reconcile")) else 2  # in the middle of the work
    env = {"PGQUEUE_FAILPOINTS": f"{name}={action}@{nth}", "PGQUEUE_FAILPOINTS_ONCE": str(tmp_path)}
    run_to_the_end(bank_db, workers, env, tmp_path / name)
    requeue_failed(bank_db, workers)
    check_ledger(bank_db, JOBS)
    again = Counter(bank_file.read_text().split())
    assert len(again) == JOBS
    assert sum(again.values()) <= JOBS + 1, "at most the one step that was hit ran again"


def run_to_the_end(conn: psycopg.Connection[Any], workers: Workers, env: dict[str, str], reached: Path | None = None) -> None:
    """Start a supervisor, and again if it was the one that died, until every job has ended and the failpoint was reached."""
    for _ in range(3):
        work = workers.start("tests.apps.bank:app", "-w", "2", "--lease", "1s", env=env)

        def over(work: Any = work) -> bool:
            ended = sum(n for state, n in states(conn).items() if state in ("succeeded", "failed"))
            return work.process.poll() is not None or (ended >= JOBS and (reached is None or reached.exists()))

        wait_for(over, 60, f"all jobs to end, and {reached}\n{work.log()}")
        assert conn.execute("SELECT * FROM pgqueue.violations").fetchall() == []
        if work.process.poll() is None:
            work.signal(signal.SIGTERM)
            work.wait()
            return


def requeue_failed(conn: psycopg.Connection[Any], workers: Workers) -> None:
    """An exception inside a job may have failed it: then it says so, and goes on from where it stopped."""
    failed = [str(row[0]) for row in conn.execute("SELECT id FROM pgqueue.jobs WHERE state = 'failed'")]
    assert len(failed) <= 1
    if failed:
        assert bank.app.job(failed[0]).requeue()
        run_to_the_end(conn, workers, {})


@pytest.mark.parametrize("name", ["reap.selected", "reap.committed", "supervisor.child_reaped"])
def test_killed_again_while_recovering(bank_db: psycopg.Connection[Any], workers: Workers, tmp_path: Path, name: str) -> None:
    """A worker dies in a transaction, and so does who deals with that: the housekeeper or the supervisor."""
    bank.app.enqueue_many([bank.deposit.call(i + 1, i) for i in range(JOBS)])
    env = {"PGQUEUE_FAILPOINTS": f"transaction.user_code_done=kill9,{name}=kill9", "PGQUEUE_FAILPOINTS_ONCE": str(tmp_path)}
    run_to_the_end(bank_db, workers, env, tmp_path / name)
    check_ledger(bank_db, JOBS)


@pytest.mark.parametrize("name", ["failure.before_recorded", "failure.recorded"])
def test_a_failing_step_killed_while_its_failure_is_recorded(
    bank_db: psycopg.Connection[Any], workers: Workers, tmp_path: Path, name: str
) -> None:
    job = bank.survives.enqueue()
    env = {"PGQUEUE_FAILPOINTS": f"{name}=kill9", "PGQUEUE_FAILPOINTS_ONCE": str(tmp_path)}
    workers.start("tests.apps.bank:app", "-w", "1", env=env)
    assert job.result(timeout=60) == "caught RuntimeError"
    assert (tmp_path / name).exists()
    kinds = Counter(attempt.kind for attempt in job.attempts())
    assert kinds == {"error": 2, "crash": 1} if name == "failure.recorded" else kinds["error"] == 2
    assert violations(bank_db) == []


@pytest.mark.parametrize(
    "point", ["transaction.fenced", "transaction.checkpointed", "step.after_effect", "settle.before", "claim.before"]
)
def test_a_stopped_worker_is_overtaken(
    bank_db: psycopg.Connection[Any], workers: Workers, bank_file: Path, tmp_path: Path, point: str
) -> None:
    """One worker stands still. Somebody fences it, as a hang detector would, and its job goes on elsewhere."""
    bank.app.enqueue_many([bank.deposit.call(i + 1, i) for i in range(JOBS)])
    env = {"PGQUEUE_FAILPOINTS": f"{point}=stop", "PGQUEUE_FAILPOINTS_ONCE": str(tmp_path)}
    work = workers.start("tests.apps.bank:app", "-w", "2", "--lease", "1s", env=env)
    wait_for((tmp_path / point).exists)
    stuck = wait_for(lambda: [pid for pid in work.children() if is_stopped(pid)], what="a worker to stop")
    bank_db.execute("UPDATE pgqueue.worker SET fenced_at = clock_timestamp(), reason = 'hung' WHERE pid = ANY (%s)", (stuck,))
    wait_for(lambda: states(bank_db) == {"succeeded": JOBS}, 60, f"the others to go on\n{work.log()}")
    for pid in stuck:
        kill(pid, signal.SIGCONT)
    work.signal(signal.SIGTERM)
    work.wait()
    check_ledger(bank_db, JOBS)


def is_stopped(pid: int) -> bool:
    from tests.support import stopped

    return stopped(pid)
