"""Supervisor, housekeeper and workers as processes: signals, deaths, drains, and who outlives whom."""

from __future__ import annotations

import os
import signal
import socket
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from chaos.processes import state
from pgqueue import JobFailed, protocol
from pgqueue.config import WorkSettings
from pgqueue.database import run
from pgqueue.descriptors import readable
from pgqueue.housekeeper import recovery
from pgqueue.housekeeper.housekeeper import LOOK_FOR_HOSTAGES, Housekeeper
from pgqueue.housekeeper.idle import Idle
from pgqueue.ids import digest, new_token
from pgqueue.model import Settlement
from pgqueue.slots import Phase, Slots
from pgqueue.supervisor.child import pipe
from tests.apps import bank
from tests.support import Hand, Server, Work, Workers, kill, states, stopped, violations, wait_for, worker_pids

pytestmark = pytest.mark.usefixtures("bank_db")


def started(bank_file: Path, line: str) -> Callable[[], bool]:
    return lambda: bank_file.exists() and line in bank_file.read_text()


def housekeeper_pid(conn: psycopg.Connection[Any], work: Work) -> int:
    [pid] = set(work.children()) - set(worker_pids(conn, work))
    return pid


def ready(conn: psycopg.Connection[Any], work: Work, count: int) -> list[int]:
    return wait_for(
        lambda: (pids := worker_pids(conn, work)) and len(pids) == count and pids, what=f"{count} workers\n{work.log()}"
    )


def alive(pid: int) -> bool:
    return state(pid) not in "ZX"


def attempts(conn: psycopg.Connection[Any]) -> list[tuple[str, ...]]:
    return conn.execute("SELECT kind FROM pgqueue.attempts").fetchall()


@pytest.mark.parametrize("how", ["main", "group", "twice"])
def test_term_lets_running_jobs_end(bank_db: psycopg.Connection[Any], workers: Workers, bank_file: Path, how: str) -> None:
    job = bank.slow.enqueue(1.0)
    waiting = bank.app.enqueue_many(bank.slow.map([60.0] * 3))
    work = workers.start("tests.apps.bank:app", "-w", "1")
    wait_for(started(bank_file, "nap"))
    if how == "group":
        os.killpg(work.pid, signal.SIGTERM)
        for pid in work.children():
            kill(pid, signal.SIGTERM)  # each leads a group of its own; a service manager signals them all
    else:
        work.signal(signal.SIGTERM)
    if how == "twice":
        work.signal(signal.SIGTERM)
    assert work.wait() == 0, work.log()
    assert job.result(timeout=1) == "awake"
    assert {w.status() for w in waiting} == {"ready"}
    assert attempts(bank_db) == []
    assert bank_db.execute("SELECT count(*) FROM pgqueue.workers").fetchone() == (0,)
    assert violations(bank_db) == []


def test_the_deadline_gives_jobs_back_without_an_attempt(
    bank_db: psycopg.Connection[Any], workers: Workers, bank_file: Path
) -> None:
    jobs = bank.app.enqueue_many([bank.slow.call(600), bank.slow_credit.call(1, 5, 600), bank.slow.call(600)])
    work = workers.start("tests.apps.bank:app", "-w", "2", "--drain-timeout", "0.5s")
    wait_for(started(bank_file, "nap"))
    wait_for(started(bank_file, "in transaction"))
    work.signal(signal.SIGTERM)
    assert work.wait() == 75, work.log()
    assert {job.status() for job in jobs} == {"ready"}
    assert attempts(bank_db) == []
    assert bank_db.execute("SELECT balance FROM account WHERE id = 1").fetchone() == (0,)
    assert violations(bank_db) == []


def test_what_cannot_be_given_back_is_not_said_to_be(
    bank_db: psycopg.Connection[Any], server: Server, workers: Workers, bank_file: Path
) -> None:
    bank.slow.enqueue(600)
    work = workers.start("tests.apps.bank:app", "-w", "1", "--drain-timeout", "0.5s")
    wait_for(started(bank_file, "nap"))
    with psycopg.connect(server.dsn, autocommit=True) as other:
        allow = sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}")
        name = sql.Identifier(bank_db.info.dbname)
        other.execute(allow.format(name, sql.SQL("false")))
        try:
            mine = bank_db.info.backend_pid
            other.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s AND pid <> %s",
                (bank_db.info.dbname, mine),
            )
            work.signal(signal.SIGTERM)
            assert work.wait() == 75, work.log()
        finally:
            other.execute(allow.format(name, sql.SQL("true")))
    assert "what 1 worker held could not be given back: others do that when the lease is over" in work.log()
    assert "jobs are given back" not in work.log()
    assert states(bank_db) == {"running": 1}


