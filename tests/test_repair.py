"""What people do about jobs that went wrong: rerun as a new job, requeue and cancel in bulk, events by hand, and who did it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from typing import Any

import psycopg
import pytest

from pgqueue import App, AsyncJob, JobFailed, Retry, UnknownJob, current, gather, protocol, receive, sleep, wait_event
from pgqueue.database import run
from pgqueue.errors import BadValue, PgQueueError
from pgqueue.runtime.parallel import child_id
from tests.support import ROOT, Hand, states, violations
from tests.test_cli import pgqueue, refused


@pytest.fixture
def app(app: App, conn: psycopg.Connection[Any]) -> App:
    conn.execute("CREATE TABLE effect (what text)")
    return app


def one(conn: psycopg.Connection[Any], query: str) -> Any:
    row = conn.execute(query).fetchone()  # type: ignore[arg-type]
    assert row is not None
    return row[0]


def drain(worker: Hand) -> None:
    while worker.drain(due_now=False):
        pass


def prune_all(conn: psycopg.Connection[Any]) -> int:
    return run(conn, protocol.prune(["succeeded", "failed", "cancelled"], 0, 1000))


# ------------------------------------------------------------------------------------------------------------- rerun


@pytest.fixture
def flow(app: App) -> Any:
    """Four steps; the third fails as long as ``broken`` holds something."""
    broken: list[int] = [1]

    @app.step(name="step")
    def step(n: int) -> str:
        return f"{n} of {current().job_id[:8]}"

    @app.transaction(name="write")
    def write(tx: psycopg.Connection[Any]) -> None:
        tx.execute("INSERT INTO effect VALUES ('written')")

    @app.step(name="break", retry=Retry(1))
    def breaks() -> None:
        if broken:
            raise ValueError("not yet")

    @app.workflow(name="flow", retry=Retry(1))
    def flow(x: int) -> list[str]:
        first = step(1)
        write()
        breaks()
        return [first, step(x)]

    return flow, broken


def test_a_rerun_is_a_new_job_with_the_first_checkpoints_of_the_old_one(
    flow: Any, conn: psycopg.Connection[Any], hand: Any
) -> None:
    workflow, broken = flow
    options = {
        "priority": 2,
        "meta": {"tenant": "ann"},
        "key": "k",
        "timeout": "1h",
        "expires": "1h",
        "max_crashes": 7,
        "cost": 3,
    }
    job = workflow.options(**options).enqueue(9)
    worker = hand()
    worker.drain()
    assert job.status() == "failed"
    broken.clear()
    again = job.rerun(from_step=3)
    assert again != job
    assert job.status() == "failed", "it stays what it is"
    query = "SELECT name, version, queue, priority, input, key, cost, policy - 'deadline' FROM pgqueue.job WHERE id = '{}'"
    old = conn.execute(query.format(job.id)).fetchone()
    new = conn.execute(query.format(again.id)).fetchone()
    assert old is not None
    assert new is not None
    assert new[:-1] == old[:-1]
    assert old[-1].pop("expires_at")
    assert new[-1] == {**old[-1], "rerun_of": job.id}
    left = one(conn, f"SELECT (policy ->> 'deadline')::timestamptz - created_at FROM pgqueue.job WHERE id = '{again.id}'")
    assert left.total_seconds() == pytest.approx(3600, abs=0.01), "the time limit begins again"
    assert [s.seq for s in again.steps()] == [1, 2]
    worker.drain()
    assert again.result(timeout=5) == [f"1 of {job.id[:8]}", f"9 of {again.id[:8]}"]
    assert one(conn, "SELECT count(*) FROM effect") == 1, "the kept step did not run again"
    [_, attempt] = [a for a in job.attempts() if a.seq is None]
    assert (attempt.kind, attempt.error and attempt.error["job_id"], attempt.by) == ("rerun", again.id, None)
    assert violations(conn) == []


def test_a_rerun_from_the_start_and_of_a_rerun(flow: Any, conn: psycopg.Connection[Any], hand: Any) -> None:
    workflow, broken = flow
    broken.clear()
    job = workflow.enqueue(4)
    worker = hand()
    worker.drain()
    again = job.rerun()
    worker.drain()
    assert again.result(timeout=5) == [f"1 of {again.id[:8]}", f"4 of {again.id[:8]}"]
    third = again.rerun(from_step=5)
    worker.drain()
    assert third.result(timeout=5) == again.result(timeout=5), "all of it is kept"
    assert one(conn, "SELECT count(*) FROM effect") == 2
    assert one(conn, f"SELECT policy ->> 'rerun_of' FROM pgqueue.job WHERE id = '{third.id}'") == again.id


def test_a_kept_error_stays_an_error(flow: Any, hand: Any) -> None:
    workflow, broken = flow
    job = workflow.enqueue(4)
    worker = hand()
    worker.drain()
    broken.clear()
    again = job.rerun(from_step=4)
    worker.drain()
    with pytest.raises(JobFailed, match="not yet"):
        again.result(timeout=5)
    assert again.requeue()
    worker.drain()
    assert len(again.result(timeout=5)) == 2


def test_what_cannot_be_run_again_is_refused(flow: Any, app: App, conn: psycopg.Connection[Any], hand: Any) -> None:
    workflow, _ = flow
    job = workflow.enqueue(4)
    with pytest.raises(PgQueueError, match="is active: it has not ended"):
        job.rerun()
    hand().drain()
    for step in (0, -1, 5, 50_001):
        with pytest.raises(BadValue, match=r"cannot run again from step .* to step 4"):
            job.rerun(from_step=step)
    for wrong in (1.5, True, "2"):
        with pytest.raises(BadValue, match="the number of a step"):
            job.rerun(wrong)  # type: ignore[arg-type]
    with pytest.raises(UnknownJob, match="there is no job"):
        app.job("01920000-0000-7000-8000-000000000000").rerun()
    assert states(conn) == {"failed": 1}
    assert len(job.attempts()) == 2, "no attempt more"


def test_a_repeated_call_finds_the_same_job(flow: Any, conn: psycopg.Connection[Any], hand: Any) -> None:
    workflow, _ = flow
    job = workflow.enqueue(4)
    hand().drain()
    chosen = "0192aaaa-0000-7000-8000-000000000000"
    for _ in range(2):
        assert run(conn, protocol.rerun(job.id, 2, chosen, "ann")) == chosen
    assert states(conn) == {"failed": 1, "ready": 1}
    assert [(a.kind, a.by) for a in job.attempts() if a.kind == "rerun"] == [("rerun", "ann")]


def test_sql_needs_only_the_id(flow: Any, conn: psycopg.Connection[Any], hand: Any) -> None:
    workflow, _ = flow
    job = workflow.enqueue(4)
    worker = hand()
    worker.drain()
    again = one(conn, f"SELECT pgqueue.rerun('{job.id}')")
    assert one(conn, f"SELECT state FROM pgqueue.jobs WHERE id = '{again}'") == "ready"
    assert worker.drain() == 1


def test_async(flow: Any, app: App, hand: Any) -> None:
    workflow, broken = flow
    job = workflow.enqueue(4)
    worker = hand()
    worker.drain()
    broken.clear()

    async def rerun() -> AsyncJob[Any]:
        again = await app.async_job(job.id).rerun(from_step=3)
        await app.aclose()
        return again

    again = asyncio.run(rerun())
    assert isinstance(again, AsyncJob)
    worker.drain()
    assert app.job(again.id).status() == "succeeded"


# ---------------------------------------------------------------------------------------------- rerun and children


@pytest.fixture
def family(app: App) -> Any:
    """A workflow that makes children, in a gather with two steps, and then fails as long as ``broken`` holds something."""
    broken: list[int] = [1]

    @app.transaction(name="write")
    def write(tx: psycopg.Connection[Any], what: str) -> str:
        tx.execute("INSERT INTO effect VALUES (%s)", (what,))
        return what

    @app.workflow(name="child")
    def child(n: int) -> str:
        write(f"child {n}")
        if n == 13:
            sleep("1d")
        return f"{n} of {current().job_id[:8]}"

    @app.step(name="break", retry=Retry(1))
    def breaks() -> None:
        if broken:
            raise ValueError("not yet")

    @app.workflow(name="parent")
    def parent(first: int, amount: int) -> list[Any]:
        write("first")  # 1
        results = gather(*child.map(range(first, first + amount)), write.call("a"), write.call("b"))  # 2: start, 3, 4, 5: join
        breaks()  # 6
        return results

    return parent, broken


def effects(conn: psycopg.Connection[Any]) -> dict[str, int]:
    return dict(conn.execute("SELECT what, count(*) FROM effect GROUP BY what ORDER BY what").fetchall())


def test_the_ids_of_children_are_the_same_in_sql(conn: psycopg.Connection[Any]) -> None:
    parent = "0192aaaa-0000-7000-8000-00000000000a"
    for seq, ordinal in ((1, 0), (5, 9999), (50_000, 17)):
        assert one(conn, f"SELECT pgqueue.child_id('{parent}', {seq}, {ordinal})::text") == child_id(parent, seq, ordinal)


@pytest.mark.parametrize(
    ("step", "steps", "children"), [(7, 1, 1), (6, 1, 1), (5, 1, 1), (4, 1, 1), (3, 2, 1), (2, 2, 2), (1, 2, 2)]
)
def test_kept_children_are_those_of_the_old_job(
    family: Any, conn: psycopg.Connection[Any], hand: Any, step: int, steps: int, children: int
) -> None:
    """Wherever the cut is: what started before it is kept, and the results are those of the children that exist."""
    parent, broken = family
    job = parent.enqueue(0, 3)
    worker = hand()
    drain(worker)
    assert job.status() == "failed"
    broken.clear()
    again = job.rerun(from_step=step)
    drain(worker)
    if step == 7:  # the error is kept
        assert again.status() == "failed"
        assert again.requeue()
        drain(worker)
    lender = job if step > 2 else again
    kids = [f"{n} of {child_id(lender.id, 5, n)[:8]}" for n in range(3)]
    assert again.result(timeout=5) == [*kids, "a", "b"]
    assert effects(conn) == {
        "a": steps, "b": 1 + (step <= 4), "child 0": children, "child 1": children, "child 2": children, "first": 1 + (step == 1),
    }  # fmt: skip
    assert violations(conn) == []
    third = again.rerun(from_step=5)  # of a rerun: through it
    drain(worker)
    assert third.result(timeout=5) == [*kids, "a", "b"]


def test_kept_children_stay_as_long_as_they_are_needed(family: Any, conn: psycopg.Connection[Any], hand: Any) -> None:
    parent, broken = family
    job = parent.enqueue(0, 3)
    worker = hand()
    drain(worker)
    broken.clear()
    again = job.rerun(from_step=5)
    assert prune_all(conn) == 1, "only the old parent"
    assert prune_all(conn) == 0
    drain(worker)
    assert len(again.result(timeout=5)) == 5
    assert prune_all(conn) == 4
    assert one(conn, "SELECT count(*) FROM pgqueue.kept_children") == 0
    assert one(conn, "SELECT count(*) FROM pgqueue.job") == 0


@pytest.mark.parametrize("how", ["requeue", "rerun and requeue"])
def test_children_stay_as_long_as_their_parent_may_be_requeued(
    family: Any, conn: psycopg.Connection[Any], hand: Any, how: str
) -> None:
    """A failed parent is kept for longer than its succeeded children would be. Requeued, it gets their results as before."""
    parent, broken = family
    job = parent.enqueue(0, 3)
    worker = hand()
    drain(worker)
    if how != "requeue":
        old, job = job, job.rerun(from_step=6)
        drain(worker)
        conn.execute("UPDATE pgqueue.outcome SET status = 'succeeded' WHERE job_id = %s", (old.id,))  # it does not need them
        assert run(conn, protocol.prune(["succeeded"], 0, 100)) == 1
    assert job.status() == "failed"
    assert run(conn, protocol.prune(["succeeded", "cancelled"], 0, 100)) == 0
    broken.clear()
    assert job.requeue()
    drain(worker)
    assert len(job.result(timeout=5)) == 5
    assert set(effects(conn).values()) == {1}
    assert run(conn, protocol.prune(["succeeded"], 0, 100)) == 4


def test_children_that_are_gone_are_not_taken_for_nothing(family: Any, conn: psycopg.Connection[Any], hand: Any) -> None:
    parent, broken = family
    job = parent.enqueue(0, 3)
    worker = hand()
    drain(worker)
    broken.clear()
    conn.execute("CREATE TABLE kept AS SELECT * FROM pgqueue.job WHERE parent IS NOT NULL")
    for condition in ("true", "ordinal = 0", "ordinal = 1", "ordinal = 2"):
        conn.execute(f"DELETE FROM pgqueue.job WHERE parent IS NOT NULL AND {condition}")  # type: ignore[arg-type]
        for step in (3, 5, 6):
            with pytest.raises(PgQueueError, match=r"children that step 2 .* were pruned. Run it again from step 2"):
                job.rerun(from_step=step)
        conn.execute("INSERT INTO pgqueue.job SELECT * FROM kept ON CONFLICT DO NOTHING")
    conn.execute(
        "DELETE FROM pgqueue.job WHERE parent IS NOT NULL; DELETE FROM pgqueue.outcome o WHERE o.job_id IN (SELECT id FROM kept)"
    )
    again = job.rerun(from_step=2)
    drain(worker)
    assert len(again.result(timeout=5)) == 5


@pytest.mark.parametrize("ends", ["cancelled", "out of time", "cancelled at once"])
@pytest.mark.parametrize("child_has_ended", [True, False])
@pytest.mark.parametrize("how", ["requeue", "rerun"])
def test_children_that_ended_with_their_parent_come_back_with_it(
    family: Any, app: App, conn: psycopg.Connection[Any], hand: Any, ends: str, child_has_ended: bool, how: str
) -> None:
    parent, broken = family
    broken.clear()
    job = parent.options(timeout="1h").enqueue(12, 3)
    worker = hand()
    drain(worker)
    ids = {n: child_id(job.id, 5, n) for n in range(3)}
    assert [app.job(id).status() for id in (job.id, *ids.values())] == ["waiting", "succeeded", "scheduled", "succeeded"]
    if ends == "out of time":
        conn.execute('UPDATE pgqueue.job SET policy = policy || \'{"deadline": "2020-01-01T00:00:00Z"}\' WHERE parent IS NULL')
        conn.execute("UPDATE pgqueue.waiting SET until = '2020-01-01'")
        run(conn, protocol.wake(100))
        assert worker.claim() == []
        run(conn, protocol.wake(100))
    else:
        job.cancel(hard=ends == "cancelled at once")
        run(conn, protocol.cancel_waiting())
    if child_has_ended:
        run(conn, protocol.cancel_waiting())
    assert job.status() == ("failed" if ends == "out of time" else "cancelled")
    assert app.job(ids[1]).status() == ("cancelled" if child_has_ended or ends == "cancelled at once" else "scheduled")
    again = job.rerun(from_step=5) if how == "rerun" else job
    assert again is not job or job.requeue()
    drain(worker)
    assert (again.status(), app.job(ids[1]).status()) == ("waiting", "scheduled")
    worker.drain()
    worker.drain()
    assert again.result(timeout=5) == [*(f"{12 + n} of {ids[n][:8]}" for n in range(3)), "a", "b"]
    assert set(effects(conn).values()) == {1}
    assert one(conn, "SELECT count(*) FROM pgqueue.taken_along") + one(conn, "SELECT count(*) FROM pgqueue.cancel_request") == 0
    assert violations(conn) == []


def test_a_rerun_takes_the_children_along_that_it_has_kept_and_leaves_them_to_who_lives(
    family: Any, app: App, conn: psycopg.Connection[Any], hand: Any
) -> None:
    parent, broken = family
    broken.clear()
    job = parent.enqueue(12, 3)
    worker = hand()
    drain(worker)
    sleeper = app.job(child_id(job.id, 5, 1))

    def end(what: Any) -> None:
        assert what.cancel()
        for _ in range(3):
            run(conn, protocol.cancel_waiting())
        assert what.status() == "cancelled"

    end(job)
    assert sleeper.status() == "cancelled"
    again = job.rerun(from_step=5)
    drain(worker)
    assert sleeper.status() == "scheduled"
    assert job.requeue()
    drain(worker)
    end(job)  # the rerun waits for them
    assert sleeper.status() == "scheduled"
    end(again)
    assert sleeper.status() == "cancelled"
    assert again.requeue()
    drain(worker)
    assert sleeper.status() == "scheduled"
    worker.drain()
    worker.drain()
    assert len(again.result(timeout=5)) == 5
    assert violations(conn) == []


def test_a_child_that_was_cancelled_by_itself_stays_so(family: Any, app: App, hand: Any) -> None:
    parent, broken = family
    broken.clear()
    job = parent.enqueue(12, 3)
    worker = hand()
    drain(worker)
    assert app.job(child_id(job.id, 5, 1)).cancel()
    assert job.cancel()
    for _ in range(3):
        worker.wake()
    assert job.requeue()
    drain(worker)
    with pytest.raises(JobFailed, match="JobCancelled"):
        job.result(timeout=5)


def test_a_requeue_reaches_failed_children_that_were_kept(app: App, conn: psycopg.Connection[Any], hand: Any) -> None:
    broken = [1]

    @app.workflow(name="child")
    def child(n: int) -> int:
        if n == 1 and broken:
            raise ValueError("not yet")
        return n

    @app.workflow(name="parent")
    def parent() -> list[int]:
        return gather(*child.map(range(3)))

    job = parent.enqueue()
    worker = hand()
    drain(worker)
    again = job.rerun(from_step=2)
    drain(worker)
    assert (job.status(), again.status()) == ("failed", "failed")
    broken.clear()
    assert again.requeue()
    drain(worker)
    assert again.result(timeout=5) == [0, 1, 2]
    assert job.status() == "failed"
    assert violations(conn) == []


# ------------------------------------------------------------------------------------------------------ on the command line


def test_rerun_command(flow: Any, dsn: str, conn: psycopg.Connection[Any], hand: Any) -> None:
    workflow, broken = flow
    job = workflow.enqueue(4)
    refused(1, "rerun", job.id, says="has not ended", dsn=dsn)
    worker = hand()
    worker.drain()
    broken.clear()
    done = pgqueue("rerun", job.id[:30], "--from-step", "3", dsn=dsn)
    assert done.returncode == 0, done.stderr
    worker.drain()
    assert one(conn, f"SELECT state FROM pgqueue.jobs WHERE id = '{done.stdout.strip()}'") == "succeeded"
    assert job.attempts()[-1].by.endswith("(pgqueue rerun)")  # type: ignore[union-attr]
    refused(64, "rerun", job.id, "--from-step", "9", says="cannot run again from step 9", dsn=dsn)
    refused(64, "rerun", job.id, "--from-step", "0", says="range", dsn=dsn)
    refused(1, "rerun", "ffff", says="no job", dsn=dsn)


def test_event_and_send(app: App, dsn: str, hand: Any) -> None:
    @app.workflow(name="waits")
    def waits() -> list[Any]:
        return [wait_event("packed:7"), receive("address"), receive("address")]

    job = waits.enqueue()
    worker = hand()
    drain(worker)
    done = pgqueue("event", "packed:7", '{"no": 1}', dsn=dsn)
    assert (done.returncode, done.stdout) == (0, "sent: this is its first value\n")
    done = pgqueue("event", "packed:7", dsn=dsn)
    assert done.returncode == 1
    assert "not sent" in done.stdout
    assert pgqueue("send", job.id[:30], "address", '"Elm Street"', dsn=dsn).stdout == "sent\n"
    assert pgqueue("send", job.id, "address", dsn=dsn).returncode == 0
    drain(worker)
    assert job.result(timeout=5) == [{"no": 1}, "Elm Street", None]
    done = pgqueue("send", job.id, "address", dsn=dsn)
    assert (done.returncode, done.stdout) == (1, "not sent: the job has ended\n")
    refused(1, "send", "ffff", "address", says="no job", dsn=dsn)
    refused(64, "event", "k", "yes", says="not JSON", dsn=dsn)
    refused(64, "send", job.id, "address", "{", says="not JSON", dsn=dsn)
    refused(64, "event", "", says="1 to 512 bytes", dsn=dsn)


@pytest.fixture
def wreck(app: App, dsn: str, conn: psycopg.Connection[Any], hand: Any) -> Hand:
    """Ten jobs that failed in one way and five in another, two that were cancelled, three that succeeded."""

    @app.workflow(name="one")
    def first(n: int) -> None:
        raise ValueError(f'cannot "read" {n}')

    @app.workflow(name="two")
    def second() -> None:
        raise OSError("disk full")

    @app.workflow(name="good")
    def good() -> None:
        pass

    app.enqueue_many([*first.map(range(10)), *[second.call()] * 5, *[good.call()] * 3])
    worker: Hand = hand()
    worker.drain()
    for job in (good.options(delay="1h").enqueue(), good.options(delay="1h").enqueue()):
        job.cancel()
    worker.drain(due_now=False)
    assert states(conn) == {"failed": 15, "succeeded": 3, "cancelled": 2}
    return worker


def changed(dsn: str, *arguments: str) -> str:
    done = pgqueue(*arguments, "--yes", dsn=dsn)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stderr, "progress is for terminals"
    return " ".join(done.stdout.split())


def test_requeue_what_fits(wreck: Hand, dsn: str, conn: psycopg.Connection[Any]) -> None:
    done = pgqueue("requeue", "--failed", "--workflow", "two", "--dry-run", dsn=dsn)
    assert done.returncode == 0
    assert done.stdout.count("OSError: disk full") == 5
    assert states(conn)["failed"] == 15, "a dry run changes nothing"
    assert pgqueue("requeue", "--failed", dsn=dsn).returncode != 0, "it asks first"
    assert states(conn)["failed"] == 15
    assert changed(dsn, "requeue", "--failed", "--error", "OSError", "-n", "2") == "answer jobs requeued 2"
    assert changed(dsn, "requeue", "--failed", "--error", 'ValueError: cannot "read" 7') == "answer jobs requeued 1"
    assert changed(dsn, "requeue", "--failed", "--error", '"read" 8', "--workflow", "two") == "no failed jobs fit"
    assert changed(dsn, "requeue", "--state", "cancelled") == "answer jobs requeued 2"
    assert changed(dsn, "requeue", "--failed", "--until", "1h").startswith("no failed jobs")
    assert "there is no queue 'nowhere'" in pgqueue("requeue", "--failed", "-q", "nowhere", "--yes", dsn=dsn).stderr
    assert (
        changed(dsn, "requeue", "--failed", "--state", "cancelled", "--since", "1h", "-q", "default") == "answer jobs requeued 12"
    )
    assert states(conn) == {"ready": 17, "succeeded": 3}
    [by] = {row[0] for row in conn.execute("SELECT by FROM pgqueue.attempts WHERE kind = 'requeue'")}
    assert by.endswith("(pgqueue requeue)")
    assert "@" in by


def test_many_go_in_batches(app: App, dsn: str, conn: psycopg.Connection[Any], hand: Any) -> None:
    conn.execute("""
        INSERT INTO pgqueue.job (id, name, queue, priority, input, created_at)
            SELECT gen_random_uuid(), 'x', 'default', 5, '{}', clock_timestamp() FROM generate_series(1, 2500);
        INSERT INTO pgqueue.outcome (job_id, status, error, finished_at)
            SELECT id, 'failed', '{"type": "E", "message": "m"}', clock_timestamp() FROM pgqueue.job""")
    assert changed(dsn, "requeue", "--failed") == "answer jobs requeued 2500"
    assert one(conn, "SELECT count(DISTINCT xmin::text) FROM pgqueue.attempt") == 3
    assert changed(dsn, "cancel", "--state", "ready", "--workflow", "x", "-n", "2400") == "answer jobs requested 2400"
    assert one(conn, "SELECT count(*) FROM pgqueue.cancel_request WHERE by LIKE '%@% (pgqueue cancel)'") == 2400


def test_where_nobody_can_be_asked(wreck: Hand, dsn: str) -> None:
    for command in (["requeue", "--failed"], ["prune", "--older", "7d"]):
        refused(64, *command, says="Nobody can be asked here: --yes says so beforehand", dsn=dsn)


def test_cancel_what_fits(app: App, dsn: str, conn: psycopg.Connection[Any], hand: Any) -> None:
    @app.workflow(name="sleeps")
    def sleeps() -> None:
        sleep("1d")

    @app.workflow(name="waits")
    def waits() -> None:
        wait_event("never")

    for workflow in (sleeps, sleeps, waits, waits, waits):
        workflow.enqueue()
    worker = hand()
    drain(worker)
    assert states(conn) == {"scheduled": 2, "waiting": 3}
    assert pgqueue("cancel", "--state", "waiting", "--dry-run", dsn=dsn).stdout.count("waits") == 3
    assert changed(dsn, "cancel", "--state", "waiting", "--workflow", "sleeps") == "no waiting jobs fit"
    assert (
        changed(dsn, "cancel", "--state", "waiting", "--workflow", "waits", "--since", "1h", "-n", "2")
        == "answer jobs requested 2"
    )
    asked = one(conn, "SELECT job_id::text FROM pgqueue.cancel_request LIMIT 1")
    assert "(pgqueue cancel)" in pgqueue("show", asked, dsn=dsn).stdout
    assert changed(dsn, "cancel", "--state", "scheduled", "-q", "default", "--until", "0s") == "answer jobs requested 2"
    worker.wake()
    assert states(conn) == {"cancelled": 4, "waiting": 1}
    last = one(conn, "SELECT id::text FROM pgqueue.jobs WHERE state = 'waiting'")
    assert pgqueue("cancel", last, "--hard", dsn=dsn).returncode == 0
    assert one(conn, "SELECT hard FROM pgqueue.cancel_request")
    assert violations(conn) == []


def test_either_names_or_filters(dsn: str) -> None:
    refused(64, "cancel", says="name the jobs", dsn=dsn)
    refused(64, "cancel", "--workflow", "x", says="name the jobs", dsn=dsn)
    refused(64, "cancel", "ffff", "--state", "ready", says="name the jobs", dsn=dsn)
    refused(64, "cancel", "ffff", "--workflow", "x", says="not both", dsn=dsn)
    refused(64, "cancel", "--state", "failed", says="--state", dsn=dsn)
    refused(64, "requeue", "--state", "ready", says="--state", dsn=dsn)
    refused(64, "requeue", "--error", "x", says="name the jobs", dsn=dsn)
    refused(64, "requeue", "ffff", "-q", "x", says="not both", dsn=dsn)


def test_named_jobs_are_answered_one_by_one(wreck: Hand, dsn: str, conn: psycopg.Connection[Any]) -> None:
    ids = [
        row[0] for row in conn.execute("SELECT id::text FROM pgqueue.jobs WHERE state IN ('failed', 'succeeded') ORDER BY state")
    ]
    done = pgqueue("requeue", ids[0], ids[-1], dsn=dsn)
    assert done.returncode == 1
    assert sorted(line.split()[1] for line in done.stdout.splitlines()[1:]) == ["requeued", "succeeded"]
    assert pgqueue("requeue", ids[1], "--dry-run", dsn=dsn).stdout.split() == ["id", ids[1]]
    assert states(conn)["ready"] == 1


def test_who_asked_is_in_the_attempts(wreck: Hand, app: App, dsn: str, conn: psycopg.Connection[Any]) -> None:
    job = app.job(one(conn, "SELECT id::text FROM pgqueue.jobs WHERE name = 'two' LIMIT 1"))
    assert pgqueue("requeue", job.id, dsn=dsn).returncode == 0
    wreck.drain()
    assert job.requeue()
    assert [a.by and a.by.partition("(")[2] for a in job.attempts() if a.kind == "requeue"] == ["pgqueue requeue)", None]
    shown = json.loads(pgqueue("show", job.id, "--json", dsn=dsn).stdout)
    assert [a["by"] is None for a in shown["attempts"] if a["kind"] == "requeue"] == [False, True]


def test_a_reader_that_goes_away_is_no_error(dsn: str, conn: psycopg.Connection[Any]) -> None:
    conn.execute(
        "SELECT pgqueue.enqueue_workflows((SELECT json_agg(json_build_object('name', 'x', 'queue', 'default'))"
        " FROM generate_series(1, 3000)))"
    )
    for command in (["jobs", "-n", "3000"], ["jobs", "-n", "3000", "--json"], ["--help"]):
        process = subprocess.Popen(
            [sys.executable, "-m", "pgqueue", *command], cwd=ROOT, env={"PGQUEUE_DSN": dsn, "PATH": ""},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        if command[0] == "jobs":
            process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(30) == 0
        process.stderr.close()
