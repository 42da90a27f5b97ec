"""Any limits, any jobs, any order of verbs, several sessions at once, some of which die: Hypothesis looks for a broken limit.

What was committed is read from the server's log and judged by the oracles of concurrency, rates and the order of keys. Where a
claim is alone, its order is judged too. In the end everything must have been run.

PGQUEUE_TEST_EXAMPLES says how many are tried, PGQUEUE_TEST_SEED which.
"""

from __future__ import annotations

import json
import os
import random
import threading
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hypothesis
import psycopg
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

import pgqueue
from chaos.history import History, Start, impossible, starts
from chaos.oracles import concurrency, key_order, rates
from pgqueue import App, Queue, Rate, protocol
from pgqueue.database import connect, run
from pgqueue.ids import Process, new_token
from pgqueue.model import ClaimedJob, Settlement
from tests.support import states, violations

Connection = psycopg.Connection[Any]
GIVEN = os.environ.get("PGQUEUE_TEST_EXAMPLES")
SEED = int(os.environ.get("PGQUEUE_TEST_SEED") or (random.getrandbits(32) if GIVEN else 1))

#: Time stands still unless it is moved. Nobody here crashes the server, so nobody waits for its disk.
CLOCK = """
    CREATE SEQUENCE public.milliseconds MINVALUE -1000000000 START 1;
    CREATE OR REPLACE FUNCTION pgqueue.clock() RETURNS timestamptz LANGUAGE sql VOLATILE
        AS $$ SELECT timestamptz '2030-01-01' + last_value * interval '1 millisecond' FROM public.milliseconds $$;
    CREATE OR REPLACE FUNCTION pgqueue.clock_bound() RETURNS timestamptz LANGUAGE sql STABLE
        AS $$ SELECT timestamptz '2030-01-01' + last_value * interval '1 millisecond' FROM public.milliseconds $$;
    CREATE OR REPLACE FUNCTION pgqueue.durable_commit() RETURNS void LANGUAGE sql AS '';
"""
PASS = "SELECT setval('public.milliseconds', last_value + %s) FROM public.milliseconds"
TABLES = ["job", "outcome", "attempt", "ready", "running", "scheduled", "waiting", "wakeup", "worker"]
TABLES += ["rate_register", "fair_turn", "queue"]
EMPTY = "; ".join(f"DELETE FROM pgqueue.{table}" for table in TABLES)
LOOK = "SELECT lane, pos, job_id::text FROM pgqueue.ready WHERE queue = 'q' ORDER BY lane, pos"

rate = st.builds(Rate, st.integers(2, 40), st.sampled_from([1.0, 2.5]), st.integers(1, 5))
limits = st.fixed_dictionaries(
    {},
    optional={
        "concurrency": st.integers(1, 6),
        "per_key": st.integers(1, 2),
        "rate": rate,
        "rate_per_key": rate,
        "fair_by": st.just("who"),
    },
)
job = st.fixed_dictionaries(
    {
        "key": st.sampled_from(["a", "a", "b", "c", None]),
        "priority": st.sampled_from([5, 5, 5, 3]),
        "cost": st.sampled_from([1, 1, 1, 2, 5]),
        "delay": st.sampled_from([0, 0, 0, 0, 0, 1]),
        "who": st.sampled_from("xyz"),
    }
)
claim = st.tuples(
    st.just("claim"), st.integers(1, 12), st.integers(0, 6), st.sampled_from(["kept"] * 6 + ["forgotten", "rolled back"])
)
settle = st.tuples(
    st.just("settle"), st.integers(1, 6), st.sampled_from(["succeeded"] * 4 + ["failed", "release", "retry"]), st.integers(0, 1)
)
deed = st.one_of(claim, claim, settle, st.just(("die",)), st.just(("keep house",)))
rounds = st.lists(
    st.one_of(
        st.tuples(st.just("enqueue"), st.lists(job, min_size=1, max_size=8)),
        st.tuples(st.just("pass"), st.sampled_from([10, 30, 100, 400, 3000, -50, -5000])),
        st.tuples(st.just("at once"), st.lists(deed, min_size=1, max_size=3)),
    ),
    min_size=8,
    max_size=25,
)
beginning = st.lists(job, min_size=4, max_size=12)