def test_quit_and_the_second_interrupt_stop_now(bank_db: psycopg.Connection[Any], workers: Workers, bank_file: Path) -> None:
    job = bank.slow.enqueue(600)
    for stop in ("quit", "interrupts"):
        bank_file.unlink(missing_ok=True)
        work = workers.start("tests.apps.bank:app", "-w", "1")
        wait_for(started(bank_file, "nap"))
        if stop == "quit":
            work.signal(signal.SIGQUIT)
        else:
            work.signal(signal.SIGINT)
            work.signal(signal.SIGINT)  # within a second: the same Ctrl-C
            wait_for(lambda work=work: "draining" in work.log())
            assert work.process.poll() is None
            timer = threading.Timer(1.2, work.signal, (signal.SIGINT,))
            timer.start()
        assert work.wait() == 75, work.log()
        assert job.status() == "ready"
    assert attempts(bank_db) == []


def test_term_while_starting(workers: Workers, bank_db: psycopg.Connection[Any]) -> None:
    work = workers.start("tests.apps.bank:app", "-w", "4")
    wait_for(work.children)
    work.signal(signal.SIGTERM)
    assert work.wait() in (0, -signal.SIGTERM)
    assert bank_db.execute("SELECT count(*) FROM pgqueue.running").fetchone() == (0,)


def test_nothing_outlives_a_killed_supervisor(bank_db: psycopg.Connection[Any], workers: Workers, bank_file: Path) -> None:
    """Workers die, the housekeeper gives their jobs back at once and leaves. Nobody waits for a lease."""
    job = bank.slow.enqueue(600)
    work = workers.start("tests.apps.bank:app", "-w", "3", "--lease", "600s")
    wait_for(started(bank_file, "nap"))
    children = work.children()
    assert len(children) == 4
    kill(work.pid)
    wait_for(lambda: not any(map(alive, children)), 30, "all children to be gone")
    assert job.status() == "ready"
    assert attempts(bank_db) == []
    assert bank_db.execute("SELECT count(*) FROM pgqueue.workers").fetchone() == (0,)


def test_all_killed_at_once_recovers_at_the_next_start_without_waiting_for_the_lease(
    bank_db: psycopg.Connection[Any], workers: Workers, bank_file: Path
) -> None:
    job = bank.slow.enqueue(1.0)
    work = workers.start("tests.apps.bank:app", "-w", "1", "--lease", "600s")
    wait_for(started(bank_file, "nap"))
    for pid in [work.pid, *work.children()]:
        kill(pid, signal.SIGSTOP)
    for pid in [*work.children(), work.pid]:
        kill(pid)
    work.wait()
    assert job.status() == "running"
    workers.burst("tests.apps.bank:app", "--lease", "600s")
    assert job.result(timeout=1) == "awake"


def test_a_silent_host_loses_its_jobs_after_the_lease(
    bank_db: psycopg.Connection[Any], workers: Workers, bank_file: Path
) -> None:
    job = bank.slow.enqueue(1.0)
    dead = workers.start("tests.apps.bank:app", "-w", "1", "--lease", "1s")
    wait_for(started(bank_file, "nap"))
    for pid in [dead.pid, *dead.children()]:
        kill(pid, signal.SIGSTOP)
    workers.start("tests.apps.bank:app", "-w", "1", "--lease", "1s")
    assert job.result(timeout=30) == "awake"
    assert [kind for (kind,) in attempts(bank_db)] == ["crash"], "it was alone in its worker, so it may have been the reason"


