"""``async def`` jobs in real worker processes: many at once, both colours in one worker, deaths, hooks and drains."""

from __future__ import annotations

import re
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgqueue import JobFailed
from pgqueue.database import run
from tests.apps import aio, bank, loop_only
from tests.support import Workers, kill, states, violations, wait_for, worker_pids

APP = "tests.apps.aio:app"


@pytest.fixture
def db(
    dsn: str, conn: psycopg.Connection[Any], bank_file: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[psycopg.Connection[Any]]:
    monkeypatch.setenv("PGQUEUE_DSN", dsn)
    conn.execute(bank.TABLES)  # type: ignore[arg-type]
    run(conn, aio.app.registration())
    yield conn
    aio.app.close()
    loop_only.app.close()


def lines(beginning: str) -> Callable[[], list[str]]:
    return lambda: [line for line in bank.outside() if line.startswith(beginning)]


def check_ledger(conn: psycopg.Connection[Any], jobs: int) -> None:
    """Each credit of each deposit once, together with its checkpoint."""
    assert violations(conn) == []
    assert conn.execute("SELECT sum(balance) FROM account").fetchone() == (jobs,)
    unequal = conn.execute("""
        SELECT step_key FROM (SELECT step_key, xid FROM effect) e
          FULL JOIN (SELECT job_id || ':' || seq AS step_key, xid FROM pgqueue.checkpoint WHERE name LIKE '%credit') c
          USING (step_key, xid) GROUP BY step_key HAVING count(*) <> 1 OR count(e.xid) <> 1 OR count(c.xid) <> 1""").fetchall()
    assert unequal == []
    assert conn.execute("SELECT count(*) FROM effect").fetchone() == (2 * jobs,)


# ------------------------------------------------------------------------------------------------------- many at once


def test_concurrency_is_how_many_async_jobs_run_at_once(db: Any, workers: Workers) -> None:
    jobs = aio.app.enqueue_many([aio.meet.call("square", 40)] * 40)
    workers.burst(APP, "-w", "1", "--concurrency", "40")
    assert states(db) == {"succeeded": len(jobs)}
    assert max(Counter(lines("square")()).values()) == 40


def test_no_more_than_concurrency_run_at_once(db: Any, workers: Workers) -> None:
    aio.app.enqueue_many(aio.wait.map([60] * 10))
    workers.start(APP, "-w", "1", "--concurrency", "4")
    wait_for(lambda: len(lines("wait")()) == 4)
    late = aio.meet.enqueue("never", 1)
    wait_for(lambda: db.execute("SELECT count(*) FROM pgqueue.running").fetchone() == (4,), what="the others given back")
    assert late.status() == "ready"
    assert len(lines("wait")()) == 4


def test_threads_is_how_many_def_jobs_run_at_once(db: Any, workers: Workers) -> None:
    aio.app.enqueue_many([aio.def_meet.call("square", 8)] * 8)
    workers.burst(APP, "-w", "1", "--threads", "8")
    assert states(db) == {"succeeded": 8}


def test_both_halves_of_a_worker_work_at_once(db: Any, workers: Workers) -> None:
    aio.app.enqueue_many([aio.def_meet.call("square", 24)] * 4 + [aio.meet.call("square", 24)] * 20)
    workers.burst(APP, "-w", "1", "--threads", "4", "--concurrency", "20")
    assert states(db) == {"succeeded": 24}


@pytest.mark.xfail(strict=True, reason="a claim cannot ask for one colour only, so a full half stops the queue for both")
def test_a_long_def_job_is_in_nobodys_way(db: Any, workers: Workers) -> None:
    """Also where both colours come from the same queue."""
    aio.app.enqueue_many([aio.def_meet.options(queue="default").call("square", 2)])
    workers.start(APP, "-w", "1", "--threads", "1", "--concurrency", "20")
    wait_for(lines("square"))
    assert aio.meet.options(queue="default").enqueue("square", 2).result(timeout=10) is None


def test_aio_runs_in_many_threads_at_once(db: Any, workers: Workers) -> None:
    aio.app.enqueue_many([aio.meet_in_threads.call("square", 20)] * 20)
    workers.burst(APP, "-w", "1", "--concurrency", "20")
    assert states(db) == {"succeeded": 20}


def test_jobs_on_one_loop_do_not_share_their_context(db: Any, workers: Workers) -> None:
    jobs = aio.app.enqueue_many(aio.wait.map([0.2] * 20))
    workers.burst(APP, "-w", "1", "--concurrency", "20")
    assert [job.result(timeout=1) for job in jobs] == [f"tenant of {job.id}" for job in jobs]


def test_a_job_knows_nothing_of_the_context_of_the_one_before_it(db: Any, workers: Workers) -> None:
    jobs = aio.app.enqueue_many([f.call(f"{i}") for i in range(20) for f in (aio.remember, aio.def_remember)])
    workers.burst(APP, "-w", "1", "--concurrency", "2")
    assert {job.result(timeout=1) for job in jobs} == {"nothing"}


# ------------------------------------------------------------------------------------------------------------- deaths


def test_a_killed_workers_jobs_all_run_again_and_transactions_once(db: Any, workers: Workers) -> None:
    """Ten at once, in the middle of this and that, three times."""
    jobs = aio.app.enqueue_many([aio.deposit.call(i % 20 + 1, i, 0.5 * (i % 2)) for i in range(60)])
    work = workers.start(APP, "-w", "1", "--concurrency", "10", "--threads", "2", "--lease", "2s")
    killed: set[int] = set()
    for goal in (5, 20, 35):
        wait_for(lambda goal=goal: states(db).get("succeeded", 0) >= goal, what=f"progress\n{work.log()}")  # type: ignore[misc]
        [pid] = wait_for(lambda: [pid for pid in worker_pids(db, work) if pid not in killed], what="another worker")
        killed.add(pid)
        assert kill(pid)
    wait_for(lambda: states(db) == {"succeeded": len(jobs)}, 60, f"the end\n{work.log()}")
    check_ledger(db, len(jobs))
    runs = Counter(line for line in bank.outside() if re.fullmatch(r"[0-9a-f-]{36}:\d+", line))
    assert len(runs) == len(jobs), "every plain step ran"
    assert sum(runs.values()) - len(runs) <= 10 * len(killed), "a kill repeats at most the step that each job was in"
    charged = db.execute("SELECT DISTINCT kind FROM pgqueue.attempts").fetchall()
    assert charged in ([("crash",)], [])


def test_sessions_are_replaced_when_they_are_terminated(db: Any, workers: Workers) -> None:
    """One session of whatever kind after the other, with some progress in between. Ten jobs share them."""
    jobs = aio.app.enqueue_many([aio.deposit.call(i % 20 + 1, i) for i in range(200)])
    work = workers.start(APP, "-w", "1", "--concurrency", "10", "--lease", "2s")
    for goal in range(0, 200, 10):
        wait_for(lambda goal=goal: states(db).get("succeeded", 0) >= goal, what=f"progress\n{work.log()}")  # type: ignore[misc]
        db.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
            "AND application_name LIKE 'pgqueue:%' AND application_name <> 'pgqueue:client' ORDER BY random() LIMIT 1"
        )
    wait_for(lambda: states(db) == {"succeeded": len(jobs)}, 60, f"the end\n{work.log()}")
    check_ledger(db, len(jobs))
    assert db.execute("SELECT * FROM pgqueue.attempts").fetchall() == [], "neither an attempt nor a crash"


