"""Limits under real workers of several hosts, with kills, deploys, late commits and clocks that are set: judged by what the
server's log says, in the order of the commits (chaos/history.py). The full sizes are run by ``make limits``."""

from __future__ import annotations

import itertools
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from chaos.history import Commit, History, impossible, starts
from chaos.oracles import concurrency, key_order, rates
from chaos.workloads import limited
from pgqueue import Rate, protocol
from pgqueue.database import connect, run
from tests.support import Work, Workers, kill, states, violations, wait_for, worker_pids

Connection = psycopg.Connection[Any]
APP = "chaos.workloads.limited:app"
AT_ONCE = 5000
SEED = os.environ.get("SEED") or str(random.getrandbits(32))


@pytest.fixture
def db(dsn: str, conn: Connection, monkeypatch: pytest.MonkeyPatch) -> Iterator[Connection]:
    monkeypatch.setenv("PGQUEUE_DSN", dsn)
    monkeypatch.setattr(limited.app, "dsn", dsn)
    print(f"again with SEED={SEED}")
    yield conn
    limited.app.close()


@pytest.fixture
def history(db: Connection) -> Iterator[History]:
    if why := impossible(db):
        pytest.skip(why)
    made = limited.prepare(db)
    yield made
    made.close()


def enqueue(queue: str, count: int, key: Callable[[int], str | None] = lambda n: None, **arguments: Any) -> dict[str, int]:
    """So many jobs, and their places."""
    call = limited.work.options(queue=queue)
    places: dict[str, int] = {}
    for at in range(0, count, AT_ONCE):
        jobs = limited.app.enqueue_many([call.call(n, key(n), **arguments) for n in range(at, min(at + AT_ONCE, count))])
        places |= {job.id: at + n for n, job in enumerate(jobs)}
    return places


def all_done(db: Connection, jobs: int) -> bool:
    """Cheap, because it is asked again and again."""
    return db.execute("SELECT count(*) FROM pgqueue.outcome").fetchone() == (jobs,)


@contextmanager
def beside(work: Callable[[Connection], object], dsn: str, every: Callable[[], float]) -> Iterator[None]:
    """Do this again and again in a thread, as long as the block lasts."""
    over, errors = threading.Event(), []

    def go_on() -> None:
        try:
            with connect(dsn, "test") as own:
                while not over.wait(every()):
                    work(own)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    assert errors == []


class Chaos:
    """Kills a worker, and now and then replaces a host, as a deploy does: when the new one is at work, the old one drains."""

    def __init__(self, workers: Workers, hosts: int) -> None:
        self._workers = workers
        self._dice = random.Random(SEED)
        self.hosts: list[Work] = []
        self._leaving: list[Work] = []
        self.kills = self.deploys = 0
        for _ in range(hosts):
            self._start()

    def _start(self) -> None:
        self.hosts.append(self._workers.start(APP, "-w", "4"))

    def strike(self, conn: Connection) -> None:
        pids = [pid for host in self.hosts for pid in worker_pids(conn, host)]
        if len(pids) <= 3 * len(self.hosts):
            return  # with fewer than the limit, the limit could not be used
        while self._leaving:
            self._leaving.pop().signal(15)
        if self._dice.random() < 0.15:
            self._start()
            self._leaving.append(self.hosts.pop(0))
            self.deploys += 1
        else:
            self.kills += kill(self._dice.choice(pids))


LIMITS: dict[str, dict[str, int]] = {"few": {"limit": 5}, "keys": {"per_key": 1}, "both": {"limit": 5, "per_key": 1}}


@pytest.mark.parametrize(
    ("queue", "jobs"),
    [("both", 400), *(pytest.param(queue, 20_000, marks=[pytest.mark.limits, pytest.mark.timeout(2400)]) for queue in LIMITS)],
)
def test_concurrency_across_hosts_kills_and_deploys(
    db: Connection, dsn: str, history: History, workers: Workers, queue: str, jobs: int
) -> None:
    """8 workers of 2 hosts; 5 at once, one of each of 50 keys, or both."""
    full = jobs > 1000
    places = enqueue(queue, jobs, lambda n: f"key {n % 50}" if queue != "few" else None, seconds=0.1 if full else 0.01)
    chaos = Chaos(workers, 2)
    wait_for(lambda: db.execute("SELECT FROM pgqueue.outcome LIMIT 1").fetchone() is not None)
    with beside(chaos.strike, dsn, lambda: 0.5):
        wait_for(lambda: all_done(db, jobs), 2000, "the end")
    wait_for(lambda: states(db) == {"succeeded": jobs})
    seen = history.read()
    used = concurrency.use(seen, queue)
    print(f"\n{queue}: {jobs} jobs, {chaos.kills} kills, {chaos.deploys} deploys; on average {used:.2f} were running")
    assert concurrency.check(seen, queue, **LIMITS[queue]) == []
    if "per_key" in LIMITS[queue]:
        assert key_order.check(seen, queue, places) == []
    if full and queue != "keys":
        assert used >= 0.9 * 5, "a limit that is not used is too low"
    assert {start.job for start in starts(seen, queue)} == set(places)
    assert violations(db) == []