def test_a_killed_housekeeper_is_replaced(bank_db: psycopg.Connection[Any], workers: Workers, bank_file: Path) -> None:
    work = workers.start("tests.apps.bank:app", "-w", "2", "--lease", "2s")
    pids = ready(bank_db, work, 2)
    first = housekeeper_pid(bank_db, work)
    kill(first)
    wait_for(lambda: first not in work.children() and len(work.children()) == 3, what="another housekeeper")
    second = housekeeper_pid(bank_db, work)
    assert worker_pids(bank_db, work) == pids, "the workers did not notice"
    job = bank.deposit.options(delay=0.2).enqueue(1, 1)  # only a housekeeper moves it
    assert job.result(timeout=30) == "told 1"
    # a death while there is no housekeeper is not forgotten either
    slow = bank.slow.enqueue(1.0)
    wait_for(started(bank_file, "nap"))
    [victim] = bank_db.execute("SELECT pid FROM pgqueue.workers WHERE jobs > 0").fetchone() or []
    kill(second, signal.SIGSTOP)
    kill(victim)
    kill(second)
    assert slow.result(timeout=30) == "awake"


def test_a_poison_job_stops_and_blames_nobody_else(bank_db: psycopg.Connection[Any], workers: Workers) -> None:
    poison = bank.suicidal.enqueue()
    others = bank.app.enqueue_many([bank.deposit.call(i % 20 + 1, i) for i in range(200)])
    workers.burst("tests.apps.bank:app", "-w", "2")
    with pytest.raises(JobFailed, match=r"died 3 times.*SIGKILL"):
        poison.result(timeout=1)
    assert [a.kind for a in poison.attempts()] == ["crash"] * 3
    assert {job.status() for job in others} == {"succeeded"}
    blamed = bank_db.execute("SELECT DISTINCT job_id::text FROM pgqueue.attempts").fetchall()
    assert blamed == [(poison.id,)]
    assert poison.requeue(), "and it may try again, with a fresh count"
    assert poison.status() == "ready"


def test_a_jobs_own_children_die_with_their_worker(bank_db: psycopg.Connection[Any], workers: Workers, bank_file: Path) -> None:
    bank.starts_a_child.enqueue(600)
    work = workers.start("tests.apps.bank:app", "-w", "1")
    wait_for(started(bank_file, "child "))
    child = int(bank_file.read_text().split("child ")[1].split()[0])
    assert alive(child)
    work.signal(signal.SIGQUIT)
    work.wait()
    wait_for(lambda: not alive(child), 10, "the job's child to die")


def test_unknown_names_wait_for_a_worker_that_knows_them(bank_db: psycopg.Connection[Any], workers: Workers) -> None:
    """Also where the one who knows was up before the one who does not put it aside."""
    conn = bank_db
    ids = run(conn, protocol.enqueue_workflows('[{"name": "tomorrow", "queue": "default"}, {"name": "tests.apps.bank.noop"}]'))
    workers.burst()
    assert states(conn) == {"waiting": 1, "succeeded": 1}
    row = conn.execute("SELECT waiting_for, waiting_key FROM pgqueue.jobs WHERE id = %s", (ids[0],)).fetchone()
    assert row == ("name", "tomorrow")
    hand = Hand(bank.app, os.environ["PGQUEUE_DSN"])
    token = new_token()
    claim = protocol.claim(hand.id, token, ["default"], ["tomorrow"], 10, [0] * 20)
    assert [job.name for job, _ in run(conn, claim)] == ["tomorrow"]
    assert violations(conn) == []
    hand.close()


def test_a_claim_whose_reply_was_lost_is_given_back(bank_db: psycopg.Connection[Any], workers: Workers) -> None:
    """The claim committed, and the worker never heard: it lives on, so no lease and no death would ever free the job."""
    work = workers.start("tests.apps.bank:app", "-w", "1", "--lease", "1s")
    ready(bank_db, work, 1)
    worker = bank_db.execute("SELECT id::text FROM pgqueue.workers").fetchone()
    assert worker is not None
    bank_db.execute("UPDATE pgqueue.queue SET paused = true")
    job = bank.noop.enqueue()
    with bank_db.transaction():  # nobody else can see the job before we have it
        bank_db.execute("UPDATE pgqueue.queue SET paused = false")
        assert run(bank_db, protocol.claim(worker[0], new_token(), ["default"], list(bank.app.functions), 10, [0] * 20))
    wait_for(lambda: job.status() == "succeeded", 30, f"the lost claim to be given back\n{work.log()}")
    assert attempts(bank_db) == []


