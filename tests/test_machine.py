"""Any sequence of verbs: Hypothesis calls them in the database and in a model in plain Python, and compares after each.

Time stands still unless it is moved: ``pgqueue.clock()`` and ``clock_bound()`` are replaced in the test's database.

PGQUEUE_TEST_EXAMPLES says how many sequences are tried, PGQUEUE_TEST_SEED which.
"""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hypothesis
import psycopg
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from psycopg import errors

import pgqueue
from chaos.model import Conflict, Job, Model, Worker
from pgqueue import protocol
from pgqueue.database import run
from pgqueue.ids import Process, new_token
from pgqueue.model import ClaimedJob, Settlement

GIVEN = os.environ.get("PGQUEUE_TEST_EXAMPLES")
EXAMPLES = int(GIVEN or 40)
STEPS = 40
SEED = int(os.environ.get("PGQUEUE_TEST_SEED") or (random.getrandbits(32) if GIVEN else 1))

#: A clock that no two calls read the same, and that otherwise stands still.
CLOCK = """
    CREATE SEQUENCE public.microseconds;
    CREATE OR REPLACE FUNCTION pgqueue.clock() RETURNS timestamptz LANGUAGE sql VOLATILE
        AS $$ SELECT timestamptz '2030-01-01' + nextval('public.microseconds') * interval '1 microsecond' $$;
    CREATE OR REPLACE FUNCTION pgqueue.clock_bound() RETURNS timestamptz LANGUAGE sql STABLE
        AS $$ SELECT timestamptz '2030-01-01' + (last_value + 1) * interval '1 microsecond' FROM public.microseconds $$;
    -- What is derived from it is the same each time.
    UPDATE pgqueue.installation SET id = '00000000-0000-4000-8000-000000000000';
    -- Nobody here crashes the server, so nobody waits for its disk.
    CREATE OR REPLACE FUNCTION pgqueue.durable_commit() RETURNS void LANGUAGE sql AS '';
    SET synchronous_commit = off
"""
PASS_MINUTES = "SELECT setval('public.microseconds', last_value + %s * 60000000::bigint) FROM public.microseconds"

LOOK = """
    SELECT (SELECT coalesce(json_agg(json_build_array(id, state, cancel_requested)), '[]') FROM pgqueue.jobs),
           (SELECT coalesce(json_agg(json_build_array(job_id, seq, error IS NOT NULL)), '[]') FROM pgqueue.checkpoint),
           (SELECT coalesce(json_agg(json_build_array(job_id, kind, seq, checkpoints)), '[]') FROM pgqueue.attempt),
           (SELECT coalesce(json_agg(json_build_array(job_id, claim, worker)), '[]') FROM pgqueue.running),
           (SELECT coalesce(json_agg(v), '[]') FROM pgqueue.violations v),
           (SELECT is_called FROM pgqueue.conflict)
"""
TABLES = ["job", "outcome", "checkpoint", "attempt", "cancel_request", "ready", "running", "scheduled", "waiting", "worker"]
LEFT = " UNION ALL ".join(f"SELECT '{table}', to_json(t) FROM pgqueue.{table} t" for table in TABLES)
EMPTY = "; ".join(f"DELETE FROM pgqueue.{table}" for table in TABLES)

#: The names of jobs. Not every worker knows the second one.
MAX_CRASHES = {"job": 2, "rare": 1}
REGISTERED = json.dumps(
    [
        {"name": name, "aliases": [], "kind": "workflow", "queue": "default", "priority": 5, "max_crashes": crashes, "key": None}
        for name, crashes in MAX_CRASHES.items()
    ]
)
ACTIVE = ["ready", "scheduled", "running", "waiting"]
ENDED = ["succeeded", "failed", "cancelled"]
ERROR = {"errors": [{"error": {"type": "E"}}]}

Claim = tuple[str, int]  # (job, token)
minutes = st.integers(0, 3)
which = st.integers(0, 4)
often = st.sampled_from([True, True, True, True, False])
endings = st.sampled_from([*ENDED, "retry", "release"])
seldom = st.sampled_from([False, False, False, False, True])
described = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["job", "job", "rare"]),
        "content": seldom,
        "priority": st.integers(4, 6),
        "chosen": st.none() | st.sampled_from("ab"),
        "delay": st.just(0) | minutes,
    }
)
PLAIN = {"name": "job", "content": False, "priority": 5, "chosen": None, "delay": 0}