# -------------------------------------------------------------------------------------------------------- rates


@pytest.mark.parametrize(("queue", "burst"), [("even", 1), ("bursts", 20)])
@pytest.mark.parametrize("seconds", [2, pytest.param(30, marks=[pytest.mark.limits, pytest.mark.timeout(900)])])
def test_rates_across_hosts(db: Connection, history: History, workers: Workers, queue: str, burst: int, seconds: int) -> None:
    three_hosts(db, workers)
    enqueue(queue, jobs := 100 * seconds + burst)
    wait_for(lambda: all_done(db, jobs), 60 + 10 * seconds, "the end")
    stamps = [(start.stamp, start.cost) for start in starts(history.read(), queue)]
    rate = rates.throughput(stamps)
    print(f"\n{queue}: at most {rates.busiest(stamps, 1.0)[0]} starts in a second, {rate:.1f} per second on average")
    assert rates.check(stamps, 100, 1.0, burst) == []
    if seconds > 10:
        assert rate >= 0.95 * 100, "a rate that is not used is too low"
    assert violations(db) == []


def three_hosts(db: Connection, workers: Workers) -> None:
    for _ in range(3):
        workers.start(APP, "-w", "2")
    wait_for(lambda: len(db.execute("SELECT 1 FROM pgqueue.workers").fetchall()) == 6)


#: Starts that were given out before a step of the clock, and come within 50 ms after it, beside the new ones.
GIVEN_OUT = 5


@pytest.mark.parametrize(("queue", "burst"), [("even", 1), ("bursts", 20)])
@pytest.mark.parametrize("seconds", [3, pytest.param(40, marks=[pytest.mark.limits, pytest.mark.timeout(900)])])
def test_rates_while_the_clock_is_set(
    db: Connection, dsn: str, history: History, workers: Workers, queue: str, burst: int, seconds: int
) -> None:
    """By 5 s, forward and back. By the clock of the database nothing changes; by one that nobody sets, a step forward lets at
    most a burst more through, beside what had its start already."""
    db.execute("""
        CREATE SEQUENCE seconds_off MINVALUE -1000000 START 1;
        SELECT setval('seconds_off', 0);
        GRANT SELECT ON SEQUENCE seconds_off TO PUBLIC;
        CREATE OR REPLACE FUNCTION pgqueue.clock() RETURNS timestamptz LANGUAGE sql VOLATILE
            AS 'SELECT clock_timestamp() + last_value * interval ''1 s'' FROM public.seconds_off';
        CREATE OR REPLACE FUNCTION pgqueue.clock_bound() RETURNS timestamptz LANGUAGE sql STABLE
            AS 'SELECT statement_timestamp() + last_value * interval ''1 s'' FROM public.seconds_off'""")
    dice = random.Random(SEED)
    off = 0

    def set_clock(conn: Connection) -> None:
        """Between two claims, so that it is known which was by which clock."""
        nonlocal off
        off += dice.choice([-5, 5]) if off else 5
        with conn.transaction():
            conn.execute("SELECT pg_advisory_xact_lock(pgqueue.queue_lock(%s))", (queue,))
            conn.execute("SELECT setval('seconds_off', %s)", (off,))
            conn.execute("SELECT pg_logical_emit_message(true, 'chaos', %s)", (str(off),))

    three_hosts(db, workers)
    enqueue(queue, 100 * seconds)
    with beside(set_clock, dsn, lambda: dice.uniform(1.1, 2)):
        time.sleep(seconds)
    wait_for(lambda: all_done(db, 100 * seconds), 100 + 10 * seconds, "the end")
    seen = history.read()
    stamps = [(start.stamp, start.cost) for start in starts(seen, queue)]
    assert rates.check(stamps, 100, 1.0, burst) == []
    back = max((first - then for (first, _), (then, _) in itertools.pairwise(stamps)), default=timedelta(0))
    assert back <= timedelta(seconds=(burst - 1) / 100), "a register never goes back by more than what a burst may come early"
    true = [(start.stamp - offset, start.cost) for offset, start in by_a_true_clock(seen, queue)]
    print(f"\n{queue}: {len([c for c in seen if c.note])} steps; at most {rates.busiest(true, 1.0)[0]} starts in a true second")
    assert rates.check(true, 100, 1.0, burst, extra=burst + GIVEN_OUT) == []
    assert violations(db) == []