def test_what_is_settled_while_the_housekeeper_looks_is_not_called_a_lost_reply(
    bank_db: psycopg.Connection[Any], dsn: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is in the table, and then neither there nor in the worker's memory. Nothing was lost, and the log does not say so."""
    hand, slot = Hand(bank.app, dsn), Slots(1)[0]
    slot.assign(hand.id)
    slot.set_registered()
    bank.noop.enqueue()
    (job,) = hand.claim()
    monkeypatch.setattr(recovery, "failpoint", lambda _: hand.settle(Settlement(job, "succeeded", "null")))
    recovery.release_unknown(bank_db, [slot])
    assert states(bank_db) == {"succeeded": 1}
    assert caplog.records == []

    monkeypatch.undo()
    bank.noop.enqueue()
    hand.claim()
    recovery.release_unknown(bank_db, [slot])
    assert states(bank_db) == {"succeeded": 1, "ready": 1}
    assert [record.message for record in caplog.records] == [
        "1 claims are not known to their workers (a reply was lost): given back"
    ]
    hand.close()


def test_no_connection_crosses_a_fork(bank_db: psycopg.Connection[Any], workers: Workers) -> None:
    work = workers.start("tests.apps.bank:app", "-w", "2")
    pids = [work.pid, *ready(bank_db, work, 2), housekeeper_pid(bank_db, work)]
    bank.app.enqueue_many(bank.slow.map([0.2] * 4))
    wait_for(lambda: states(bank_db) == {"succeeded": 4}, 30)
    sockets = {pid: server_sockets(pid) for pid in pids}
    assert sockets[work.pid] == set(), "the supervisor has no connection"
    seen: set[str] = set()
    for pid in pids[1:]:
        assert not sockets[pid] & seen, "a connection belongs to one process"
        seen |= sockets[pid]
    assert os.listdir(f"/proc/{work.pid}/task") == [str(work.pid)], "the supervisor has no threads"


def server_sockets(pid: int) -> set[str]:
    """Connected stream sockets of a process (the pair to the housekeeper is a packet socket)."""
    ours = {line.split()[6] for line in Path("/proc/net/unix").read_text().splitlines()[1:] if line.split()[4] == "0001"}
    ours |= {line.split()[9] for line in Path("/proc/net/tcp").read_text().splitlines()[1:]}
    found = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = os.readlink(descriptor)
        except FileNotFoundError:
            continue
        if target.startswith("socket:[") and target[8:-1] in ours:
            found.add(target[8:-1])
    return found


def test_idle_workers_are_woken(bank_db: psycopg.Connection[Any], workers: Workers) -> None:
    work = workers.start("tests.apps.bank:app", "-w", "2")
    ready(bank_db, work, 2)
    for _ in range(5):
        assert bank.deposit.enqueue(1, 1).result(timeout=10) == "told 1"


def test_everything_ends_also_without_notifications(bank_db: psycopg.Connection[Any], workers: Workers) -> None:
    bank_db.execute("CREATE OR REPLACE FUNCTION pgqueue.wake_idle() RETURNS void LANGUAGE sql AS $$ $$")
    work = workers.start("tests.apps.bank:app", "-w", "2")
    ready(bank_db, work, 2)
    for _ in range(3):
        assert bank.deposit.enqueue(1, 1).result(timeout=10) == "told 1"


def test_sessions_are_replaced_when_they_are_terminated(bank_db: psycopg.Connection[Any], workers: Workers) -> None:
    bank.app.enqueue_many([bank.deposit.call(i % 20 + 1, i) for i in range(600)])
    work = workers.start("tests.apps.bank:app", "-w", "2", "--lease", "2s")
    for goal in range(0, 600, 15):  # one session of whatever kind, again and again, with some progress in between

        def progress(goal: int = goal) -> bool:
            return states(bank_db).get("succeeded", 0) >= goal

        wait_for(progress, 60, f"progress\n{work.log()}")
        bank_db.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
            "AND pid <> pg_backend_pid() AND application_name LIKE 'pgqueue:%' AND application_name <> 'pgqueue:client' "
            "ORDER BY random() LIMIT 1"
        )
    wait_for(lambda: states(bank_db) == {"succeeded": 600}, 60, f"the end\n{work.log()}")
    assert violations(bank_db) == []
    assert bank_db.execute("SELECT * FROM pgqueue.attempts").fetchall() == [], (
        "a lost connection is neither an attempt nor a crash"
    )
    unequal = bank_db.execute("SELECT count(*), count(DISTINCT step_key) FROM effect").fetchone()
    assert unequal == (1200, 1200)


