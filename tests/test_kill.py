"""The claim of the project: kill what you like, nothing is lost and no transaction doubled."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgqueue.database import connect
from tests.apps import bank
from tests.support import Server, Workers, kill, states, stopped, violations, wait_for, worker_pids


def check_ledger(conn: psycopg.Connection[Any], jobs: int) -> None:
    """Every account sum, every effect and every checkpoint fit each other."""
    assert states(conn) == {"succeeded": jobs}
    assert violations(conn) == []
    assert conn.execute("SELECT sum(balance) FROM account").fetchone() == (jobs,)
    unequal = conn.execute("""
        SELECT coalesce(e.step_key, c.step_key), e.n, c.xid FROM
          (SELECT step_key, xid, count(*) AS n FROM effect GROUP BY 1, 2) e
          FULL JOIN (SELECT job_id || ':' || seq AS step_key, xid FROM pgqueue.checkpoint WHERE name LIKE '%credit') c
          ON c.step_key = e.step_key AND c.xid = e.xid
         WHERE e.n IS DISTINCT FROM 1 OR c.xid IS NULL""").fetchall()
    assert unequal == []
    assert conn.execute("SELECT count(*) FROM effect").fetchone() == (2 * jobs,)


@pytest.mark.slow
def test_200_kills_over_5000_jobs(bank_db: psycopg.Connection[Any], workers: Workers, bank_file: Path) -> None:
    jobs, kills, supervisor_kills = 5000, 200, 5
    rng = random.Random(os.environ.get("SEED", "2026"))
    bank.app.enqueue_many([bank.deposit.call(rng.randint(1, 20), rng.randint(1, 99)) for _ in range(jobs)])
    work = workers.start("tests.apps.bank:app", "-w", "4", "--lease", "2s")
    done = killed = supervisors = 0
    deadline = time.monotonic() + 300
    while done < jobs:
        assert time.monotonic() < deadline, f"{done} of {jobs} done, {killed} killed\n{states(bank_db)}\n{work.log()[-3000:]}"
        done = bank_db.execute("SELECT count(*) FROM pgqueue.outcome").fetchone()[0]  # type: ignore[index]
        if supervisors < supervisor_kills and done > jobs * (supervisors + 1) // (supervisor_kills + 2):
            kill(work.pid)
            supervisors += 1
            work.wait()
            work = workers.start("tests.apps.bank:app", "-w", "4", "--lease", "2s")
        elif killed < kills and done >= jobs * killed // (kills + 20):  # spread over the whole run
            pids = worker_pids(bank_db, work)
            if pids:
                killed += kill(rng.choice(pids))
                assert bank_db.execute("SELECT * FROM pgqueue.violations").fetchall() == []
        else:
            time.sleep(0.01)  # leave the processor to the workers
    assert (killed, supervisors) == (kills, supervisor_kills)
    work.signal(signal.SIGTERM)
    assert work.wait() == 0, work.log()
    check_ledger(bank_db, jobs)

    runs = Counter(bank_file.read_text().split())
    assert len(runs) == jobs, "every plain step ran"
    blamed = dict(bank_db.execute("SELECT job_id || ':2', count(*) FROM pgqueue.attempts GROUP BY 1").fetchall())
    for step_key, times in runs.items():
        assert times <= 1 + blamed.get(step_key, 0) + supervisors, step_key
    again = sum(times - 1 for times in runs.values())
    assert again <= killed + 4 * supervisors, "a kill repeats at most the one step that it hit"


@pytest.mark.parametrize("point", ["transaction.fenced", "transaction.user_code_done", "transaction.committing"])
def test_a_worker_stopped_in_a_transaction_past_its_lease_changes_nothing(
    bank_db: psycopg.Connection[Any], workers: Workers, point: str, tmp_path: Path
) -> None:
    """SIGSTOP in the middle of a transaction; its job goes to another worker; SIGCONT; the zombie is refused and ends."""
    job = bank.deposit.enqueue(1, 50)
    first = workers.start(
        "tests.apps.bank:app", "-w", "1", "--lease", "1s",
        env={"PGQUEUE_FAILPOINTS": f"{point}=stop", "PGQUEUE_FAILPOINTS_ONCE": str(tmp_path)},
    )  # fmt: skip
    zombie = wait_for(lambda: [p for p in first.children() if stopped(p)], what="a worker to stop itself")[0]
    # The whole host stands still: supervisor and housekeeper too. Otherwise they would kill the worker at once.
    for pid in [first.pid, *first.children()]:
        kill(pid, signal.SIGSTOP)
    second = workers.start("tests.apps.bank:app", "-w", "1", "--lease", "1s")
    assert job.result(timeout=60) == "told 1"
    for pid in [zombie, *first.children(), first.pid]:
        kill(pid, signal.SIGCONT)
    wait_for(lambda: zombie not in first.children(), what="the zombie to end")
    check_ledger(bank_db, 1)
    for work in (first, second):
        work.signal(signal.SIGTERM)
        work.wait()
    check_ledger(bank_db, 1)


def test_postgres_crashes_and_comes_back_under_load(
    server: Server, bank_db: psycopg.Connection[Any], dsn: str, workers: Workers
) -> None:
    if server.embedded is None:
        pytest.skip("the server was given: it is not ours to stop")
    jobs = 2000
    bank.app.enqueue_many([bank.deposit.call(i % 20 + 1, i) for i in range(jobs)])
    work = workers.start("tests.apps.bank:app", "-w", "4")
    conn = bank_db
    for target in (0.2, 0.4, 0.6):
        goal = int(jobs * target)
        wait_for(lambda c=conn, goal=goal: states(c).get("succeeded", 0) > goal, what="progress")
        conn.close()
        server.embedded.stop("immediate")
        server.embedded.start()
        conn = wait_for(lambda: try_connect(dsn), what="the server to answer")
    try:
        wait_for(lambda: states(conn) == {"succeeded": jobs}, 120, f"all jobs to end, with no human\n{work.log()[-3000:]}")
        work.signal(signal.SIGTERM)
        assert work.wait() == 0, work.log()
        check_ledger(conn, jobs)
        assert conn.execute("SELECT * FROM pgqueue.attempts").fetchall() == [], "no attempt used, no crash blamed"
    finally:
        conn.close()


def try_connect(dsn: str) -> psycopg.Connection[Any] | None:
    try:
        return connect(dsn, "tests")
    except Exception:
        return None