def by_a_true_clock(seen: list[Commit], queue: str) -> Iterator[tuple[Any, Any]]:
    """Each start with how much the clock was off."""
    offset = timedelta(0)
    for commit in seen:
        if commit.note is not None:
            offset = timedelta(seconds=int(commit.note))
        for start in commit.began:
            if start.queue == queue:
                yield offset, start


def test_control_is_in_force_everywhere(db: Connection, history: History, workers: Workers) -> None:
    """On two hosts: from the commit of a pause on nobody begins anything, and soon after a resume everybody does."""
    for _ in range(2):
        workers.start(APP, "-w", "1", "-q", "free")
    enqueue("free", 1000, seconds=0.02)
    busy = "SELECT count(DISTINCT worker), count(*) FROM pgqueue.running"
    seen: list[Commit] = []

    def since(note: str, until: str | None = None) -> list[Commit]:
        seen.extend(history.read())
        notes = [commit.note for commit in seen]
        if note not in notes:  # it is not there to be read yet
            return []
        return seen[notes.index(note) : notes.index(until) if until else None]

    def running() -> tuple[int, int]:
        return db.execute(busy).fetchone() or (0, 0)

    def change(what: protocol.Call[Any], note: str) -> None:
        with db.transaction():
            history.note(note)
            run(db, what)

    wait_for(lambda: running()[0] == 2, what="both at work")
    change(protocol.pause("free"), "paused")
    wait_for(lambda: running()[1] == 0, 10, "the end of what ran")
    change(protocol.resume("free"), "resumed")
    wait_for(lambda: running()[0] == 2, 10, "both at work again")
    change(protocol.limit_queue("free", {"concurrency": 1}), "limited")
    wait_for(lambda: running()[1] <= 1, 10, "the end of the others")
    history.note("from here on")
    wait_for(lambda: len(starts(since("from here on"), "free")) >= 20, 60, "one after the other")
    assert starts(since("paused", "resumed"), "free") == []
    assert concurrency.check(since("from here on"), "free", limit=1) == []


def test_the_rate_of_a_key_is_used(db: Connection, history: History, workers: Workers) -> None:
    """Its jobs wait aside, each until its start: whoever brings them back does so when it has come, and not once a second."""
    limited.app.limit("free", rate_per_key=Rate(20, per="1s"))
    places = enqueue("free", 80, lambda n: "k")
    workers.start(APP, "-w", "1", "-q", "free")
    wait_for(lambda: all_done(db, 80), 40, "all: 4 s, or one a second")
    stamps = [(start.stamp, 1) for start in starts(history.read(), "free") if start.job in places]
    assert rates.check(stamps, 20, 1.0, 1) == []
    assert violations(db) == []


# ------------------------------------------------------------------------------------------------- late commits


@pytest.mark.parametrize("seconds", [2, pytest.param(30, marks=[pytest.mark.limits, pytest.mark.timeout(900)])])
def test_jobs_that_are_committed_late_break_no_limit(
    db: Connection, dsn: str, history: History, workers: Workers, seconds: int
) -> None:
    """Many transactions that enqueue stay open for a while, and one until the end; meanwhile younger jobs are claimed and end."""
    chaos = Chaos(workers, 2)
    dice = random.Random(SEED)

    def produce(conn: Connection, most: float = 1.5) -> None:
        with conn.transaction():
            for queue, took in (("both", 0.02), ("bursts", 0.0)):
                call = limited.work.options(queue=queue).using(conn)
                for n in range(dice.randint(1, 20)):
                    call.enqueue(n, f"key {n % 10}", took)
            time.sleep(dice.choice([0.0, dice.uniform(0.0, most)]))

    with connect(dsn, "test") as slow, slow.transaction():
        produce(slow, 0.0)
        with beside(produce, dsn, lambda: 0.1), beside(produce, dsn, lambda: 0.1), beside(chaos.strike, dsn, lambda: 0.7):
            wait_for(lambda: db.execute("SELECT FROM pgqueue.outcome LIMIT 1").fetchone() is not None)
            time.sleep(seconds)
    wait_for(lambda: set(states(db)) <= {"succeeded"}, 60 + 10 * seconds, "the end")
    seen = history.read()
    for queue in ("both", "bursts"):
        positions = [start.pos for start in starts(seen, queue) if start.lane % 2]
        assert min(positions) not in positions[:1], "the oldest did not come late"
    assert concurrency.check(seen, "both", limit=5, per_key=1) == []
    assert rates.check([(start.stamp, start.cost) for start in starts(seen, "bursts")], 100, 1.0, 20) == []
    assert violations(db) == []