def test_a_stopped_worker_is_killed_when_its_lease_is_taken(
    bank_db: psycopg.Connection[Any], workers: Workers, bank_file: Path
) -> None:
    work = workers.start("tests.apps.bank:app", "-w", "1", "--lease", "2s")
    [pid] = ready(bank_db, work, 1)
    wait_for(lambda: bank_db.execute("SELECT max(beat) > 0 FROM pgqueue.worker").fetchone() == (True,), 30, "a heartbeat for it")
    kill(pid, signal.SIGSTOP)
    wait_for(lambda: stopped(pid))
    worker = bank_db.execute("SELECT id::text FROM pgqueue.workers").fetchone()
    assert worker is not None
    assert run(bank_db, protocol.fence_worker(worker[0], None, "by the test"))
    wait_for(lambda: not alive(pid), 30, f"the fenced worker to be killed\n{work.log()}")
    assert bank.deposit.enqueue(1, 1).result(timeout=30) == "told 1"


def test_what_was_finished_is_not_run_again_when_a_neighbour_crashes(
    bank_db: psycopg.Connection[Any], workers: Workers, bank_file: Path
) -> None:
    """Twenty jobs and one that kills its worker, in one claim. Their results were not settled yet when it died."""
    tellers = bank.app.enqueue_many(bank.notify.map(range(20)))
    warm = bank.app.enqueue_many([bank.noop.call()] * 2000)  # so that the worker claims many at once
    bank_db.execute("UPDATE pgqueue.ready SET pos = pos + 10000 WHERE job_id = ANY (%s::uuid[])", ([job.id for job in tellers],))
    bank_db.execute("ALTER SEQUENCE pgqueue.position RESTART WITH 20000")
    poison = bank.suicidal.enqueue()
    bank_db.execute("UPDATE pgqueue.ready SET lane = 11, queue = 'default'")
    workers.burst("tests.apps.bank:app", "-w", "1")
    assert {job.status() for job in [*tellers, *warm]} == {"succeeded"}
    assert poison.status() == "failed"
    assert sorted(bank_file.read_text().split()) == sorted(f"{job.id}:0" for job in tellers), "each ran once"
    assert {row[0] for row in bank_db.execute("SELECT job_id::text FROM pgqueue.attempts")} == {poison.id}


def test_no_queue_starves_another(bank_db: psycopg.Connection[Any], workers: Workers) -> None:
    bank.app.enqueue_many([bank.noop.call()] * 3000)
    bank.app.enqueue_many([bank.deposit.call(1, 1)] * 10)  # in another queue, behind them
    workers.burst("tests.apps.bank:app", "-w", "1")
    rank = bank_db.execute("""SELECT max(n) FROM (
        SELECT queue, row_number() OVER (ORDER BY finished_at) AS n FROM pgqueue.jobs) x WHERE queue = 'payments'""").fetchone()
    assert rank is not None
    assert rank[0] < 2500, "a queue waits for its turn, not for the end of the others"


def test_quit_while_idle_is_a_clean_end(bank_db: psycopg.Connection[Any], workers: Workers) -> None:
    work = workers.start("tests.apps.bank:app", "-w", "2")
    ready(bank_db, work, 2)
    work.signal(signal.SIGQUIT)
    assert work.wait() == 0, work.log()