@pytest.mark.parametrize("seconds", [0.0, pytest.param(0.5, marks=pytest.mark.slow)])
def test_a_poison_job_among_innocent_ones_fails_alone(db: Any, workers: Workers, seconds: float) -> None:
    """Nobody can tell which of those that ran at once it was, so each begins alone when it comes back."""
    innocents = aio.app.enqueue_many([aio.deposit.call(i % 20 + 1, i, 1.0) for i in range(4)])
    poison = aio.suicidal.enqueue(seconds)
    innocents += aio.app.enqueue_many([aio.deposit.call(i % 20 + 1, i, 1.0) for i in range(4)])
    work = workers.start(APP, "-w", "1", "--concurrency", "10", "--lease", "2s")
    wait_for(lambda: set(states(db)) <= {"succeeded", "failed"}, 100, f"the end\n{work.log()}")
    with pytest.raises(JobFailed, match=r"died \d+ times.*SIGKILL"):
        poison.result(timeout=1)
    assert [job.status() for job in innocents] == ["succeeded"] * 8
    check_ledger(db, 8)


@pytest.mark.slow
def test_long_jobs_are_not_blamed_for_a_slow_poison(db: Any, workers: Workers) -> None:
    innocents = [aio.pause.enqueue(5.0)]
    poison = aio.suicidal.enqueue(1.0)
    innocents += [aio.pause.enqueue(5.0)]
    work = workers.start(APP, "-w", "1", "--concurrency", "10", "--lease", "2s")
    wait_for(lambda: set(states(db)) <= {"succeeded", "failed"}, 200, f"the end\n{work.log()}")
    assert poison.status() == "failed"
    assert [job.status() for job in innocents] == ["succeeded"] * 2


def test_a_task_that_exits_ends_its_worker_and_is_charged(db: Any, workers: Workers) -> None:
    job = aio.leaves.enqueue()
    other = aio.deposit.enqueue(1, 1)
    workers.burst(APP, "-w", "1")
    with pytest.raises(JobFailed, match="died 3 times"):
        job.result(timeout=1)
    assert other.result(timeout=1) == "told 1"