class Verbs(RuleBasedStateMachine):
    """Producers, workers (some of them long dead), and housekeepers.

    Each rule first provides for what it needs, by other rules: a settlement without a job that runs would be a step lost.
    ``which`` picks one of several; ``late`` picks among all that ever were: zombies.
    """

    def __init__(self, conn: psycopg.Connection[Any]) -> None:
        super().__init__()
        self.conn = conn
        self.model = Model(MAX_CRASHES)
        self.made = 0
        self.ids: list[str] = []  # these three never forget
        self.workers: list[str] = []
        self.claims: list[Claim] = []

    def new_id(self) -> str:
        """For a job or worker. Not random, so that a sequence can be repeated."""
        self.made += 1
        return f"{self.made:08x}-0000-7000-8000-000000000000"

    def run(self, call: protocol.Call[Any]) -> Any:
        return run(self.conn, call)

    def within(self, *states: str) -> list[str]:
        """The jobs that are in one of these states."""
        return [job.id for job in self.model.jobs.values() if job.state in states]

    def left(self, state: str) -> list[str]:
        """The jobs that the model believes to be in a state, and that the database has elsewhere."""
        there = {row[0] for row in self.conn.execute("SELECT id FROM pgqueue.jobs WHERE state = %s", (state,))}
        return [job for job in self.within(state) if job not in there]

    def a_job(self, which: int, state: str, late: bool = False) -> str:
        if late and self.ids:
            return self.ids[which % len(self.ids)]
        if not self.within(state):
            self.provide(state)
        jobs = self.within(state)
        return jobs[which % len(jobs)]

    def provide(self, state: str) -> None:
        """A job that is in this state."""
        if state == "ready":
            self.insert([PLAIN])
        elif state == "scheduled":
            self.insert([{**PLAIN, "delay": 1}])
        elif state == "waiting":
            self.insert([{**PLAIN, "name": "rare", "priority": 0}])
            while not self.within("waiting"):
                self.take(self.a_worker(0, False), 1, knows_all=False)
        elif state == "running":
            while not self.within("running"):
                if not self.within("ready"):
                    self.insert([PLAIN, PLAIN])
                self.take(self.a_worker(0, False), 2)
        else:
            self.settle([(0, False, state, 0, False, True)])

    def a_worker(self, which: int, late: bool) -> str:
        """There are at most two that are alive."""
        if late and self.workers:
            return self.workers[which % len(self.workers)]
        alive = [worker for worker, known in self.model.workers.items() if not known.fenced]
        return alive[which % 2] if len(alive) > which % 2 else self.register_worker()

    def register_worker(self) -> str:
        worker = self.new_id()
        self.run(protocol.register_worker(worker, Process.of(os.getpid())))
        self.model.workers[worker] = Worker()
        self.workers.append(worker)
        return worker

    def a_claim(self, which: int, late: bool) -> Claim:
        """``late``: preferably one whose job another holds by now."""
        if late and self.claims:
            running = self.within("running")
            overtaken = [claim for claim in self.claims if claim[0] in running and not self.model.holds(*claim)]
            some = overtaken or self.claims
            return some[-1 - which % len(some)]
        job = self.model.jobs[self.a_job(which, "running")]
        assert job.token is not None
        return job.id, job.token

    def seen(self, job: str, ahead: bool) -> int:
        """The last checkpoint that a run knows of. ``ahead``: one that a failover has lost."""
        there = self.model.jobs[job].checkpoints if job in self.model.jobs else {}
        return 99 if ahead else max(there, default=0)

    # ------------------------------------------------------------------------------------------------ producers

    @rule(jobs=st.lists(described, min_size=1, max_size=3))
    def enqueue(self, jobs: list[dict[str, Any]]) -> None:
        if len(self.within(*ACTIVE)) < 20:
            self.insert(jobs)

    def insert(self, jobs: list[dict[str, Any]]) -> None:
        ids = [self.id_of(job) for job in jobs]
        wanted, rows = [], []
        for job_id, job in zip(ids, jobs, strict=True):
            name, content, priority, delay = (job[key] for key in ("name", "content", "priority", "delay"))
            wanted.append((Job(job_id, name, content, priority), delay))
            row = {"name": name, "input": {"other": content}, "priority": priority, "delay": f"{delay} minutes"}
            rows.append(row | ({"id": job["chosen"]} if job["chosen"] else {"job_id": job_id}))
        call = protocol.enqueue_workflows(json.dumps(rows))
        try:
            self.model.enqueue(wanted)
        except Conflict:
            with pytest.raises(psycopg.Error) as refused:
                self.run(call)
            assert refused.value.sqlstate == "PQ003"
        else:
            assert self.run(call) == ids
            self.ids.extend(ids)

    def id_of(self, job: dict[str, Any]) -> str:
        """The id that a description stands for."""
        if job["chosen"] is None:
            return self.new_id()
        row = self.conn.execute("SELECT pgqueue.derived_id(%s, %s)", (job["name"], job["chosen"])).fetchone()
        assert row is not None
        return str(row[0])

    @rule(jobs=st.lists(st.tuples(which, st.sampled_from(ACTIVE), seldom), min_size=1, max_size=2))
    def cancel(self, jobs: list[tuple[int, str, bool]]) -> None:
        ids = [self.a_job(*job) for job in jobs]
        assert dict(self.run(protocol.cancel(ids))) == self.model.cancel(ids)

    @rule(jobs=st.lists(st.tuples(which, st.sampled_from(ENDED), seldom), min_size=1, max_size=2, unique_by=lambda job: job[1]))
    def requeue(self, jobs: list[tuple[int, str, bool]]) -> None:
        ids = list(dict.fromkeys(self.a_job(*job) for job in jobs))
        assert dict(self.run(protocol.requeue(ids))) == self.model.requeue(ids)

    @rule(statuses=st.lists(st.sampled_from(ENDED), min_size=1, unique=True), age=minutes)
    def prune(self, statuses: list[str], age: int) -> None:
        assert self.run(protocol.prune(statuses, 60 * age, 1000)) == self.model.prune(statuses, age)

    # -------------------------------------------------------------------------------------------------- workers

    @rule(which=which, late=seldom, amount=st.integers(1, 4), knows_all=st.booleans(), backwards=st.booleans())
    def claim(self, which: int, late: bool, amount: int, knows_all: bool, backwards: bool) -> None:
        self.take(self.a_worker(which, late), amount, knows_all, backwards)

    def take(self, worker: str, amount: int, knows_all: bool = True, backwards: bool = False) -> None:
        token, names = new_token(), ["job", "rare"] if knows_all else ["job"]
        answer = self.run(protocol.claim(worker, token, ["default"], names, amount, [0] * 20, backwards))
        got = [job.id for job, _ in answer]
        self.model.claim(worker, token, names, amount, backwards, self.left("ready"), got)
        assert [job.suspect for job, _ in answer] == [self.model.jobs[job].suspect for job in got]
        self.claims.extend((job, token) for job in got)

    @rule(which=which, late=seldom, ahead=seldom, again=seldom, error=st.booleans())
    def store(self, which: int, late: bool, ahead: bool, again: bool, error: bool) -> None:
        """A plain step. ``again``: it was stored already."""
        job, token = self.a_claim(which, late)
        seen = self.seen(job, ahead)
        seq = seen if again and seen else seen + 1
        call = protocol.store(job, token, seen, seq, "s", None if error else "1", json.dumps(ERROR) if error else None)
        try:
            expected = self.model.store(job, token, seen, seq, error)
        except Conflict:
            with pytest.raises(errors.UniqueViolation):
                self.run(call)
        else:
            assert self.run(call) == expected

    @rule(which=which, late=seldom, rolls_back=seldom, whole=seldom)
    def transaction(self, which: int, late: bool, rolls_back: bool, whole: bool) -> None:
        """A transactional step, or a ``whole`` job that is one transaction."""
        job, token = self.a_claim(which, late)
        seen = 0 if whole else self.seen(job, False)
        self.conn.execute("BEGIN")
        xid = self.run(protocol.fence(job, token, seen, 0))
        assert (xid is not None) == self.model.holds(job, token, seen)
        if xid is not None and whole:
            assert self.run(protocol.finish(job, token, "1", xid))
        elif xid is not None:
            asked = self.run(protocol.checkpoint(job, token, seen + 1, "s", "1", xid))
            assert asked == self.model.jobs[job].requested
        self.conn.execute("ROLLBACK" if rolls_back else "COMMIT")
        if xid is not None and not rolls_back:
            assert self.model.finish(job, token) if whole else self.model.store(job, token, seen, seen + 1, False) != "lost"

    @rule(batch=st.lists(st.tuples(which, seldom, endings, minutes, seldom, st.booleans()), min_size=1, max_size=3))
    def settle(self, batch: list[tuple[int, bool, str, int, bool, bool]]) -> None:
        """Rows of (which, late, how, delay, ahead, after a step that failed)."""
        rows: dict[str, tuple[str, int, str, int, dict[str, Any]]] = {}
        for which, late, how, delay, ahead, step_failed in batch:
            if step_failed:
                self.store(which, late, False, False, True)
            job, token = self.a_claim(which, late)
            there = self.model.jobs[job].checkpoints if job in self.model.jobs else {}
            failed = {**ERROR, "failed_seqs": [seq for seq, error in there.items() if error], "delay": 60 * delay}
            rows[job] = (job, token, how, self.seen(job, ahead), failed if how in ("failed", "retry") else {})
        settlements = [
            Settlement(ClaimedJob(job, token, "", "", "", 0, None), how, "1", seen, json.dumps(detail))  # type: ignore[arg-type]
            for job, token, how, seen, detail in rows.values()
        ]
        assert self.run(protocol.settle(settlements)) == self.model.settle(list(rows.values()))

    @rule(which=which, late=st.booleans(), seq=st.none() | st.integers(1, 3))
    def look(self, which: int, late: bool, seq: int | None) -> None:
        """What a worker asks before it goes on."""
        job, token = self.a_claim(which, late)
        assert self.run(protocol.resolve(job, token)) == self.model.resolve(job, token)
        assert self.run(protocol.attempts(job, seq)) == self.model.failures(job, seq)

    # --------------------------------------------------------------------------------------------- housekeepers

    @rule(delays=st.lists(minutes, max_size=3), passed=minutes, amount=st.integers(1, 4))
    def promote(self, delays: list[int], passed: int, amount: int) -> None:
        self.insert([{**PLAIN, "delay": delay} for delay in delays])
        self.conn.execute(PASS_MINUTES, (passed,))
        self.model.now += passed
        moved, _ = self.run(protocol.promote(amount))
        assert moved == self.model.promote(amount, self.left("scheduled"))

    @rule(which=which, state=st.sampled_from(["scheduled", "waiting"]), asked=often, claims=st.booleans())
    def cancel_waiting(self, which: int, state: str, asked: bool, claims: bool) -> None:
        """``claims``: a worker comes before the sweep."""
        if asked:
            self.cancel([(which, state, False)])
        if claims:
            self.take(self.a_worker(which, False), 3)
        assert self.run(protocol.cancel_waiting()) == self.model.cancel_waiting()

    @rule(which=which, late=seldom, beats=st.booleans(), claims=st.booleans())
    def lease(self, which: int, late: bool, beats: bool, claims: bool) -> None:
        """A housekeeper looks at a worker's beat, the worker beats (or does not), and the housekeeper takes the lease. Then the
        worker claims: does it notice?"""
        worker = self.a_worker(which, late)
        seen = self.model.workers[worker].beat if worker in self.model.workers else 0
        if beats:
            assert set(self.run(protocol.heartbeat(self.workers))) == self.model.heartbeat(self.workers)
        assert self.run(protocol.fence_worker(worker, seen, "silent")) == self.model.fence_worker(worker, seen, "silent")
        if claims:
            self.a_job(0, "ready")
            self.take(worker, 1)

    @rule(which=which, late=seldom, fenced=often, begun=st.integers(0, 2), tells=st.booleans(), blamed=often)
    def reap(self, which: int, late: bool, fenced: bool, begun: int, tells: bool, blamed: bool) -> None:
        """The worker of a job died, and had begun so many. Its own host reaps it, or one that knows only what the first ``tells``
        with its fence. Not ``blamed``: the worker was told to end."""
        job, _ = self.a_claim(which, late)
        worker = self.model.jobs[job].worker if job in self.model.jobs else self.a_worker(which, True)
        held = [other for other in self.within("running") if self.model.jobs[other].worker == worker and other != job]
        started, reason = [job, *held][:begun], "died" if blamed else None
        how = ([], "lost", reason) if tells else (started, "crash", reason)
        if fenced:
            fence = (worker, None, "died", started if tells and which else None)
            assert self.run(protocol.fence_worker(*fence)) == self.model.fence_worker(*fence)
        if worker in self.model.workers and not self.model.workers[worker].fenced:
            with pytest.raises(psycopg.Error) as refused:
                self.run(protocol.reap(worker, *how))
            assert refused.value.sqlstate == "PQ009"
            return
        given_back, failed, still_held = self.run(protocol.reap(worker, *how))
        assert (given_back + failed, failed) == self.model.reap(worker, *how)
        assert still_held == 0

    # ------------------------------------------------------------------------------------------------ invariants

    @invariant()
    def the_database_is_the_model(self) -> None:
        row = self.conn.execute(LOOK).fetchone()
        assert row is not None
        jobs, checkpoints, attempts, running, violations, conflicts = row
        expected = self.model.jobs.values()
        assert sorted(jobs) == sorted([job.id, job.state, job.requested] for job in expected)
        assert sorted(checkpoints) == sorted([job.id, seq, error] for job in expected for seq, error in job.checkpoints.items())
        assert sorted(attempts, key=str) == sorted(([job.id, *attempt] for job in expected for attempt in job.attempts), key=str)
        assert sorted(running) == sorted([job.id, job.token, job.worker] for job in expected if job.state == "running")
        assert (violations, conflicts) == ([], False)

    def teardown(self) -> None:
        """Everything ends, and nothing is left of it."""
        self.conn.rollback()
        if sys.exc_info()[0] is None:
            self.work_off()
            states = {row[0] for row in self.conn.execute("SELECT DISTINCT state FROM pgqueue.jobs")}
            assert states <= set(ENDED)
            self.run(protocol.prune(ENDED, 0, 1000))
            assert self.conn.execute(LEFT).fetchall() == []
        self.conn.execute(EMPTY)

    def work_off(self) -> None:
        """What one more worker and its housekeeper do, when all others are dead."""
        for row in self.run(protocol.beats()):
            self.run(protocol.fence_worker(row[0], None, "the end"))
        for worker, _ in self.run(protocol.lapsed_workers()):
            self.run(protocol.reap(worker, [], "lost", None))
        self.conn.execute(PASS_MINUTES, (1000,))
        self.run(protocol.promote(1000))
        self.run(protocol.cancel_waiting())
        worker = self.register_worker()
        answer = self.run(protocol.claim(worker, 1, ["default"], list(MAX_CRASHES), 1000, [0] * 20))
        assert self.run(protocol.settle([Settlement(job, "succeeded", "1") for job, _ in answer])) == {}
        self.run(protocol.fence_worker(worker, None, "the end"))
        self.run(protocol.reap(worker, [], "lost", None))