@pytest.mark.parametrize("size", [10, 1000])
def test_a_job_that_kills_its_process_just_after_returning_does_not_loop(
    bank_db: psycopg.Connection[Any], workers: Workers, bank_file: Path, size: int
) -> None:
    """Its small result outlives the worker. A large one does not, but then the job is charged with the crash."""
    job = bank.dies_late.enqueue("x" * size)
    work = workers.start("tests.apps.bank:app", "-w", "1", env={"PGQUEUE_FAILPOINTS": "settle.before=kill9"})
    wait_for(lambda: job.status() in ("succeeded", "failed"), 60, work.log())
    assert job.status() == ("succeeded" if size < 100 else "failed")
    assert bank_file.read_text().count("late") == (1 if size < 100 else 3)


@pytest.mark.parametrize("how", ["exit", "raise", "return"])
def test_a_forked_child_does_not_become_a_second_worker(bank_db: psycopg.Connection[Any], workers: Workers, how: str) -> None:
    jobs = [bank.forks.enqueue(how), bank.forks_in_transaction.enqueue(1), bank.deposit.enqueue(2, 5)]
    workers.burst("tests.apps.bank:app", "-w", "1")
    assert [job.result(timeout=1) for job in jobs] == ["parent", "parent", "told 2"]
    assert bank_db.execute("SELECT balance FROM account WHERE id = 1").fetchone() == (1,)
    assert attempts(bank_db) == []


def test_an_interrupt_right_after_a_term_is_part_of_it(
    bank_db: psycopg.Connection[Any], workers: Workers, bank_file: Path
) -> None:
    job = bank.slow.enqueue(1.0)
    work = workers.start("tests.apps.bank:app", "-w", "1")
    wait_for(started(bank_file, "nap"))
    work.signal(signal.SIGTERM)
    wait_for(lambda: "draining" in work.log())
    work.signal(signal.SIGINT)
    assert work.wait() == 0, work.log()
    assert job.result(timeout=1) == "awake"


@pytest.mark.parametrize("blocks", ["hog", "nap"])
def test_no_hostages(bank_db: psycopg.Connection[Any], workers: Workers, bank_file: Path, blocks: str) -> None:
    """Jobs claimed behind a long one go elsewhere, also where that one lets no other thread of its worker run. Each runs once."""
    workers.start("tests.apps.bank:app", "-w", "2")
    bank.app.enqueue_many([bank.noop.call()] * 2000)  # now the workers know that jobs are short, and hold many
    wait_for(lambda: states(bank_db) == {"succeeded": 2000})
    long = bank.hog if blocks == "hog" else bank.nap
    jobs = bank.app.enqueue_many([*[bank.noop.call()] * 20, long.call(30.0), *[bank.notify.call(i) for i in range(100)]])
    others = jobs[:20] + jobs[21:]
    wait_for(lambda: {job.status() for job in others} == {"succeeded"}, 25, "those that ended before it, and those behind it")
    assert jobs[20].status() == "running"
    told = [line for line in bank_file.read_text().splitlines() if line.endswith(":0") and "nap" not in line]
    assert len(told) == len(set(told)) == 100


@pytest.mark.parametrize(("overdue", "kind"), [(None, "crash"), (0, "timeout"), (2, "timeout")])
def test_whoever_reaps_first_charges_what_had_begun(
    bank_db: psycopg.Connection[Any], dsn: str, overdue: int | None, kind: str
) -> None:
    """One host's housekeeper fences its dead worker, and another host's reaps it: that one did not see the death, nor whether it
    was because of a time limit."""
    jobs = bank.app.enqueue_many([bank.noop.call(), bank.noop.call()])
    hand = Hand(bank.app, dsn)
    begun = hand.claim()[0]
    assert run(bank_db, protocol.fence_worker(hand.id, None, "killed by SIGSEGV", [begun.id], overdue))
    recovery.reap_lapsed(bank_db)
    charges = {job.id: [(a.kind, (a.error or {}).get("message"), a.seq) for a in job.attempts()] for job in jobs}
    assert charges == {job.id: [(kind, "killed by SIGSEGV", overdue or None)] if job.id == begun.id else [] for job in jobs}
    hand.close()


def test_released_jobs_wake_an_idle_worker(bank_db: psycopg.Connection[Any], dsn: str) -> None:
    """A job given back from behind a long one is for whoever is idle: it does not wait until somebody looks again."""
    hand = Hand(bank.app, dsn)
    bank.noop.enqueue()
    (job,) = hand.claim()
    bank_db.execute("LISTEN pgqueue")
    run(bank_db, protocol.listen_idle(60))
    assert hand.settle(Settlement(job, "release")) == {}
    assert len(list(bank_db.notifies(timeout=60, stop_after=1))) == 1
    hand.close()