def test_whoever_still_uses_the_connection_of_a_step_does_not_break_the_worker(db: Any, workers: Workers) -> None:
    """libpq has no defence against a connection that is closed while somebody is inside."""
    jobs = aio.app.enqueue_many([*aio.hammers.map([True, False] * 20), *[aio.thread_hammers.call()] * 20])
    work = workers.start(APP, "-w", "1", "--concurrency", "4")
    wait_for(lambda: set(states(db)) <= {"succeeded", "failed"}, 100, f"the end\n{work.log()}")
    assert {a.kind for job in jobs for a in job.attempts()} <= {"error"}, work.log()


@pytest.mark.parametrize("how", ["return", "raise", "sleep", "spin"])
def test_the_child_of_a_fork_is_no_second_worker(db: Any, workers: Workers, how: str) -> None:
    """It has a copy of the event loop, with all the jobs in it."""
    others = aio.app.enqueue_many(aio.ticks.map([100] * 5))
    work = workers.start(APP, "-w", "1", "--concurrency", "10")
    wait_for(lines("tick"))
    forking = aio.forks.enqueue(how)
    assert forking.result(timeout=60) == "parent"
    wait_for(lambda: {job.status() for job in others} == {"succeeded"}, 60, f"the others\n{work.log()}")
    assert max(Counter(lines("tick")()).values()) == 1
    assert len(lines("tick")()) == 500
    assert db.execute("SELECT count(*) FROM pgqueue.attempts").fetchone() == (0,)


# -------------------------------------------------------------------------------------------------- beginning and end


def test_term_lets_running_jobs_end(db: Any, workers: Workers) -> None:
    jobs = aio.app.enqueue_many(aio.wait.map([1.0] * 5))
    waiting = aio.app.enqueue_many(aio.wait.map([60] * 20))
    work = workers.start(APP, "-w", "1", "--concurrency", "5")
    wait_for(lambda: len(lines("wait")()) == 5)
    work.signal(signal.SIGTERM)
    assert work.wait() == 0, work.log()
    assert {job.status() for job in jobs} == {"succeeded"}
    assert {job.status() for job in waiting} == {"ready"}
    assert db.execute("SELECT count(*) FROM pgqueue.attempts").fetchone() == (0,)
    assert violations(db) == []


def test_a_worker_with_async_jobs_only(db: Any, workers: Workers) -> None:
    run(db, loop_only.app.registration())
    jobs = loop_only.app.enqueue_many(loop_only.nap.map([0.01] * 20))
    workers.burst("tests.apps.loop_only:app", "-w", "1")
    assert [job.result(timeout=1) for job in jobs] == ["awake"] * 20
    slow = loop_only.nap.enqueue(1.0)
    count = len(lines("nap")())
    work = workers.start("tests.apps.loop_only:app", "-w", "1")
    wait_for(lambda: len(lines("nap")()) > count)
    work.signal(signal.SIGTERM)
    assert work.wait() == 0, work.log()
    assert slow.result(timeout=1) == "awake"


def test_the_deadline_gives_jobs_back_without_an_attempt(db: Any, workers: Workers) -> None:
    jobs = aio.app.enqueue_many(aio.wait.map([600] * 5))
    work = workers.start(APP, "-w", "1", "--concurrency", "5", "--drain-timeout", "0.5s")
    wait_for(lambda: len(lines("wait")()) == 5)
    work.signal(signal.SIGTERM)
    assert work.wait() == 75, work.log()
    assert {job.status() for job in jobs} == {"ready"}
    assert db.execute("SELECT count(*) FROM pgqueue.attempts").fetchone() == (0,)


def test_hooks_are_called_in_every_worker(db: Any, workers: Workers) -> None:
    aio.app.enqueue_many(aio.wait.map([0.01] * 5))
    workers.burst(APP, "-w", "2")
    hooks = [line for line in bank.outside() if not line.startswith("wait")]
    assert Counter(hooks) == {"async start": 2, "start": 2, "stop": 2, "async stop": 2}
    assert bank.outside()[0] == "async start"
    assert bank.outside()[-1] == "async stop"


def test_a_worker_whose_start_fails_says_so_and_runs_nothing(db: Any, workers: Workers) -> None:
    job = aio.wait.enqueue(0)
    work = workers.start(APP, "-w", "1", env={"BANK_START": "fail"})
    wait_for(lambda: "no pool to be had" in work.log(), what=f"the log\n{work.log()}")
    assert "a worker_start hook failed: this worker ends" in work.log()
    assert job.status() == "ready"
    assert lines("wait")() == []
    work.signal(signal.SIGTERM)
    work.wait()