def play(conn: psycopg.Connection[Any], examples: int, phases: Sequence[Phase] = (Phase.generate, Phase.shrink)) -> None:
    print(f"again with PGQUEUE_TEST_SEED={SEED} PGQUEUE_TEST_EXAMPLES={examples}")

    def machine() -> Verbs:
        return Verbs(conn)

    how = settings(
        max_examples=examples,
        stateful_step_count=STEPS,
        phases=phases,
        deadline=None,
        database=None,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(hypothesis.seed(SEED)(machine), settings=how)


@pytest.fixture
def verbs(conn: psycopg.Connection[Any]) -> psycopg.Connection[Any]:
    conn.execute(CLOCK)
    run(conn, protocol.register_app("[]", REGISTERED))
    return conn


def test_any_sequence_of_verbs(verbs: psycopg.Connection[Any]) -> None:
    play(verbs, EXAMPLES)


FUNCTIONS = Path(pgqueue.__file__).parent / "sql" / "functions"

#: What is wrong: the function, its right text, and the wrong one.
MUTANTS = {
    "claim takes the youngest": ("claim", "ORDER BY r.pos LIMIT wanted FOR", "ORDER BY r.pos DESC LIMIT wanted FOR"),
    "promote takes the youngest": ("promote", "ORDER BY s.run_at LIMIT amount", "ORDER BY s.run_at DESC LIMIT amount"),
    "reap blames one of many": ("reap", "count(*) = 1 INTO alone", "true INTO alone"),
    "fence without continuity": ("fence", "AND NOT pgqueue.continues(job, seen)", "AND false"),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_wrong_verb_is_noticed(verbs: psycopg.Connection[Any], mutant: str) -> None:
    function, right, wrong = MUTANTS[mutant]
    text = (FUNCTIONS / f"{function}.sql").read_text()
    assert text.count(right) == 1
    verbs.execute(text.replace(right, wrong))
    with pytest.raises(AssertionError):
        play(verbs, 1000, [Phase.generate])