def test_a_claim_that_its_worker_does_not_come_to_read_is_taken_back(bank_db: psycopg.Connection[Any], dsn: str) -> None:
    """It is answered, and a job that lets no other thread run keeps the worker from the answer. Later the worker does read it."""
    hand, slot = Hand(bank.app, dsn), Slots(1)[0]
    slot.assign(hand.id)
    job = bank.noop.enqueue()
    (claimed,) = hand.claim()
    slot.announce(claimed.token)
    recovery.revoke(bank_db, slot, claimed.token)
    assert job.status() == "ready"
    assert slot.is_revoked(claimed.token)  # what the worker sees when it comes: none of them may begin
    (again,) = hand.claim()
    slot.announce(0)
    recovery.revoke(bank_db, slot, again.token)  # it has just read this one
    assert job.status() == "running"
    hand.close()


def test_who_is_idle_may_have_jobs_in_hand_all_the_same(bank_db: psycopg.Connection[Any], dsn: str) -> None:
    """A worker is idle when there is nothing to claim, whatever it runs, and also when it stands still in a claim. What it keeps
    from others is looked for as often as where all are busy."""
    slots = Slots(2)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        housekeeper = Housekeeper(WorkSettings("tests.apps.bank:app"), dsn, ["default"], slots, [], theirs, 0)
        for slot in slots:
            slot.assign(str(uuid.uuid4()))
            slot.phase = Phase.IDLE
        assert housekeeper._free_hostages(bank_db) == 1.0
        slots[0].hold(3, 7)
        slots[0].begin(3)
        assert housekeeper._free_hostages(bank_db) == LOOK_FOR_HOSTAGES
        slots[0].forget(3)
        slots[1].announce(5)
        assert housekeeper._free_hostages(bank_db) == LOOK_FOR_HOSTAGES


def test_one_is_woken_and_in_a_moment_the_others() -> None:
    """So that nobody is in the way of who takes the one job. Where there has been another reason meanwhile, all are."""
    slots, wakes = Slots(3), [pipe() for _ in range(3)]
    idle = Idle(slots, [write for _, write in wakes])

    def woken() -> int:
        return sum(bool(readable([read], 0)) and os.read(read, 10) == b"." for read, _ in wakes)

    assert not idle.wake_one()
    for slot in slots:
        slot.assign(str(uuid.uuid4()))
        slot.phase = Phase.IDLE
    for _ in range(3):
        assert idle.wake_one()
        assert woken() == 1
        idle.wake_others()
        assert woken() == 2
    idle.wake_one()
    idle.wake_one()
    assert woken() == 2
    idle.wake_others()
    assert woken() == 3
    for ends in wakes:
        for end in ends:
            os.close(end)


def test_a_worker_that_stopped_in_the_middle_of_a_message_loses_that_session(bank_db: psycopg.Connection[Any], dsn: str) -> None:
    """Its results are in memory, and its own open transaction holds their claims: the housekeeper settles nevertheless."""
    hand, slot = Hand(bank.app, dsn), Slots(1)[0]
    slot.assign(hand.id)
    job = bank.noop.enqueue()
    (claimed,) = hand.claim()
    slot.hold(0, digest(claimed.id, claimed.token))
    slot.begin(0)
    slot.keep(0, b"null", 0)
    slot.end(0)
    assert run(bank_db, protocol.end_stalled(hand.id)) is False  # it is idle: left alone
    settle = protocol.settle([Settlement(claimed, "succeeded", "null")])
    hand.conn.pgconn.enter_pipeline_mode()
    hand.conn.pgconn.send_query_params(
        settle.sql.replace("%s", "${}").format(*range(1, 7)).encode(),
        [None if value is None else str(value).encode() for value in settle.params],
    )
    hand.conn.pgconn.send_flush_request()
    wait_for(lambda: hand.conn.pgconn.flush() == 0)
    wait_for(lambda: in_the_middle(bank_db, hand.id))

    def settled() -> bool:
        recovery.settle_kept(bank_db, hand.id, slot.kept())
        return job.status() == "succeeded"

    wait_for(settled)
    hand.conn.close()
    hand.conn = psycopg.connect(dsn)
    hand.close()


