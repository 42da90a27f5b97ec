"""Bugs that other queues had. docs/chaos/peers-bugs.md says for each which test of ours would fail if we had it; those that no
other test covers are here."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from pgqueue import App, Retry, gather, protocol
from pgqueue.database import run
from pgqueue.housekeeper import recovery
from pgqueue.model import Settlement
from tests.apps import bank
from tests.support import Hand, Workers, kill, wait_for


@pytest.fixture
def app(dsn: str) -> Any:
    app = App(dsn)
    yield app
    app.close()


def test_jobs_of_a_worker_whose_row_is_gone_are_found(dsn: str, conn: psycopg.Connection[Any], app: App) -> None:
    """procrastinate #1518: dead workers were deleted before anybody had looked for their jobs, and then nobody found them."""
    job = app.step(name="nothing")(lambda: None).enqueue()
    hand = Hand(app, dsn)
    hand.claim()
    conn.execute("DELETE FROM pgqueue.worker")
    recovery.reap_lapsed(conn)
    assert job.status() == "ready"
    hand.close()


def test_a_restart_under_the_same_name_does_not_hide_what_was_running(
    bank_db: psycopg.Connection[Any], workers: Workers, bank_file: Any
) -> None:
    """Oban #862, DBOS #804, procrastinate #1518: host and process are the same again, and heartbeats for the new one kept the
    old one's jobs from being found. Here a supervisor and all it has are killed at once, and started again."""
    job = bank.slow.enqueue(0.5)
    first = workers.start("tests.apps.bank:app", "-w", "1", "--lease", "5s")
    wait_for(lambda: job.status() == "running", what="the job to run")
    for pid in [first.pid, *first.children()]:
        kill(pid)
    first.wait()
    workers.start("tests.apps.bank:app", "-w", "1", "--lease", "5s")
    assert job.result(timeout=60) == "awake"


def test_a_full_batch_of_jobs_that_cannot_be_taken_back_hides_no_others(
    dsn: str, conn: psycopg.Connection[Any], app: App
) -> None:
    """River #1318: the rescuer looked at one batch, could do nothing with any of it, and never came to those behind."""
    nothing = app.step(name="nothing")(lambda: None)
    jobs = app.enqueue_many([nothing.call() for _ in range(520)])
    hand = Hand(app, dsn)
    held = hand.claim(1000)
    assert len(held) == 520
    first = sorted(job.id for job in held)[:500]
    with psycopg.connect(dsn) as holder:  # sessions of live steps, which nobody may take their job from
        holder.execute("SELECT 1 FROM pgqueue.running WHERE job_id = ANY (%s) FOR KEY SHARE", (first,))
        run(conn, protocol.fence_worker(hand.id, None, "it is dead"))
        given_back, _, still_held = run(conn, protocol.reap(hand.id, [], "lost", "it is dead"))
        assert (given_back, still_held) == (20, 500)
    assert run(conn, protocol.reap(hand.id, [], "lost", "it is dead"))[0] == 500
    assert {job.status() for job in jobs[:3]} == {"ready"}
    hand.close()


def test_a_second_recovery_with_an_old_list_runs_nothing(dsn: str, conn: psycopg.Connection[Any], app: App) -> None:
    """DBOS #742: two recoveries had read the same list. The first gave a job back to its queue; the second, which found that it
    could not, ran it nevertheless."""
    job = app.step(name="nothing")(lambda: None).enqueue()
    dead, alive = Hand(app, dsn), Hand(app, dsn)
    [held] = dead.claim()
    run(conn, protocol.fence_worker(dead.id, None, "it is dead"))
    assert run(conn, protocol.lapsed_workers()) == [(dead.id, "it is dead")]  # as both have read it
    assert run(conn, protocol.reap(dead.id, [], "lost", "it is dead"))[0] == 1
    [again] = alive.claim()
    assert run(conn, protocol.reap(dead.id, [], "lost", "it is dead")) == (0, 0, 0)
    assert dead.settle(Settlement(held, "succeeded", "1")) == {job.id: "lost"}
    assert alive.settle(Settlement(again, "succeeded", "2")) == {}
    assert job.result() == 2
    dead.close()
    alive.close()