@dataclass
class Actor:
    """A worker, and the housekeeper of its host, on one connection."""

    conn: Connection
    worker: str = ""
    held: list[ClaimedJob] = field(default_factory=list)
    put_off: set[str] = field(default_factory=set)  # these let others by

    def register(self) -> None:
        self.worker = str(uuid.uuid4())
        run(self.conn, protocol.register_worker(self.worker, Process.of(os.getpid())))

    def claim(self, amount: int, at_once: int, what: str) -> list[ClaimedJob]:
        call = protocol.claim(self.worker, new_token(), ["q"], ["j"], amount, [0] * 20, False, at_once)
        if what == "rolled back":  # its session died
            with self.conn.transaction(force_rollback=True):
                run(self.conn, call)
            return []
        got = [job for job, _ in run(self.conn, call)]
        if what == "kept":
            self.held += got
        else:  # the reply was lost
            self.die()
        return got

    def settle(self, count: int, how: Any, delay: int) -> None:
        jobs, self.held = self.held[:count], self.held[count:]
        self.put_off |= {job.id for job in jobs if how == "retry" and delay}
        details = {"retry": {"delay": delay, "errors": [], "failed_seqs": []}, "failed": {"errors": [], "failed_seqs": []}}
        detail = json.dumps(details[how]) if how in details else None
        if jobs:
            assert run(self.conn, protocol.settle([Settlement(job, how, "1", 0, detail) for job in jobs])) == {}

    def die(self) -> None:
        run(self.conn, protocol.fence_worker(self.worker, None, "died"))
        run(self.conn, protocol.reap(self.worker, [], "crash", None))
        self.held = []
        self.register()

    def keep_house(self) -> None:
        run(self.conn, protocol.promote(100))
        run(self.conn, protocol.wake(100))


class Cluster:
    """Three actors, one queue, and what they have done."""

    def __init__(self, conns: Sequence[Connection], history: History, limits: dict[str, Any]) -> None:
        self.conn = conns[0]
        self.actors = [Actor(conn) for conn in conns[1:]]
        self.history, self.limits = history, limits
        self.jobs: dict[str, dict[str, Any]] = {}
        app = App(queues=[Queue("q", **limits)])
        app.step(name="j", queue="q", key="key")(lambda n, key=None, who="": None)
        run(self.conn, app.registration())
        for actor in self.actors:
            actor.register()

    def play(self, rounds: Sequence[tuple[Any, ...]]) -> None:
        for what, argument in rounds:
            if what == "enqueue":
                self.enqueue(argument)
            elif what == "pass":
                self.conn.execute(PASS, (argument,))
            elif len(argument) == 1 and argument[0][0] == "claim" and argument[0][3] == "kept":
                self.claim_alone(*argument[0][1:])
            else:
                self.at_once(argument)

    def enqueue(self, jobs: list[dict[str, Any]]) -> None:
        rows = [
            {name: job[name] for name in ("key", "priority", "cost")}
            | {"name": "j", "queue": "q", "delay": f"{job['delay']} s", "input": {"n": 1, "key": job["key"], "who": job["who"]}}
            for job in jobs
        ]
        ids = run(self.conn, protocol.enqueue_workflows(json.dumps(rows)))
        self.jobs |= zip(ids, jobs, strict=True)

    def at_once(self, deeds: Sequence[tuple[Any, ...]]) -> None:
        errors: list[BaseException] = []

        def act(actor: Actor, what: str, *arguments: Any) -> None:
            try:
                getattr(actor, what.replace(" ", "_"))(*arguments)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=act, args=(actor, *deed)) for actor, deed in zip(self.actors, deeds, strict=False)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []

    def claim_alone(self, amount: int, at_once: int, what: str) -> None:
        """Priority then position: nobody who is still ready was in front of one who was taken."""
        before = {row[2]: row[:2] for row in self.conn.execute(LOOK)}
        got = {job.id for job in self.actors[0].claim(amount, at_once, what)}
        left = [row[2] for row in self.conn.execute(LOOK)]
        assert got <= before.keys()
        if self.limits and "fair_by" not in self.limits:
            last = max((before[job] for job in got), default=None)
            assert last is None or not [job for job in left if before[job] < last], "one was overtaken"

    def drain(self) -> None:
        """Time goes on, and all are run."""
        actor = self.actors[0]
        for other in self.actors:
            other.die()
        for _ in range(20 * len(self.jobs) + 20):
            self.conn.execute(PASS, (10_000,))
            actor.keep_house()
            actor.claim(100, 100, "kept")
            actor.settle(100, "succeeded", 0)
            if not run(self.conn, protocol.remaining(["q"])) and set(states(self.conn)) <= {"succeeded", "failed"}:
                break
        assert sum(states(self.conn).values()) == len(self.jobs)
        assert set(states(self.conn)) <= {"succeeded", "failed"}, "some never run"
        assert violations(self.conn) == []

    def judge(self) -> list[str]:
        seen = self.history.read()
        begun = starts(seen, "q")
        wrong = concurrency.check(seen, "q", self.limits.get("concurrency"), self.limits.get("per_key"))
        if "rate" in self.limits:
            wrong += self.within(self.limits["rate"], begun)
        if "rate_per_key" in self.limits:
            for key in "abc":
                wrong += self.within(self.limits["rate_per_key"], [s for s in begun if self.jobs[s.job]["key"] == key])
        put_off = {id for id, job in self.jobs.items() if job["delay"]}.union(*(actor.put_off for actor in self.actors))
        if self.limits.get("per_key") == 1 and "fair_by" not in self.limits:
            wrong += key_order.check(seen, "q", {id: place for place, id in enumerate(self.jobs) if id not in put_off})
        return wrong

    def within(self, rate: Rate, begun: Sequence[Start]) -> list[str]:
        return rates.check([(s.stamp, self.jobs[s.job]["cost"]) for s in begun], rate.n, rate.per, rate.burst)