def in_the_middle(conn: psycopg.Connection[Any], worker: str) -> bool:
    """(Without a look at the row: that would lock it, and the settlement would skip it.)"""
    look = "SELECT FROM pg_stat_activity WHERE application_name = %s AND state = 'active' AND wait_event = 'ClientRead'"
    return bool(conn.execute(look, (f"pgqueue:{worker}:claims",)).fetchall())


def test_a_worker_that_dies_together_with_the_housekeeper_is_charged_for_what_it_ran(
    bank_db: psycopg.Connection[Any], workers: Workers
) -> None:
    """The new housekeeper finds that a process is gone, and its supervisor knows what that was running: that is what counts."""
    jobs = bank.app.enqueue_many(bank.nap.map([600, 600]))
    work = workers.start("tests.apps.bank:app", "-w", "1", "--threads", "2")
    wait_for(lambda: states(bank_db) == {"running": 2}, what=f"the jobs to run\n{work.log()}")
    [worker], keeper = ready(bank_db, work, 1), housekeeper_pid(bank_db, work)
    kill(work.pid, signal.SIGSTOP)
    for pid in (keeper, worker):
        kill(pid)
    wait_for(lambda: not connected(bank_db), what="the server to notice")
    kill(work.pid, signal.SIGCONT)
    wait_for(lambda: all(job.attempts() for job in jobs), what=f"the jobs to be given back\n{work.log()}")
    work.signal(signal.SIGQUIT)
    work.wait()
    assert [[a.kind for a in job.attempts()] for job in jobs] == [["crash"]] * 2


@pytest.mark.parametrize("number", [signal.SIGABRT, signal.SIGSTOP])
def test_a_housekeeper_that_has_just_gone_is_replaced_for_the_last_deaths(
    bank_db: psycopg.Connection[Any], workers: Workers, number: signal.Signals
) -> None:
    """Also within the pause that one makes that died young, and where it stands still: the supervisor ends in peace, and does not
    say that jobs are left."""
    work = workers.start("tests.apps.bank:app", "-w", "1")
    ready(bank_db, work, 1)
    kill(work.pid, signal.SIGSTOP)
    kill(housekeeper_pid(bank_db, work), number)
    work.signal(signal.SIGQUIT)
    kill(work.pid, signal.SIGCONT)
    assert work.wait() == 0, work.log()


def connected(conn: psycopg.Connection[Any]) -> bool:
    sessions = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'pgqueue:%:%'"
    return conn.execute(sessions).fetchone() is not None


@pytest.mark.parametrize("kind", ["constraint", "trigger"])
def test_a_job_whose_end_cannot_be_stored_has_failed_and_holds_up_no_other(
    bank_db: psycopg.Connection[Any], workers: Workers, kind: str
) -> None:
    jobs = bank.app.enqueue_many([bank.noop.call()] * 100)
    bad = jobs[50]
    if kind == "constraint":
        bank_db.execute(
            sql.SQL("ALTER TABLE pgqueue.outcome ADD CHECK (job_id <> {} OR status = 'failed')").format(sql.Literal(bad.id))
        )
    else:
        bank_db.execute(
            sql.SQL(
                "CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
                " IF NEW.job_id = {} AND NEW.status <> 'failed' THEN RAISE EXCEPTION 'not this one'; END IF; RETURN NEW; END $$"
            ).format(sql.Literal(bad.id))
        )
        bank_db.execute("CREATE TRIGGER refuse BEFORE INSERT ON pgqueue.outcome FOR EACH ROW EXECUTE FUNCTION public.refuse()")
    work = workers.start("tests.apps.bank:app", "-w", "1")
    wait_for(lambda: states(bank_db) == {"succeeded": 99, "failed": 1}, 100, f"the end\n{work.log()}")
    with pytest.raises(JobFailed, match=r"BadValue: how it ended \(succeeded\) cannot be stored"):
        bad.result(timeout=1)
    assert violations(bank_db) == []