def test_a_workflow_killed_between_two_tries_of_a_step_goes_on(dsn: str, conn: psycopg.Connection[Any], app: App) -> None:
    """DBOS #260, #740: recovered between two tries of a step, there was neither a result nor an error, or the number of the step
    had moved on."""
    tries: list[int] = []

    @app.step(name="flaky", retry=Retry(4, backoff=0.001))
    def flaky() -> str:
        tries.append(1)
        if len(tries) < 3:
            raise ConnectionError("not yet")
        return "done"

    @app.workflow(name="flow")
    def flow() -> list[str]:
        return [flaky(), flaky()]

    job = flow.enqueue()
    first = Hand(app, dsn)
    [claimed] = first.claim()
    settlement = first.run(claimed)
    assert settlement is not None
    assert first.settle(settlement) == {}  # waits for its second try, and its worker dies
    recovery.bury(conn, first.id, None, (), "killed")
    second = Hand(app, dsn)
    second.drain()
    assert job.result() == ["done", "done"]
    assert [(step.seq, step.name) for step in job.steps()] == [(1, "flaky"), (2, "flaky")]
    assert len(tries) == 4
    first.close()
    second.close()


def test_steps_at_once_replay_whatever_ended_first(dsn: str, conn: psycopg.Connection[Any], app: App) -> None:
    """Temporal sdk-python #1578: results of steps that ran at once came in another order in a replay, and what followed them got
    other numbers."""
    order = ["b", "a"]
    lost: list[str] = []

    @app.step(name="named")
    def named(what: str) -> str:
        wait_for(lambda: order[0] == what, what=f"the turn of {what}")  # b ends before a
        order.append(order.pop(0))
        return what

    @app.step(name="last")
    def last(what: list[str]) -> list[str]:
        if not lost:
            lost.append("the connection")
            conn.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND application_name LIKE 'pgqueue:%:step%'"
            )
        return what

    @app.workflow(name="flow")
    def flow() -> list[str]:
        return last(gather(named.call("a"), named.call("b")))

    job = flow.enqueue()
    hand = Hand(app, dsn)
    hand.drain()
    assert job.result() == ["a", "b"]
    assert [(step.seq, step.name) for step in job.steps()] == [(1, "named"), (2, "named"), (3, "last")]
    hand.close()


def test_an_empty_result_ends_its_step(dsn: str, app: App) -> None:
    """Hatchet #1334: a step that returned nothing, or an empty text, ran for ever."""

    @app.step(name="empty")
    def empty(what: Any) -> Any:
        return what

    @app.workflow(name="flow")
    def flow() -> list[Any]:
        return [empty(None), empty(""), empty([]), empty({}), empty(0), empty(False)]

    job = flow.enqueue()
    hand = Hand(app, dsn)
    hand.drain()
    assert job.result() == [None, "", [], {}, 0, False]
    hand.close()


def test_a_job_that_nobody_can_read_blocks_no_other(dsn: str, conn: psycopg.Connection[Any], app: App) -> None:
    """pg-boss #535, Hatchet #4494: one row with which a claim could do nothing made the whole claim fail, or vanished from the
    queue and kept its slot."""
    nothing = app.step(name="nothing")(lambda: "done")
    bad, good = app.enqueue_many([nothing.call(), nothing.call()])
    conn.execute("UPDATE pgqueue.job SET input = '{\"no such parameter\": ' || repeat('[', 3000) || repeat(']', 3000) || '}' "
                 "WHERE id = %s", (bad.id,))  # fmt: skip
    hand = Hand(app, dsn)
    hand.drain()
    assert good.result() == "done"
    assert bad.status() == "failed"
    assert conn.execute("SELECT count(*) FROM pgqueue.running").fetchone() == (0,)
    hand.close()


def test_a_long_job_is_not_given_to_a_second_worker_while_it_runs(
    bank_db: psycopg.Connection[Any], workers: Workers, bank_file: Any
) -> None:
    """Oban #1141, Celery #5935, pg-boss #529: what ran longer than some fixed time was run once more beside itself, and again.
    Here only its worker's heartbeat counts: the job takes several leases."""
    job = bank.slow.enqueue(4.0)
    for _ in range(2):
        workers.start("tests.apps.bank:app", "-w", "1", "--lease", "1s")
    assert job.result(timeout=60) == "awake"
    assert len(bank_file.read_text().splitlines()) == 1
    assert job.attempts() == []