@pytest.fixture
def conns(dsn: str, conn: Connection) -> Iterator[list[Connection]]:
    if why := impossible(conn):
        pytest.skip(why)
    conn.execute(CLOCK)
    others = [connect(dsn, "actor") for _ in range(3)]
    for each in (conn, *others):
        each.execute("SET synchronous_commit = off")
    yield [conn, *others]
    for other in others:
        other.close()


def look_for_trouble(
    conns: list[Connection], examples: int, phases: Sequence[Phase] = (Phase.generate, Phase.shrink), limits: Any = limits
) -> None:
    print(f"again with PGQUEUE_TEST_SEED={SEED} PGQUEUE_TEST_EXAMPLES={examples}")
    history = History(conns[0])

    @hypothesis.seed(SEED)
    @settings(
        max_examples=examples,
        phases=phases,
        deadline=None,
        database=None,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.given(limits, beginning, rounds)
    def example(limits: dict[str, Any], jobs: list[dict[str, Any]], rounds: list[tuple[Any, ...]]) -> None:
        for conn in conns:
            conn.rollback()
        conns[0].execute(EMPTY)
        history.read()
        cluster = Cluster(conns, history, limits)
        cluster.enqueue(jobs)
        cluster.play(rounds)
        cluster.drain()
        assert cluster.judge() == []

    try:
        example()
    finally:
        history.close()


@pytest.mark.parametrize(
    "examples", [int(GIVEN or 25), pytest.param(2000, marks=[pytest.mark.limits, pytest.mark.timeout(3600)])]
)
def test_any_limits_and_any_sequence(conns: list[Connection], examples: int) -> None:
    look_for_trouble(conns, examples)


FUNCTIONS = Path(pgqueue.__file__).parent / "sql" / "functions"

#: What is wrong: the function, its right text, and the wrong one, and the limits under which it shows.
MUTANTS: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "jobs are counted, not their costs": ("used", "coalesce(sum(r.cost), 0)", "count(*)", {"concurrency": 3}),
    "the last start is forgotten": (
        "take_start",
        "greatest(r.next, take_start.moment)",
        "take_start.moment",
        {"rate": Rate(5, 1.0, 5)},
    ),
    "a young job passes those that wait for its key": (
        "pick_turns",
        "OR (p.lane % 2 = 1 AND p.pos > max(p.first) OVER k)",
        "",
        {"per_key": 1, "rate_per_key": Rate(5, 1.0, 1)},
    ),
    "what is given back goes to the end of its key": (
        "reap",
        "CASE WHEN d.key IS NULL THEN",
        "CASE WHEN true THEN",
        {"per_key": 1},
    ),
    "the last of a key is woken first": ("next_turns", "ORDER BY w.pos LIMIT", "ORDER BY w.pos DESC LIMIT", {"per_key": 1}),
    "a key has one more": ("pick_turns", "THEN q.per_key - (", "THEN 1 + q.per_key - (", {"per_key": 1}),
}


@pytest.mark.limits
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_wrong_limit_is_noticed(conns: list[Connection], mutant: str) -> None:
    function, right, wrong, limits = MUTANTS[mutant]
    text = (FUNCTIONS / f"{function}.sql").read_text()
    assert text.count(right) == 1
    conns[0].execute(text.replace(right, wrong).encode())
    with pytest.raises(AssertionError):
        look_for_trouble(conns, 500, [Phase.generate], st.just(limits))