# ------------------------------------------------------------------------------------------------------ fairness


@pytest.mark.parametrize(
    ("large", "middle", "rounds"),
    [(2000, 100, 2), pytest.param(100_000, 1000, 20, marks=[pytest.mark.limits, pytest.mark.timeout(900)])],
)
def test_a_small_tenant_is_not_delayed_by_large_ones(
    db: Connection, history: History, workers: Workers, large: int, middle: int, rounds: int
) -> None:
    """Ten jobs come at once, again and again: alone, and while others have many and are not new any more."""
    for _ in range(2):
        workers.start(APP, "-w", "2", "-q", "shared")
    wait_for(lambda: len(db.execute("SELECT 1 FROM pgqueue.workers").fetchall()) == 4)
    call = limited.work.options(queue="shared")

    def burst() -> None:
        with db.transaction():
            history.note("they come")
            jobs = limited.app.using(db).enqueue_many([call.call(n, None, JOB, "small") for n in range(10)])
        small.extend(job.id for job in jobs)
        ended = "SELECT count(*) FROM pgqueue.outcome WHERE job_id = ANY (%s::uuid[])"
        wait_for(lambda: db.execute(ended, (small,)).fetchone() == (len(small),))

    def others_go_on(jobs: int) -> None:
        ended = "SELECT count(*) >= %s FROM pgqueue.outcome"
        [(before,)] = db.execute("SELECT count(*) FROM pgqueue.outcome").fetchall()
        wait_for(lambda: db.execute(ended, (before + jobs,)).fetchone() == (True,))

    def waits() -> list[float]:
        """Of all those, in seconds; and how many others began until the last of each ten had."""
        came = dict(db.execute("SELECT id::text, created_at FROM pgqueue.job WHERE id = ANY (%s::uuid[])", (small,)).fetchall())
        seen = history.read()
        others.clear()
        for commit in seen:
            if commit.note:
                others.append(0)
            waiting = [job for job in small[10 * len(others) - 10 : 10 * len(others)] if job not in begun]
            begun.update(start.job for start in commit.began)
            if waiting and others:
                others[-1] += sum(start.job not in came for start in commit.began)
        return sorted((start.stamp - came[start.job]).total_seconds() for start in starts(seen, "shared") if start.job in came)

    small: list[str] = []
    begun: set[str] = set()
    others: list[int] = []
    burst()
    history.read()
    small.clear()
    for _ in range(rounds):
        burst()
    alone = waits()
    small.clear()
    enqueue("shared", large, seconds=JOB, who="large")
    enqueue("shared", middle, seconds=JOB, who="middle")
    for _ in range(rounds):
        others_go_on(80)  # who came all the time would not be small: he would have a third of the workers, as they have
        burst()
    beside = waits()
    p99 = [1000 * w[int(0.99 * len(w))] for w in (alone, beside)]
    print(
        f"\nthe small one waits {p99[0]:.0f} ms (p99) alone, {p99[1]:.0f} ms beside large ones; others before its last: {others}"
    )
    assert len(alone) == len(beside) == 10 * rounds
    assert max(others) < 40, "their turns come first, beside what has been claimed already"
    if large > 10_000:
        assert p99[1] <= 2 * p99[0]


JOB = 0.05  # seconds that a job takes: workers with one thread claim no second one ahead


def test_a_look_that_comes_late_does_not_slow_a_rate_down(db: Connection, history: History, workers: Workers) -> None:
    """Workers rest between two starts, and the housekeeper wakes them for the next. Once it is late, that must not stay so."""
    work = workers.start(APP, "-w", "2")
    [housekeeper] = wait_for(lambda: len(worker_pids(db, work)) == 2 and set(work.children()) - set(worker_pids(db, work)))
    limited.app.limit("even", rate=Rate(10, per="1s"))
    enqueue("even", 50)
    wait_for(lambda: states(db).get("succeeded", 0) > 5, what="a beginning")
    kill(housekeeper, signal.SIGSTOP)
    time.sleep(0.5)  # so late
    kill(housekeeper, signal.SIGCONT)
    wait_for(lambda: all_done(db, 50), 25, "all: 5 s, or one a second")
