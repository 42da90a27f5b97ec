"""Races of two and three sessions: every order of their statements, on real connections (see chaos/interleaver.py).

A verb usually runs as ``BEGIN; verb; COMMIT``, so that the others also get their turns between the verb and its commit. After
every turn the watch looks at what is committed; after every order the test compares it with what the sessions were told, and
then everything is worked off: each job must end.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import errors

import pgqueue
from chaos.databases import COPY
from chaos.interleaver import Connection, Interleaver, Order, Program, Results
from pgqueue import protocol
from pgqueue.database import run
from pgqueue.housekeeper.housekeeper import NOBODY_BEHIND
from pgqueue.ids import Process, new_job_id, new_token
from pgqueue.model import ClaimedJob, Settlement
from pgqueue.protocol import Call
from tests.support import Server, database_of, states


@pytest.fixture(scope="module")
def dsn(server: Server, template: str) -> Iterator[str]:
    """One database for all races. Nobody here crashes the server, so nobody waits for its disk."""
    name = f"pgqueue_races_{os.getpid()}"
    with psycopg.connect(server.dsn, autocommit=True) as conn:
        conn.execute(f"CREATE DATABASE {name} TEMPLATE {template} {COPY}")
        conn.execute(f"ALTER DATABASE {name} SET synchronous_commit = off")
    dsn = database_of(server.dsn, name)
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("CREATE OR REPLACE FUNCTION pgqueue.durable_commit() RETURNS void LANGUAGE sql AS ''")
        # Nothing is unique in it: doubles must show.
        conn.execute("CREATE TABLE effect (job_id uuid NOT NULL, claim bigint NOT NULL)")
    yield dsn
    with psycopg.connect(server.dsn, autocommit=True) as conn:
        conn.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="module")
def direct_dsn(dsn: str) -> str:
    """Where ``conn`` looks."""
    return dsn


@pytest.fixture(scope="module")
def interleaver(dsn: str) -> Iterator[Interleaver]:
    with Interleaver(dsn) as interleaver:
        yield interleaver


@pytest.fixture
def race(interleaver: Interleaver, conn: Connection) -> Race:
    """Runs races in tables in which nothing is left from a test that failed, and with all the time in the world."""
    for table in (*FACTS, "ready", "running", "scheduled", "waiting", "worker", "wakeup", "event"):
        conn.execute(f"DELETE FROM pgqueue.{table}")
    conn.execute("DELETE FROM effect")
    conn.execute("SELECT setval('pgqueue.conflict', 1, false)")
    conn.execute("ALTER FUNCTION pgqueue.resolve SET lock_timeout = '60s'")
    return Race(interleaver)


# --------------------------------------------------------------------------------------------- what races begin with


@dataclass(frozen=True)
class Scene:
    """The jobs of one order, and the worker that holds them, if one does."""

    ids: list[str]
    worker: str
    held: list[ClaimedJob] = field(default_factory=list)
    fenced: list[str] = field(default_factory=list)  # jobs of which a transaction has begun

    @property
    def job(self) -> ClaimedJob:
        return self.held[0]


Setup = Callable[[Connection], Scene]
Sessions = Callable[[Scene], Program]


def enqueue(ids: Sequence[str], **options: Any) -> Call[list[str]]:
    return protocol.enqueue_workflows(json.dumps([{"name": "job", "queue": "default", "job_id": i, **options} for i in ids]))


def new_worker(conn: Connection) -> str:
    worker = str(uuid.uuid4())
    run(conn, protocol.register_worker(worker, Process.of(os.getpid())))
    return worker


def claim(worker: str, amount: int = 100, names: Sequence[str] = ("job",)) -> Call[Any]:
    return protocol.claim(worker, new_token(), ["default"], list(names), amount, [0] * 20)


def ready(count: int = 1, **options: Any) -> Setup:
    def setup(conn: Connection) -> Scene:
        return Scene(run(conn, enqueue([new_job_id() for _ in range(count)], **options)), new_worker(conn))

    return setup


def held(count: int = 1, fenced: bool = False) -> Setup:
    def setup(conn: Connection) -> Scene:
        scene = ready(count)(conn)
        jobs = [job for job, _ in run(conn, claim(scene.worker))]
        if fenced:
            run(conn, protocol.fence_worker(scene.worker, None, "test"))
        return Scene([job.id for job in jobs], scene.worker, jobs)

    return setup


def due(conn: Connection) -> Scene:
    """A scheduled job whose time has come."""
    scene = ready(delay="1 hour")(conn)
    make_due(conn)
    return scene


def put_aside(conn: Connection) -> Scene:
    """A job that waits for a worker that knows it."""
    scene = ready()(conn)
    run(conn, claim(scene.worker, names=["another"]))
    return scene


def ended(how: str) -> Setup:
    def setup(conn: Connection) -> Scene:
        scene = held()(conn)
        assert run(conn, settlement(scene, how)) == {}
        return scene

    return setup


def make_due(conn: Connection) -> None:
    conn.execute("UPDATE pgqueue.scheduled SET run_at = pgqueue.clock() - interval '1 second'")


# -------------------------------------------------------------------------------------------------------- sessions


def transaction(*calls: Call[Any], end: str = "COMMIT") -> Program:
    """BEGIN; the calls; COMMIT. The last answer."""
    answer = None
    yield "BEGIN"
    for call in calls:
        answer = yield call
    yield end
    return answer


DETAILS = {
    "failed": {"errors": [{"error": {"type": "E"}}], "failed_seqs": []},
    "retry": {"errors": [{"error": {"type": "E"}}], "delay": 60, "failed_seqs": []},
    "retry at once": {"errors": [{"error": {"type": "E"}}], "delay": 0, "failed_seqs": []},
}
WHERE_TO = {"succeeded": "succeeded", "failed": "failed", "retry": "scheduled", "retry at once": "ready", "release": "ready"}
ENDS = ("succeeded", "failed")


def settlement(scene: Scene, how: str) -> Call[dict[str, str]]:
    """All jobs of the scene in one settlement."""
    detail = json.dumps(DETAILS[how]) if how in DETAILS else None
    result = "1" if how == "succeeded" else None
    return protocol.settle([Settlement(job, how.split()[0], result, 0, detail) for job in scene.held])  # type: ignore[arg-type]


def settling(how: str) -> Sessions:
    return lambda scene: transaction(settlement(scene, how))


def reaping(kind: str = "crash", started: bool = True) -> Sessions:
    return lambda scene: transaction(protocol.reap(scene.worker, scene.ids[:1] if started else [], kind, "died"))


def cancelling(scene: Scene) -> Program:
    rows = yield from transaction(protocol.cancel(scene.ids))
    return rows[0][1]


def alone(call: Call[Any]) -> Program:
    """The verb in a transaction of its own: one turn, for a session that only has to have been there."""
    return (yield call)


def sweeping(scene: Scene) -> Program:
    return alone(protocol.cancel_waiting())


def promoting(scene: Scene) -> Program:
    return transaction(protocol.promote(100))


def claiming(amount: int = 100, end: str = "COMMIT") -> Sessions:
    def program(scene: Scene) -> Program:
        jobs = yield from transaction(claim(scene.worker, amount), end=end)
        return [job for job, _ in jobs]

    return program


def claiming_at_once(scene: Scene) -> Program:
    return alone(claim(scene.worker))


def requeueing(scene: Scene) -> Program:
    rows = yield from transaction(protocol.requeue(scene.ids))
    return rows[0][1]


def pruning(scene: Scene) -> Program:
    return transaction(protocol.prune(["succeeded", "failed", "cancelled"], 0, 100))


def stepping(isolation: str = "READ COMMITTED", number: int = 0, seen: int = 0) -> Sessions:
    """A transactional step, after so many others."""

    def program(scene: Scene) -> Program:
        job = scene.held[number]
        fence = protocol.fence(job.id, job.token, seen, 0)
        return _inside(scene, job, isolation, fence, lambda xid: protocol.checkpoint(job.id, job.token, seen + 1, "s", "1", xid))

    return program


def finishing(isolation: str = "READ COMMITTED", number: int = 0) -> Sessions:
    """A job that is one transaction."""

    def program(scene: Scene) -> Program:
        job = scene.held[number]
        fence = protocol.fence(job.id, job.token, 0, 0)
        return _inside(scene, job, isolation, fence, lambda xid: protocol.finish(job.id, job.token, "1", xid))

    return program


def _inside(scene: Scene, job: ClaimedJob, isolation: str, fence: Call[Any], closing: Callable[[str], Call[Any]]) -> Program:
    yield f"BEGIN ISOLATION LEVEL {isolation}"
    xid = yield fence
    if xid is None:
        yield "ROLLBACK"
        return "lost"
    scene.fenced.append(job.id)
    call = closing(xid)
    write = f"INSERT INTO effect VALUES ('{job.id}', {job.token})"
    yield Call(f"WITH user_code AS ({write}) {call.sql}", call.params, call.read)  # nobody sees a difference between one and two
    yield "COMMIT"
    return "committed"


def resolving(scene: Scene) -> Program:
    """What a worker does after it lost the connection of a transaction: wait for the old session, then read what there is."""
    yield "SELECT 'the connection is lost'"
    if not scene.fenced:
        return "nothing is in doubt", None
    answer = yield protocol.resolve(scene.job.id, scene.job.token)
    return answer, (yield protocol.history(scene.job.id, 0)) if answer == "held" else None


# ---------------------------------------------------------------------------------------------------------- oracles

LEGAL = {
    (None, "ready"), (None, "scheduled"), (None, "waiting"),
    ("ready", "running"), ("ready", "waiting"), ("ready", "cancelled"), ("ready", "scheduled"),
    ("scheduled", "ready"), ("scheduled", "cancelled"),
    ("waiting", "running"), ("waiting", "cancelled"), ("waiting", "ready"),
    ("running", "ready"), ("running", "scheduled"), ("running", "waiting"),
    ("running", "succeeded"), ("running", "failed"), ("running", "cancelled"),
    ("failed", "ready"), ("cancelled", "ready"),
    ("succeeded", None), ("failed", None), ("cancelled", None),
}  # fmt: skip


class Watch:
    """Compares what is committed after each turn with what was committed before it. A turn commits at most once.

    * Every job is in exactly one place, and goes from there only where the protocol lets it.
    * A checkpoint or outcome of a claim appears only where that claim was held until then: zombies change nothing.
    """

    def start(self, conn: Connection) -> None:
        self._look(conn)

    def __call__(self, conn: Connection) -> None:
        places, claims, facts = self.places, self.claims, self.facts
        self._look(conn)
        for job in places.keys() | self.places.keys():
            move = places.get(job), self.places.get(job)
            assert move[0] == move[1] or move in LEGAL, f"job {job} went from {move[0]} to {move[1]}"
            if move == ("running", "running"):
                assert claims[job] == self.claims[job], f"job {job} went from one holder to another"
        for job, what, token in self.facts - facts:
            assert claims.get(job) == token, f"{what} of job {job} was written by claim {token}, but {claims.get(job)} held it"

    def _look(self, conn: Connection) -> None:
        row = conn.execute(LOOK).fetchone()
        assert row is not None
        self.places, self.claims, facts, violations, conflicts = row
        self.facts = {tuple(fact) for fact in facts}
        assert (violations, conflicts) == ([], False)


LOOK = """
    SELECT (SELECT coalesce(json_object_agg(id, state), '{}') FROM pgqueue.jobs),
           (SELECT coalesce(json_object_agg(job_id, claim), '{}') FROM pgqueue.running),
           (SELECT coalesce(json_agg(json_build_array(job_id, what, claim)), '[]')
              FROM (SELECT job_id, 'checkpoint ' || seq AS what, claim FROM pgqueue.checkpoint
                    UNION ALL SELECT job_id, 'outcome', claim FROM pgqueue.outcome WHERE claim IS NOT NULL) facts),
           (SELECT coalesce(json_agg(v), '[]') FROM pgqueue.violations v),
           (SELECT is_called FROM pgqueue.conflict)
"""  # one snapshot of all


FACTS = ("job", "outcome", "checkpoint", "attempt", "cancel_request", "wait", "message", "unique_job")
LEFT = " UNION ALL ".join(f"SELECT '{table}', to_json(t) FROM pgqueue.{table} t" for table in FACTS)

Check = Callable[[Connection, Scene, Results], None]


class Race:
    """All orders of some sessions, under the watch."""

    def __init__(self, interleaver: Interleaver) -> None:
        self._interleaver = interleaver

    def __call__(
        self, setup: Setup, check: Check, then: Check | None = None, may_fail: bool = False, **sessions: Sessions
    ) -> list[Order]:
        """``check`` looks at where each order led, and ``then`` at what became of it when all jobs have ended. Nothing is left of
        them when they are pruned."""
        watch = Watch()

        def prepare(conn: Connection) -> Scene:
            scene = setup(conn)
            watch.start(conn)
            return scene

        def judge(conn: Connection, scene: Scene, results: Results) -> None:
            if not may_fail:
                assert [r for r in results.values() if isinstance(r, Exception)] == []
            check(conn, scene, results)
            with conn.transaction():
                conn.execute(WORK_OFF)
                watch.start(conn)
                assert set(watch.places.values()) <= {"succeeded", "failed", "cancelled"}
                if then is not None:
                    then(conn, scene, results)
                run(conn, protocol.prune(["succeeded", "failed", "cancelled"], 0, 100))
                assert conn.execute(LEFT).fetchall() == [], "this was forgotten by prune"

        return self._interleaver.run(sessions, prepare, judge, watch)


#: What housekeepers and one more worker do until nothing is left. Whoever was in the race is dead by now.
WORK_OFF = """
    SELECT pgqueue.fence_worker(w.id, NULL, 'the race is over') FROM pgqueue.worker w;
    SELECT pgqueue.reap(l.worker, '{}', 'lost', NULL) FROM pgqueue.lapsed_workers() l;
    UPDATE pgqueue.scheduled SET run_at = pgqueue.clock() - interval '1 second';
    SELECT pgqueue.promote(100);
    SELECT pgqueue.cancel_waiting();
    UPDATE pgqueue.waiting SET until = pgqueue.clock() - interval '1 second' WHERE kind <> 'name';
    SELECT pgqueue.wake(100, '00000000-0000-0000-0000-000000000000');
    SELECT pgqueue.register_worker('00000000-0000-4000-8000-000000000001', 'host', 'boot', 'pids', 1, 1);
    SELECT pgqueue.settle(array_agg(c.job_id), array_agg(1::bigint), array_agg('succeeded'::text), array_agg('2'::text),
                          array_agg(0), array_agg(NULL::json))
      FROM pgqueue.claim('00000000-0000-4000-8000-000000000001', 1, '{default}', '{job}', 100,
                         array_fill(0::bigint, '{20}'), false) c;
    DELETE FROM pgqueue.worker;
"""


def state(conn: Connection, scene: Scene) -> str | None:
    """Where the first job is."""
    row = run(conn, protocol.job_row(scene.ids[0]))
    return row[4] if row else None


def became(status: str) -> Check:
    def then(conn: Connection, scene: Scene, results: Results) -> None:
        assert state(conn, scene) == status

    return then


def count(conn: Connection, table: str, scene: Scene) -> int:
    row = conn.execute(f"SELECT count(*) FROM {table} WHERE job_id = ANY (%s)", (scene.ids,)).fetchone()
    assert row is not None
    return int(row[0])


def attempts(conn: Connection, scene: Scene) -> list[tuple[str, str]]:
    """(job id, kind) of each run that did not succeed."""
    return sorted(conn.execute("SELECT job_id, kind FROM pgqueue.attempt WHERE job_id = ANY (%s)", (scene.ids,)).fetchall())


def waited(orders: Sequence[Order]) -> set[str]:
    """Who had to wait for a lock, as ``session: statement``."""
    return {line.removesuffix(" waits") for order in orders for line in order.story if line.endswith(" waits")}


# ------------------------------------------------------------------------------------------------- ending a claim


@pytest.mark.parametrize("how", WHERE_TO)
def test_settle_and_reap(race: Race, how: str) -> None:
    """Either the settlement counts or the reap does. The loser is told so, also when it asks again."""

    def check(conn: Connection, scene: Scene, results: Results) -> None:
        settled = results["settle"] == {}
        given_back, poisoned, _ = results["reap"]
        assert (settled, given_back, poisoned) in [(True, 0, 0), (False, 1, 0)]
        assert state(conn, scene) == (WHERE_TO[how] if settled else "ready")
        expected = ["error"] * (how in DETAILS) if settled else ["crash"]
        assert [kind for _, kind in attempts(conn, scene)] == expected
        again = run(conn, settlement(scene, how))
        assert again == ({} if settled and how in ENDS else {scene.job.id: "lost"})

    orders = race(held(fenced=True), check, settle=settling(how), reap=reaping())
    assert len(orders) == 6
    assert waited(orders) == set()


@pytest.mark.parametrize("how", WHERE_TO)
def test_cancel_and_settle(race: Race, how: str) -> None:
    """A job that settles while somebody asks to cancel it ends once, and never runs again."""

    def check(conn: Connection, scene: Scene, results: Results) -> None:
        assert results["settle"] == {}
        ended = state(conn, scene) if how in ENDS else None
        assert results["cancel"] in ("requested", ended, "cancelled")

    def then(conn: Connection, scene: Scene, results: Results) -> None:
        assert state(conn, scene) == (how if how in ENDS else "cancelled")
        run(conn, protocol.requeue(scene.ids))
        conn.execute(WORK_OFF)
        assert state(conn, scene) == "succeeded"  # the request was about the run before

    race(held(), check, then, settle=settling(how), cancel=cancelling)


@pytest.mark.parametrize("how", ["succeeded", "retry"])
def test_release_and_settle(race: Race, how: str) -> None:
    """The housekeeper gives a claim back because its worker does not seem to know it, and the worker settles it."""

    def check(conn: Connection, scene: Scene, results: Results) -> None:
        settled, released = results["settle"] == {}, results["release"] == {}
        assert settled or released
        assert not (settled and released) or how in ENDS  # then {} says of the release that this claim has ended already
        assert state(conn, scene) == (WHERE_TO[how] if settled else "ready")

    race(held(), check, settle=settling(how), release=settling("release"))


def test_the_same_settlement_twice(race: Race) -> None:
    """A worker that lost its connection sends it again, and the first one was not dead yet."""

    def check(conn: Connection, scene: Scene, results: Results) -> None:
        assert {} in results.values()
        assert state(conn, scene) == "succeeded"
        assert run(conn, settlement(scene, "succeeded")) == {}

    race(held(2), check, first=settling("succeeded"), again=settling("succeeded"))


@pytest.mark.parametrize(("kind", "jobs"), [("crash", 2), ("lost", 1)])
def test_two_reapers(race: Race, kind: str, jobs: int) -> None:
    """Each job comes back once, and one job is charged, once."""

    def check(conn: Connection, scene: Scene, results: Results) -> None:
        assert results["one"][0] + results["two"][0] == jobs
        assert attempts(conn, scene) == [(scene.ids[0], "crash")]

    orders = race(held(jobs, fenced=True), check, one=reaping(kind), two=reaping(kind))
    assert waited(orders) <= {"one: reap", "two: reap"}  # for the row of the worker, which both delete


def test_reap_and_cancel(race: Race) -> None:
    def check(conn: Connection, scene: Scene, results: Results) -> None:
        assert results["reap"][0] == 1

    race(held(fenced=True), check, became("cancelled"), reap=reaping(), cancel=cancelling)


# -------------------------------------------------------------------------------------------------- taking a claim


def test_two_claimers(race: Race) -> None:
    def check(conn: Connection, scene: Scene, results: Results) -> None:
        claimed = [job.id for jobs in results.values() for job in jobs]
        assert sorted(claimed) == sorted(scene.ids)

    orders = race(ready(3), check, one=claiming(2), two=claiming(2))
    assert waited(orders) == set()


def test_two_claimers_of_which_one_rolls_back(race: Race) -> None:
    def check(conn: Connection, scene: Scene, results: Results) -> None:
        assert {job.id for job in results["one"]} <= set(scene.ids)
        assert count(conn, "pgqueue.running", scene) == len(results["one"]) > 0

    race(ready(3), check, one=claiming(2), neither=claiming(2, end="ROLLBACK"))


def test_a_row_too_many_is_claimed_once(conn: Connection, race: Race) -> None:
    """It cannot be there. If it is, no job is handed out twice, not even to one worker, and the row is counted."""
    scene = ready()(conn)
    conn.execute("INSERT INTO pgqueue.ready SELECT queue, lane, nextval('pgqueue.position'), job_id FROM pgqueue.ready")
    assert [job.id for job, _ in run(conn, claim(scene.worker))] == scene.ids
    assert conn.execute("SELECT is_called FROM pgqueue.conflict").fetchone() == (True,)


@pytest.mark.parametrize("begin", [ready(), put_aside], ids=["ready", "put aside"])
def test_claim_and_cancel(race: Race, begin: Setup) -> None:
    """A job whose cancelling was acknowledged before a claim is not handed out. One that is asked for later hears of it at its
    first step."""

    def claiming_late(scene: Scene) -> Program:
        requests = yield "SELECT count(*) FROM pgqueue.cancel_request"
        jobs = yield from claiming()(scene)
        return requests == [(1,)], jobs

    def check(conn: Connection, scene: Scene, results: Results) -> None:
        requested_before, jobs = results["claim"]
        assert not (requested_before and jobs)
        assert results["cancel"] in ("requested", "cancelled")
        for job in jobs:
            assert run(conn, protocol.store(job.id, job.token, 0, 1, "s", "1", None)) == "cancel"

    race(begin, check, became("cancelled"), claim=claiming_late, cancel=cancelling, sweep=sweeping)


def test_promote_and_cancel(race: Race) -> None:
    def check(conn: Connection, scene: Scene, results: Results) -> None:
        assert results["promote"][0] + results["sweep"] <= 1

    orders = race(due, check, became("cancelled"), promote=promoting, cancel=cancelling, sweep=sweeping)
    assert waited(orders) == set()


def test_two_promoters_and_a_claimer(race: Race) -> None:
    def check(conn: Connection, scene: Scene, results: Results) -> None:
        assert results["one"][0] + results["two"][0] == 1

    orders = race(due, check, one=promoting, two=promoting, claim=claiming_at_once)
    assert waited(orders) == set()


def test_a_claim_that_commits_after_its_worker_was_reaped(race: Race) -> None:
    """Its jobs belong to a worker without a row, and are found by that."""

    def burying(scene: Scene) -> Program:
        yield from transaction(protocol.fence_worker(scene.worker, None, "died"))
        return (yield from reaping()(scene))

    def check(conn: Connection, scene: Scene, results: Results) -> None:
        if results["claim"] and results["bury"][0] == 0:
            assert [row[0] for row in run(conn, protocol.lapsed_workers())] == [scene.worker]
            assert run(conn, protocol.reap(scene.worker, [], "lost", None))[0] == 1

    race(ready(), check, claim=claiming(), bury=burying)


# --------------------------------------------------------------------------------------------- inside transactions

ISOLATIONS = ("READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE")


def effects_are_facts(fact: str) -> Check:
    """What the transactions wrote is there exactly where their checkpoint (or outcome) is, and what they heard is true."""

    def check(conn: Connection, scene: Scene, results: Results) -> None:
        written = conn.execute("SELECT job_id, claim FROM effect WHERE job_id = ANY (%s)", (scene.ids,)).fetchall()
        stored = conn.execute(f"SELECT job_id, claim FROM pgqueue.{fact}").fetchall()
        assert sorted(written) == sorted(stored)
        assert list(results.values()).count("committed") == len(written)

    return check


def is_conflict(result: Any) -> bool:
    return isinstance(result, errors.SerializationFailure)


@pytest.mark.parametrize("isolation", ISOLATIONS)
@pytest.mark.parametrize("other", ["reap", "settle"])
def test_a_step_against_who_ends_its_claim(race: Race, isolation: str, other: str) -> None:
    """Nobody takes the job out of the middle of a step, and nobody waits for it."""

    def check(conn: Connection, scene: Scene, results: Results) -> None:
        effects_are_facts("checkpoint")(conn, scene, results)
        step = results["step"]
        assert step in ("committed", "lost") or (is_conflict(step) and isolation != "READ COMMITTED")

    ending = reaping() if other == "reap" else settling("release")
    orders = race(held(fenced=other == "reap"), check, may_fail=True, step=stepping(isolation), other=ending)
    assert waited(orders) == {"step: fence"}


def test_settle_and_reap_and_step(race: Race) -> None:
    def check(conn: Connection, scene: Scene, results: Results) -> None:
        effects_are_facts("checkpoint")(conn, scene, results)
        assert (results["settle"] == {}) + results["reap"][0] <= 1

    orders = race(held(fenced=True), check, settle=settling("release"), reap=reaping(), step=stepping())
    assert waited(orders) == {"step: fence"}


@pytest.mark.parametrize("zombie", ["settle", "store", "step", "finish"])
def test_a_zombie_and_its_successor(race: Race, zombie: str) -> None:
    """A worker that lost its lease goes on, while its job is reaped and claimed by another."""
    late = {
        "settle": settling("succeeded"),
        "store": lambda scene: transaction(protocol.store(scene.job.id, scene.job.token, 0, 1, "s", "1", None)),
        "step": stepping(),
        "finish": finishing(),
    }[zombie]

    def taking_over(scene: Scene) -> Program:
        successor = str(uuid.uuid4())
        yield protocol.register_worker(successor, Process.of(os.getpid()))
        yield protocol.reap(scene.worker, [], "lost", "silent")
        return (yield claim(successor))

    def check(conn: Connection, scene: Scene, results: Results) -> None:
        assert results["zombie"] in ({}, "stored", "committed", "lost", {scene.job.id: "lost"}, {scene.job.id: "busy"})
        facts = conn.execute("SELECT claim FROM pgqueue.checkpoint UNION ALL SELECT claim FROM pgqueue.outcome").fetchall()
        assert facts == ([(scene.job.token,)] if results["zombie"] in ({}, "stored", "committed") else [])

    race(held(fenced=True), check, zombie=late, successor=taking_over)


@pytest.mark.parametrize("other", ["reap", "settle", "cancel"])
def test_finish(race: Race, other: str) -> None:
    """A job that is one transaction, against who takes it away or wants it cancelled."""
    ending = {"reap": reaping(), "settle": settling("succeeded"), "cancel": cancelling}[other]

    def check(conn: Connection, scene: Scene, results: Results) -> None:
        written = count(conn, "effect", scene)
        assert written == (results["finish"] == "committed")
        if written:
            assert run(conn, protocol.job_value(scene.ids[0]))[1:] == ("succeeded", "{}", "1", None)  # type: ignore[index]
            assert results["other"] in ((0, 0, 0), (0, 0, 1), {}, {scene.job.id: "busy"}, "requested", "succeeded")

    orders = race(held(fenced=other == "reap"), check, finish=finishing(), other=ending)
    assert waited(orders) <= {"finish: fence"}


@pytest.mark.parametrize("session", [stepping, finishing], ids=["step", "finish"])
def test_the_same_transaction_twice(race: Race, session: Callable[[], Sessions]) -> None:
    """Two sessions of one claim (the first was thought dead): one commits. The runtime waits with ``resolve`` and so meets none
    of the conflicts that are possible here."""

    def check(conn: Connection, scene: Scene, results: Results) -> None:
        effects_are_facts("checkpoint" if session is stepping else "outcome")(conn, scene, results)
        (other,) = [result for result in results.values() if result != "committed"]
        assert other == "lost" or isinstance(other, (errors.UniqueViolation, errors.DeadlockDetected))

    race(held(), check, may_fail=True, one=session(), two=session())


@pytest.mark.parametrize("session", [stepping, finishing], ids=["step", "finish"])
def test_resolve(race: Race, session: Callable[[], Sessions]) -> None:
    """After a lost connection: whatever the worker reads when the old session has let go is final."""

    def check(conn: Connection, scene: Scene, results: Results) -> None:
        answer, history = results["resolve"]
        if answer == "held":
            assert count(conn, "pgqueue.outcome", scene) == 0
            assert run(conn, protocol.history(scene.job.id, 0)) == history
        if answer == "settled":
            assert state(conn, scene) == "succeeded"
        assert answer in ("held", "settled", "nothing is in doubt")

    orders = race(held(), check, old=session(), resolve=resolving)
    assert "resolve: resolve" in waited(orders)


def test_resolve_and_reap(race: Race) -> None:
    def check(conn: Connection, scene: Scene, results: Results) -> None:
        effects_are_facts("checkpoint")(conn, scene, {"old": results["old"]})
        answer, history = results["resolve"]
        if answer == "held":
            assert run(conn, protocol.history(scene.job.id, 0)) == history

    race(held(fenced=True), check, old=stepping(), resolve=resolving, reap=reaping())


def test_unrelated_serializable_transactions_never_fail_each_other(race: Race) -> None:
    """Steps of two jobs that both have a history."""

    def begin(conn: Connection) -> Scene:
        scene = held(2)(conn)
        for job in scene.held:
            assert run(conn, protocol.store(job.id, job.token, 0, 1, "s", "1", None)) == "stored"
        return scene

    def check(conn: Connection, scene: Scene, results: Results) -> None:
        assert set(results.values()) == {"committed"}

    orders = race(begin, check, one=stepping("SERIALIZABLE", 0, seen=1), two=stepping("SERIALIZABLE", 1, seen=1))
    assert waited(orders) == set()


def test_unrelated_serializable_jobs_never_fail_each_other(race: Race) -> None:
    def check(conn: Connection, scene: Scene, results: Results) -> None:
        assert set(results.values()) == {"committed"}

    orders = race(held(2), check, one=finishing("SERIALIZABLE", 0), two=finishing("SERIALIZABLE", 1))
    assert waited(orders) == set()


# ------------------------------------------------------------------------------------------------------- producers


def enqueueing(isolation: str, number: str = "1", end: str = "COMMIT") -> Sessions:
    """A producer that read something before it enqueues, so that its snapshot is older."""

    def program(scene: Scene) -> Program:
        yield f"BEGIN ISOLATION LEVEL {isolation}"
        yield "SELECT 1"
        ids = yield protocol.enqueue_workflows(
            json.dumps([{"name": "job", "queue": "default", "id": "chosen", "input": {"n": number}}])
        )
        yield end
        return ids

    return program


def nothing(conn: Connection) -> Scene:
    return Scene([], "")


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_the_same_id_twice(race: Race, isolation: str) -> None:
    """One job; both are told its id. Above READ COMMITTED the second must fail where it cannot see the first."""

    def check(conn: Connection, scene: Scene, results: Results) -> None:
        jobs = [row[0] for row in conn.execute("SELECT id FROM pgqueue.jobs").fetchall()]
        assert len(jobs) == 1
        assert all(result == jobs or (is_conflict(result) and isolation != ISOLATIONS[0]) for result in results.values())

    orders = race(nothing, check, may_fail=True, one=enqueueing(isolation), two=enqueueing(isolation))
    refused = sum("SerializationFailure" in str(order) for order in orders)
    assert (refused > 0) == (isolation != "READ COMMITTED")


def test_the_same_id_twice_and_one_rolls_back(race: Race) -> None:
    def check(conn: Connection, scene: Scene, results: Results) -> None:
        assert [row[0] for row in conn.execute("SELECT id FROM pgqueue.jobs").fetchall()] == results["two"]

    race(nothing, check, one=enqueueing(ISOLATIONS[0], end="ROLLBACK"), two=enqueueing(ISOLATIONS[0]))


def test_the_same_id_with_other_content(race: Race) -> None:
    def check(conn: Connection, scene: Scene, results: Results) -> None:
        refused = [result for result in results.values() if isinstance(result, psycopg.Error)]
        assert [error.sqlstate for error in refused] == ["PQ003"]

    race(nothing, check, may_fail=True, one=enqueueing(ISOLATIONS[0], "1"), two=enqueueing(ISOLATIONS[0], "2"))


def producing(scene: Scene) -> Program:
    """Two jobs in one SERIALIZABLE transaction."""
    yield "BEGIN ISOLATION LEVEL SERIALIZABLE"
    yield enqueue([new_job_id()])
    yield enqueue([new_job_id()])
    yield "COMMIT"


def test_unrelated_serializable_producers_never_fail_each_other(race: Race) -> None:
    def check(conn: Connection, scene: Scene, results: Results) -> None:
        assert states(conn) == {"ready": 4}

    orders = race(nothing, check, one=producing, two=producing)
    assert waited(orders) == set()


def test_no_work_of_workers_fails_a_serializable_producer(race: Race) -> None:
    def working(scene: Scene) -> Program:
        yield settlement(scene, "succeeded")
        yield protocol.heartbeat([scene.worker])
        yield protocol.listen_idle(1)
        yield claim(scene.worker)

    def check(conn: Connection, scene: Scene, results: Results) -> None:
        assert sum(states(conn).values()) == 3

    orders = race(held(), check, producer=producing, worker=working)
    assert waited(orders) == set()


def test_two_batches_with_the_same_ids_in_another_order(race: Race) -> None:
    """Both batches become jobs. Or the server ends one of them, as a deadlock: then all of it is rolled back."""
    a, b, c, d = sorted(new_job_id() for _ in range(4))

    def batch(*ids: str, end: str = "COMMIT") -> Sessions:
        return lambda scene: transaction(enqueue(ids), end=end)

    def check(conn: Connection, scene: Scene, results: Results) -> None:
        one, two = results["one"] == [a, b, c], results["two"] == [d, b, a]
        assert one or isinstance(results["one"], errors.DeadlockDetected)
        assert two or isinstance(results["two"], errors.DeadlockDetected)
        assert one or two
        expected = {a, b} | ({c} if one else set()) | ({d} if two else set())
        assert {row[0] for row in conn.execute("SELECT id FROM pgqueue.jobs").fetchall()} == expected

    # The third had one of the ids first, and so decides in which order the others wait.
    race(nothing, check, may_fail=True, one=batch(a, b, c), two=batch(d, b, a), three=batch(a, end="ROLLBACK"))


# ---------------------------------------------------------------------------------------------------- ended jobs


def test_requeue_and_prune(race: Race) -> None:
    """The outcome is the gate: one of them goes through."""

    def check(conn: Connection, scene: Scene, results: Results) -> None:
        pruned = results["prune"]
        assert (results["requeue"], pruned) in [("requeued", 0), ("unknown", 1)]
        assert state(conn, scene) == (None if pruned else "ready")

    race(ended("failed"), check, requeue=requeueing, prune=pruning)


def test_requeue_twice_and_claim(race: Race) -> None:
    def check(conn: Connection, scene: Scene, results: Results) -> None:
        assert sorted([results["one"], results["two"]]) == ["active", "requeued"]
        assert [kind for _, kind in attempts(conn, scene)] == ["error", "requeue"]

    race(ended("failed"), check, one=requeueing, two=requeueing, claim=claiming_at_once)


def test_requeue_and_cancel(race: Race) -> None:
    """A job is cancelled if, and only if, it had been requeued before it was asked for."""

    def check(conn: Connection, scene: Scene, results: Results) -> None:
        assert results["requeue"] == "requeued"
        assert results["cancel"] in ("failed", "requested")

    def then(conn: Connection, scene: Scene, results: Results) -> None:
        assert state(conn, scene) == ("cancelled" if results["cancel"] == "requested" else "succeeded")

    race(ended("failed"), check, then, requeue=requeueing, cancel=cancelling)


def test_cancel_and_settle_and_requeue_behind_them(race: Race) -> None:
    """What was asked of the run before does not end the next one."""

    def asking(scene: Scene) -> Program:
        yield from cancelling(scene)
        return (yield from requeueing(scene))

    def then(conn: Connection, scene: Scene, results: Results) -> None:
        assert (results["ask"], state(conn, scene)) in [("requeued", "succeeded"), ("active", "failed")]

    race(held(), lambda conn, scene, results: None, then, settle=settling("failed"), ask=asking)


def taken_along(where: str) -> Setup:
    """A job that was cancelled, and of two children that are to end with it the first one."""

    def setup(conn: Connection) -> Scene:
        parent = held()(conn)
        more = {"parent": parent.ids[0], "parent_seq": 2} | ({"delay": "1 hour"} if where == "scheduled" else {})
        ids = [run(conn, enqueue([new_job_id()], **more, ordinal=n))[0] for n in range(2)]
        jobs = [job for job, _ in run(conn, claim(parent.worker))] if where == "running" else []
        run(conn, protocol.cancel(parent.ids))
        run(conn, settlement(parent, "release"))
        return Scene([parent.ids[0], *ids], parent.worker, jobs)

    return setup


FOR_AN_EVENT = json.dumps({"seq": 1, "name": "pgqueue.event", "kind": "event", "key": "e", "seconds": None})
ENDINGS: dict[str, tuple[str, Sessions]] = {
    "cancel_waiting": ("scheduled", sweeping),
    "claim": ("ready", claiming_at_once),
    "settle": ("running", lambda scene: alone(settlement(scene, "release"))),
    "suspend": (
        "running",
        lambda scene: alone(protocol.settle([Settlement(job, "suspend", None, 0, FOR_AN_EVENT) for job in scene.held])),
    ),
    "reap": ("running", lambda scene: alone(protocol.reap(scene.worker, [], "crash", None))),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_requeue_while_the_children_end_that_are_to_end_with_their_parent(race: Race, ending: str) -> None:
    """Whoever ends them stands still in the middle, because somebody has the outcome of the other one. Both come back with their
    parent, whether they have ended or are spared."""
    where, end = ENDINGS[ending]

    def setup(conn: Connection) -> Scene:
        scene = taken_along(where)(conn)
        if ending == "reap":
            run(conn, protocol.fence_worker(scene.worker, None, "test"))
        return scene

    def bystander(scene: Scene) -> Program:
        yield "BEGIN"
        outcome = f"INSERT INTO pgqueue.outcome (job_id, status, finished_at) VALUES ('{scene.ids[2]}', 'failed', now())"
        yield f"{outcome} ON CONFLICT DO NOTHING"
        yield "ROLLBACK"

    def requeue(scene: Scene) -> Program:
        rows = yield from transaction(protocol.requeue(scene.ids[:1]))
        return rows[0][1]

    def check(conn: Connection, scene: Scene, results: Results) -> None:
        assert results["requeue"] == "requeued"
        places = {row[0] for row in conn.execute("SELECT state FROM pgqueue.jobs").fetchall()}
        assert places <= {"ready", "running", "scheduled", "waiting"}

    race(setup, check, end=end, requeue=requeue, bystander=bystander)


def test_requeue_and_a_late_settlement(race: Race) -> None:
    """A zombie's settlement ends no later run."""

    def check(conn: Connection, scene: Scene, results: Results) -> None:
        assert results["requeue"] == "requeued"
        assert results["settle"] in ({}, {scene.job.id: "lost"})  # {}: this claim's outcome was still there
        assert state(conn, scene) in ("ready", "running")

    race(ended("failed"), check, requeue=requeueing, settle=settling("succeeded"), claim=claiming_at_once)


def test_prune_and_the_same_id_again(race: Race) -> None:
    """It is the old job, or a new one."""

    def again(scene: Scene) -> Program:
        return transaction(enqueue(scene.ids))

    def check(conn: Connection, scene: Scene, results: Results) -> None:
        assert results["enqueue"] == scene.ids
        assert (results["prune"], state(conn, scene)) in [(0, "succeeded"), (1, "ready"), (1, None)]

    race(ended("succeeded"), check, prune=pruning, enqueue=again)


def test_cancel_while_the_job_ends_and_is_pruned(race: Race) -> None:
    """No request stays behind that would cancel a later job of the same id."""

    def ending(scene: Scene) -> Program:
        yield from settling("succeeded")(scene)
        return (yield from pruning(scene))

    def check(conn: Connection, scene: Scene, results: Results) -> None:
        assert state(conn, scene) in (None, "succeeded")
        run(conn, enqueue(scene.ids))

    race(held(), check, became("succeeded"), cancel=cancelling, end=ending)


# --------------------------------------------------------------------------------------------------------- leases


def test_heartbeat_and_fence(race: Race) -> None:
    """A worker that was told that it is alive is not fenced for the silence before."""

    def check(conn: Connection, scene: Scene, results: Results) -> None:
        assert (results["heartbeat"] == [scene.worker]) != results["fence"]

    race(
        held(),
        check,
        heartbeat=lambda scene: transaction(protocol.heartbeat([scene.worker])),
        fence=lambda scene: transaction(protocol.fence_worker(scene.worker, 0, "silent")),
    )


def test_heartbeats_in_another_order_and_a_fence(race: Race) -> None:
    def two_workers(conn: Connection) -> Scene:
        return Scene([new_worker(conn)], new_worker(conn))

    def check(conn: Connection, scene: Scene, results: Results) -> None:
        assert scene.worker in results["one"]
        assert scene.worker in results["two"]

    race(
        two_workers,
        check,
        one=lambda scene: transaction(protocol.heartbeat([scene.worker, *scene.ids])),
        two=lambda scene: transaction(protocol.heartbeat([*scene.ids, scene.worker])),
        fence=lambda scene: transaction(protocol.fence_worker(scene.ids[0], 0, "silent")),
    )


# ----------------------------------------------------------------------------------------------- the interleaver


def test_every_order_is_run_once(interleaver: Interleaver) -> None:
    def program(_: object) -> Program:
        yield "BEGIN"
        yield "SELECT 1"
        yield "COMMIT"

    orders = interleaver.run(dict.fromkeys("abc", program), lambda conn: None, lambda *_: None)
    assert len({tuple(order.turns) for order in orders}) == len(orders) == 90  # 6! / (2! 2! 2!)


def test_who_waits_loses_its_turns_and_a_deadlock_is_an_outcome(interleaver: Interleaver) -> None:
    def locking(*keys: int) -> Callable[[object], Program]:
        return lambda _: transaction(*(Call(f"SELECT pg_advisory_xact_lock({key})", (), list) for key in keys))

    victims = []

    def check(conn: Connection, state: object, results: Results) -> None:
        victims.append([isinstance(result, errors.DeadlockDetected) for result in results.values()])

    orders = interleaver.run({"a": locking(1, 2), "b": locking(2, 1)}, lambda conn: None, check)
    assert waited(orders)
    assert len(orders) < 20  # as many as there were without locks
    assert {sum(order) for order in victims} == {0, 1}


def test_a_failure_names_the_order_and_can_be_repeated(interleaver: Interleaver) -> None:
    def reading(_: object) -> Program:
        return (yield "SELECT count(*) FROM effect")

    def writing(_: object) -> Program:
        yield f"INSERT INTO effect VALUES ('{new_job_id()}', 1)"

    def check(conn: Connection, state: object, results: Results) -> None:
        assert results["read"] == [(0,)]

    def begin(conn: Connection) -> None:
        conn.execute("DELETE FROM effect")

    sessions = {"read": reading, "write": writing}
    with pytest.raises(AssertionError) as failure:
        interleaver.run(sessions, begin, check)
    assert 'only="write read"' in failure.value.__notes__[0]
    interleaver.run(sessions, begin, check, only="read write")
    with pytest.raises(AssertionError):
        interleaver.run(sessions, begin, check, only="write read")


# ------------------------------------------------------------------------------------------ these tests can fail

FUNCTIONS = Path(pgqueue.__file__).parent / "sql" / "functions"

#: What is wrong: the function, its right text, the wrong one, and the race that this loses.
MUTANTS: dict[str, tuple[str, str, str, Callable[[Race], None]]] = {
    "fence without a lock": (
        "fence", " FOR KEY SHARE", "",
        lambda race: test_a_step_against_who_ends_its_claim(race, "READ COMMITTED", "reap"),
    ),
    "fence reads the history under SERIALIZABLE": (
        "fence", "AND current_setting('transaction_isolation') <> 'serializable'", "",
        lambda race: test_unrelated_serializable_transactions_never_fail_each_other(race),
    ),
    "settle without the fence": (
        "settle", "AND r.claim = g.token\n          LEFT JOIN LATERAL", "LEFT JOIN LATERAL",
        lambda race: test_a_zombie_and_its_successor(race, "settle"),
    ),
    "settle without a lock": (
        "settle", "FOR UPDATE OF r SKIP LOCKED", "",
        lambda race: test_settle_and_reap(race, "release"),
    ),
    "settle waits for a step": (
        "settle", "FOR UPDATE OF r SKIP LOCKED", "FOR UPDATE OF r",
        lambda race: test_a_step_against_who_ends_its_claim(race, "READ COMMITTED", "settle"),
    ),
    "reap without a lock": (
        "reap", "FOR UPDATE OF r SKIP LOCKED", "",
        lambda race: test_two_reapers(race, "crash", 2),
    ),
    "claim without a lock": (
        "claim", "LIMIT wanted FOR UPDATE SKIP LOCKED", "LIMIT wanted",
        lambda race: test_two_claimers(race),
    ),
    "promote without a lock": (
        "promote", "FOR UPDATE SKIP LOCKED", "",
        lambda race: test_two_promoters_and_a_claimer(race),
    ),
    "resolve with a lock that does not exclude": (
        "resolve", "FOR UPDATE", "FOR KEY SHARE",
        lambda race: test_resolve(race, stepping),
    ),
    "a lease is taken without comparing the beat": (
        "fence_worker", "AND w.beat = coalesce(seen_beat, w.beat)", "",
        lambda race: test_heartbeat_and_fence(race),
    ),
    "requeue leaves the request to cancel": (
        "requeue", "DELETE FROM pgqueue.cancel_request c USING ended e WHERE c.job_id = e.job_id", "SELECT",
        lambda race: test_cancel_and_settle_and_requeue_behind_them(race),
    ),
}  # fmt: skip


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_wrong_verb_loses_a_race(race: Race, conn: Connection, mutant: str) -> None:
    function, right, wrong, lost = MUTANTS[mutant]
    text = (FUNCTIONS / f"{function}.sql").read_text()
    assert text.count(right) == 1
    conn.execute(text.replace(right, wrong))
    try:
        with pytest.raises(AssertionError):
            lost(race)
    finally:
        conn.execute(text)


# -------------------------------------------------------------------------------------------------------- waiting

LAST = "ffffffff-ffff-ffff-ffff-ffffffffffff"


def waking(scene: Scene) -> Program:
    """A housekeeper: only what somebody has asked to look at, so that nothing is found by chance."""
    return transaction(protocol.wake(100, LAST))


def suspending(kind: str, key: Callable[[Scene], str] = lambda scene: scene.ids[0], seconds: float | None = None) -> Sessions:
    def program(scene: Scene) -> Program:
        return transaction(suspension(scene, kind, key(scene), seconds))

    return program


def suspension(scene: Scene, kind: str, key: str, seconds: float | None = None) -> Call[dict[str, str]]:
    detail = json.dumps({"seq": 1, "name": f"pgqueue.{kind}", "kind": kind, "key": key, "seconds": seconds})
    return protocol.settle([Settlement(scene.job, "suspend", None, 0, detail)])


def sending(value: int = 1) -> Sessions:
    return lambda scene: transaction(protocol.send_event(scene.ids[0], str(value)))


def messaging(scene: Scene) -> Program:
    return transaction(protocol.send_message(scene.ids[0], scene.ids[0], "1"))


def proceeding(scene: Scene) -> Program:
    job = scene.job
    return transaction(protocol.proceed(job.id, job.token, 0, 1, "pgqueue.event", "event", job.id))


def suspended(kind: str, seconds: float | None = None) -> Setup:
    """A job that waits. Nobody has been asked to look at it."""

    def setup(conn: Connection) -> Scene:
        scene = held()(conn)
        assert run(conn, suspension(scene, kind, scene.ids[0], seconds)) == {}
        run(conn, protocol.wake(100, LAST))
        return scene

    return setup


def goes_on(conn: Connection, scene: Scene) -> None:
    """When all have committed, one look at what was asked for is enough."""
    run(conn, protocol.wake(100, LAST))
    assert state(conn, scene) == "ready"


@pytest.mark.parametrize("what", ["event", "message"])
def test_what_it_waits_for_comes_while_it_is_suspended(race: Race, what: str) -> None:
    """A job never sleeps beyond it, whoever commits first, and wherever the housekeeper looks in between."""

    def check(conn: Connection, scene: Scene, results: Results) -> None:
        assert results["suspend"] == {}
        goes_on(conn, scene)

    orders = race(held(), check, send=sending() if what == "event" else messaging, suspend=suspending(what), wake=waking)
    assert waited(orders) == set()


def family(conn: Connection) -> Scene:
    """A parent and a child, both held."""
    scene = ready()(conn)
    [parent] = scene.ids
    child = new_job_id()
    run(conn, enqueue([child], parent=parent, parent_seq=1, ordinal=0))
    jobs = {job.id: job for job, _ in run(conn, claim(scene.worker))}
    return Scene([parent, child], scene.worker, [jobs[parent], jobs[child]])


def childs_end(how: str) -> Sessions:
    def program(scene: Scene) -> Program:
        child = Scene([scene.ids[1]], scene.worker, [scene.held[1]])
        if how == "cancelled":
            return transaction(protocol.settle([Settlement(child.job, "cancelled", None, 0, "{}")]))
        return finishing()(child) if how == "finished" else transaction(settlement(child, how))

    return program


@pytest.mark.parametrize("kind", ["children", "job"])
@pytest.mark.parametrize("how", ["succeeded", "failed", "cancelled", "finished"])
def test_a_child_ends_while_its_parent_is_suspended(race: Race, kind: str, how: str) -> None:
    def check(conn: Connection, scene: Scene, results: Results) -> None:
        assert results["suspend"] == {}
        goes_on(conn, scene)

    suspend = suspending(kind, (lambda scene: "1:0") if kind == "children" else (lambda scene: scene.ids[1]))
    race(family, check, end=childs_end(how), suspend=suspend, wake=waking)


@pytest.mark.parametrize("how", ["event", "time"])
def test_cancel_and_wake(race: Race, how: str) -> None:
    """It is cancelled, at once or when it is claimed; and it never waits on."""

    def check(conn: Connection, scene: Scene, results: Results) -> None:
        assert results["cancel"] == "requested"
        assert state(conn, scene) in ("cancelled", "ready", "waiting")
        run(conn, protocol.wake(100, LAST))
        assert state(conn, scene) in ("cancelled", "ready")

    if how == "event":
        race(suspended("event"), check, became("cancelled"), cancel=cancelling, wake=waking, send=sending())
    else:
        race(suspended("event", 0.0), check, became("cancelled"), cancel=cancelling, wake=waking, sweep=sweeping)


def test_a_message_and_the_end_of_its_job(race: Race) -> None:
    """It was sent in time, or whoever sent it hears that it was not. Nothing is left of it."""

    def check(conn: Connection, scene: Scene, results: Results) -> None:
        assert results["send"] in ("sent", "ended")
        assert results["settle"] == {}

    race(held(), check, became("succeeded"), send=messaging, settle=settling("succeeded"))


def test_the_time_is_over_when_the_event_comes(race: Race) -> None:
    """One of the two is stored, once, and stays."""

    def setup(conn: Connection) -> Scene:
        scene = suspended("event", 0.0)(conn)
        run(conn, protocol.wake(100, LAST))
        [job] = [job for job, _ in run(conn, claim(scene.worker))]
        return Scene(scene.ids, scene.worker, [job])

    def check(conn: Connection, scene: Scene, results: Results) -> None:
        answer, result, _ = results["proceed"]
        assert answer == "stored"
        assert json.loads(result) in ({"value": 1}, {"timeout": True})
        stored = conn.execute("SELECT result FROM pgqueue.checkpoint WHERE job_id = %s", (scene.job.id,)).fetchall()
        assert stored == [(result,)]

    race(setup, check, send=sending(), proceed=proceeding)


def test_two_events_for_one_key(race: Race) -> None:
    """One of them is the first, for everybody."""

    def check(conn: Connection, scene: Scene, results: Results) -> None:
        assert sorted([results["one"], results["two"]]) == [False, True]
        value = 1 if results["one"] else 2
        goes_on(conn, scene)
        assert conn.execute("SELECT value FROM pgqueue.event WHERE key = %s", (scene.ids[0],)).fetchall() == [(str(value),)]

    race(suspended("event"), check, one=sending(1), two=sending(2), wake=waking)


@pytest.mark.parametrize("how", ENDS)
def test_a_time_limit_and_the_end_of_the_job(race: Race, how: str) -> None:
    """The supervisor has killed the worker, whose last words are still on their way."""

    def check(conn: Connection, scene: Scene, results: Results) -> None:
        settled = results["settle"] == {}
        given_back, failed, _ = results["reap"]
        assert (settled, given_back, failed) in [(True, 0, 0), (False, 1, 0), (False, 0, 1)]
        kinds = [kind for _, kind in attempts(conn, scene)]
        assert kinds == (["error"] * (how == "failed") if settled else ["timeout"])

    def reap(scene: Scene) -> Program:
        return transaction(protocol.reap(scene.worker, scene.ids, "timeout", "it took too long", 0))

    race(held(fenced=True), check, settle=settling(how), reap=reap)


def test_two_housekeepers_wake_the_same_job(race: Race) -> None:
    def check(conn: Connection, scene: Scene, results: Results) -> None:
        assert results["one"][0] + results["two"][0] <= 1
        goes_on(conn, scene)

    race(suspended("event"), check, send=sending(), one=waking, two=waking)


# --------------------------------------------------------------------------------------------------------- limits


def test_a_limit_is_set_while_somebody_claims(race: Race, conn: Connection) -> None:
    """Both come to an end, and from then on the limit holds."""
    conn.execute("SELECT pgqueue.limit_queue('default', '{\"concurrency\": 0}')")

    def limiting(scene: Scene) -> Program:
        return transaction(protocol.limit_queue("default", {"concurrency": 2}))

    def check(conn: Connection, scene: Scene, results: Results) -> None:
        assert results["limit"] == {"concurrency": 2}
        held = len(results["claim"]) + len(results["again"])
        more = run(conn, claim(scene.worker))
        assert held == 5 or 1 <= held + len(more) <= 2
        assert len(more) == 0 or held < 2
        conn.execute("SELECT pgqueue.limit_queue('default', '{\"concurrency\": null}')")

    race(ready(5), check, limit=limiting, claim=claiming(), again=claiming())
    conn.execute("SELECT pgqueue.limit_queue('default', '{\"concurrency\": null}')")


@pytest.mark.parametrize("was", ["not fair", "fair by another"])
def test_a_queue_becomes_fair_while_somebody_claims(race: Race, conn: Connection, was: str) -> None:
    """Its jobs are told for whom they are, each in a new version of its row: nobody takes the old one, and none is lost."""
    before = json.dumps({"fair_by": "month" if was == "fair by another" else 0})

    def five(conn: Connection) -> Scene:
        conn.execute("SELECT pgqueue.limit_queue('default', %s)", (before,))
        return ready(5, input={"tenant": "a", "month": "May"})(conn)

    def limiting(scene: Scene) -> Program:
        return transaction(protocol.limit_queue("default", {"fair_by": "tenant"}))

    def check(conn: Connection, scene: Scene, results: Results) -> None:
        more = [job for job, _ in run(conn, claim(scene.worker))]
        assert sorted(job.id for job in [*results["one"], *results["two"], *more]) == sorted(scene.ids)
        conn.execute("SELECT pgqueue.limit_queue('default', '{\"fair_by\": null}')")

    race(five, check, limit=limiting, one=claiming(2), two=claiming(2))
    conn.execute("SELECT pgqueue.limit_queue('default', '{\"fair_by\": null}')")


def test_two_claim_from_a_limited_queue(race: Race, conn: Connection) -> None:
    """Together they get what there is, and no more, also beside a settlement."""

    def two_of_five(conn: Connection) -> Scene:
        conn.execute("SELECT pgqueue.limit_queue('default', '{\"concurrency\": 3}')")
        scene = ready(5)(conn)
        jobs = [job for job, _ in run(conn, claim(scene.worker, 2))]
        return Scene(scene.ids, scene.worker, jobs)

    def check(conn: Connection, scene: Scene, results: Results) -> None:
        assert results["settle"] == {}
        held = conn.execute("SELECT count(*) FROM pgqueue.running").fetchone()
        assert held is not None
        assert held[0] <= 3
        assert len(results["one"]) + len(results["two"]) <= 3
        conn.execute("SELECT pgqueue.limit_queue('default', '{\"concurrency\": null}')")

    race(two_of_five, check, one=claiming(), two=claiming(), settle=settling("succeeded"))
    conn.execute("SELECT pgqueue.limit_queue('default', '{\"concurrency\": null}')")


KEY = {"key": "k"}


def emptying(scene: Scene) -> Program:
    """All that it sees ends, and whoever was to be looked at was looked at."""
    jobs = [*scene.held]
    while jobs:
        yield protocol.settle([Settlement(job, "succeeded", "1") for job in jobs])
        yield protocol.wake(100, NOBODY_BEHIND)
        jobs = [job for job, _ in (yield claim(scene.worker))]
        scene.held.extend(jobs)
    return []


def another_of_the_key(scene: Scene) -> Program:
    scene.ids.extend((yield from transaction(enqueue([new_job_id()], **KEY))))


@pytest.mark.parametrize(
    ("jobs", "aside", "sessions"),
    [
        (3, False, {"settle": settling("succeeded"), "one": claiming(), "two": claiming()}),
        (3, True, {"settle": settling("release"), "one": claiming(), "two": claiming()}),
        (3, False, {"settle": settling("succeeded"), "one": claiming(), "another": another_of_the_key}),
        (2, True, {"one": emptying, "another": another_of_the_key}),
    ],
    ids=["two claim", "the first is released", "another comes", "another comes while the last one goes"],
)
def test_the_order_of_a_key(race: Race, conn: Connection, jobs: int, aside: bool, sessions: dict[str, Sessions]) -> None:
    """One of a key at a time, in the order in which they were enqueued, and nobody is forgotten: whoever has to wait is found
    because somebody left word, and not by the look at all who wait."""

    def begin(conn: Connection) -> Scene:
        scene = Scene([], new_worker(conn))
        for _ in range(jobs):  # one by one, and nobody waits yet: each is ready
            scene.ids.extend(run(conn, enqueue([new_job_id()], **KEY)))
        scene.held.extend(job for job, _ in run(conn, claim(scene.worker, 1)))
        if aside:
            assert run(conn, claim(scene.worker)) == []
        return scene

    def check(conn: Connection, scene: Scene, results: Results) -> None:
        order = [job.id for job in scene.held]
        now = results["one"] + results.get("two", [])
        while True:
            assert len(now) <= 1, "two of a key run"
            order += [job.id for job in now]
            run(conn, protocol.settle([Settlement(job, "succeeded", "1") for job in now]))
            while any(run(conn, protocol.wake(100, NOBODY_BEHIND))[:2]):
                pass
            now = [job for job, _ in run(conn, claim(scene.worker))]
            if not now:
                break
        assert list(dict.fromkeys(order)) == scene.ids

    conn.execute("SELECT pgqueue.limit_queue('default', '{\"per_key\": 1}')")
    try:
        race(begin, check, **sessions)
    finally:
        conn.execute("SELECT pgqueue.limit_queue('default', '{\"per_key\": null}')")


# ------------------------------------------------------------------------------------------------------- unique jobs

ENDED, STARTED, REPLACE = {}, {"until": "started"}, {"on_conflict": "replace"}  # type: ignore[var-annotated]
KEPT = {"within": 3600}
PUT_OFF = {"delay": 60, "at_most": 300}


def unique(how: Any, job_id: str, n: int = 0) -> Call[list[str]]:
    return enqueue([job_id], unique={"by": [], **how}, input={"n": n})


def alone_ready(how: Any) -> Setup:
    """The one job of its kind, ready, and a worker."""

    def setup(conn: Connection) -> Scene:
        return Scene(run(conn, unique(how, new_job_id())), new_worker(conn))

    return setup


def alone_held(how: Any) -> Setup:
    def setup(conn: Connection) -> Scene:
        scene = alone_ready(how)(conn)
        jobs = [job for job, _ in run(conn, claim(scene.worker))]
        return Scene(scene.ids, scene.worker, jobs)

    return setup


def alone_failed(conn: Connection) -> Scene:
    scene = alone_held(ENDED)(conn)
    assert run(conn, settlement(scene, "failed")) == {}
    return scene


def producing_one(how: Any, n: int = 1, isolation: str = "READ COMMITTED", end: str = "COMMIT") -> Sessions:
    """A producer that writes something and enqueues. Answers (the id it was given, the id of a new one)."""

    def program(scene: Scene) -> Program:
        mine = new_job_id()
        yield f"BEGIN ISOLATION LEVEL {isolation}"
        write = f"INSERT INTO effect VALUES ('{mine}', {n})"
        call = unique(how, mine, n)
        [given] = yield Call(f"WITH user_code AS ({write}) {call.sql}", call.params, call.read)
        scene.ids.append(mine)
        yield end
        return given, mine

    return program


def jobs_of(conn: Connection) -> dict[str, int]:
    """Each job with the n of its input."""
    return dict(conn.execute("SELECT id::text, (input::json ->> 'n')::integer FROM pgqueue.job").fetchall())


def forget(conn: Connection, scene: Scene, results: Results) -> None:
    conn.execute("DELETE FROM effect")


@pytest.mark.parametrize("isolation", ISOLATIONS)
@pytest.mark.parametrize("how", [ENDED, STARTED, REPLACE, KEPT, PUT_OFF], ids=["ended", "started", "replace", "kept", "put off"])
def test_two_producers_of_one_key(race: Race, how: Any, isolation: str) -> None:
    """One job, and both have its id; or at the higher levels the second one has to try again, as with any primary key."""

    def check(conn: Connection, scene: Scene, results: Results) -> None:
        one, two = results["one"], results["two"]
        assert not isinstance(one, Exception)
        assert len(jobs_of(conn)) == 1
        assert one[0] in jobs_of(conn)
        if is_conflict(two):
            assert isolation != "READ COMMITTED"
        else:
            assert two[0] == one[0]
        forget(conn, scene, results)

    sessions = {"one": producing_one(how, 1), "two": producing_one(how, 2, isolation)}
    race(lambda conn: Scene([], new_worker(conn)), check, may_fail=True, **sessions)


@pytest.mark.parametrize("how", [ENDED, REPLACE, KEPT], ids=["ended", "replace", "kept"])
def test_two_producers_of_which_one_rolls_back(race: Race, how: Any) -> None:
    def check(conn: Connection, scene: Scene, results: Results) -> None:
        assert jobs_of(conn) == {results["two"][1]: 2}
        assert results["two"][0] == results["two"][1]
        forget(conn, scene, results)

    race(lambda conn: Scene([], new_worker(conn)), check, one=producing_one(how, 1, end="ROLLBACK"), two=producing_one(how, 2))


@pytest.mark.parametrize("ending", ["settle", "finish", "reap"])
def test_enqueue_and_the_end_of_the_one(race: Race, ending: str) -> None:
    """Whoever comes before the end is given the job; whoever comes behind it gets a new one. Nobody gets both, or nothing."""

    def check(conn: Connection, scene: Scene, results: Results) -> None:
        given, mine = results["produce"]
        assert given in (scene.ids[0], mine)
        assert set(jobs_of(conn)) == {scene.ids[0], given}
        forget(conn, scene, results)

    def poisoned(scene: Scene) -> Program:
        yield from transaction(protocol.fence_worker(scene.worker, None, "died"), protocol.cancel(scene.ids[:1]))
        return (yield from reaping()(scene))

    end: dict[str, Sessions] = {"settle": settling("succeeded"), "finish": finishing(), "reap": poisoned}
    race(alone_held(ENDED), check, produce=producing_one(ENDED), other=end[ending])


@pytest.mark.parametrize("how", [STARTED, REPLACE, PUT_OFF], ids=["started", "replace", "put off"])
@pytest.mark.parametrize("place", ["ready", "unknown", "due"])
def test_a_job_begins_behind_the_producer_that_was_given_it(race: Race, how: Any, place: str) -> None:
    """It sees what the producer wrote, and has the input that came last. Nobody who claims waits for a producer."""

    def begin(conn: Connection) -> Scene:
        scene = alone_ready(how)(conn)
        make_due(conn)
        if place != "due":
            run(conn, protocol.promote(100))
        if place == "unknown":
            run(conn, claim(scene.worker, names=["another"]))
        return scene

    def beginning(scene: Scene) -> Program:
        yield protocol.promote(100)
        jobs = yield from transaction(claim(scene.worker))
        seen = yield "SELECT count(*) FROM effect"
        return [(job.id, json.loads(job.input)["n"], seen) for job, _ in jobs]

    def check(conn: Connection, scene: Scene, results: Results) -> None:
        given, _ = results["produce"]
        for job, n, seen in results["begin"]:
            assert job != given or seen == [(1,)], "the claim was before the commit"
            if job == given == scene.ids[0]:
                assert n == (1 if how is not STARTED else 0)
        left = {job: n for job, n in jobs_of(conn).items() if job not in [job for job, _, _ in results["begin"]]}
        assert given in [job for job, _, _ in results["begin"]] or left[given] == (
            0 if how is STARTED and given == scene.ids[0] else 1
        )
        forget(conn, scene, results)

    orders = race(begin, check, produce=producing_one(how), begin=beginning)
    assert not any(line.startswith("begin") for line in waited(orders))


@pytest.mark.parametrize("how", [STARTED, PUT_OFF], ids=["started", "put off"])
def test_enqueue_and_cancel_of_the_one(race: Race, how: Any) -> None:
    """A job that somebody asked to cancel before is not the one any more. Nobody who sweeps waits for a producer."""

    def check(conn: Connection, scene: Scene, results: Results) -> None:
        given, mine = results["produce"]
        assert given in (scene.ids[0], mine)
        assert set(jobs_of(conn)) == {scene.ids[0], given}
        forget(conn, scene, results)

    def then(conn: Connection, scene: Scene, results: Results) -> None:
        given, mine = results["produce"]
        assert run(conn, protocol.job_row(scene.ids[0]))[4] == "cancelled"  # type: ignore[index]
        if given == mine:
            assert run(conn, protocol.job_row(mine))[4] == "succeeded"  # type: ignore[index]

    def asking(scene: Scene) -> Program:
        return transaction(protocol.cancel(scene.ids[:1]))

    orders = race(alone_ready(how), check, then, produce=producing_one(how), cancel=asking, sweep=sweeping)
    assert not any(line.startswith("sweep") for line in waited(orders))


def test_requeue_and_enqueue(race: Race) -> None:
    """One of them gets the key, and the other one is told."""

    def again(scene: Scene) -> Program:
        rows = yield from transaction(protocol.requeue(scene.ids[:1]))
        return rows[0][1]

    def check(conn: Connection, scene: Scene, results: Results) -> None:
        given, mine = results["produce"]
        assert (results["again"], given) in [("requeued", scene.ids[0]), ("taken", mine)]
        forget(conn, scene, results)

    race(alone_failed, check, produce=producing_one(ENDED), again=again)


def test_two_requeues_of_one_kind(race: Race) -> None:
    def begin(conn: Connection) -> Scene:
        one, two = alone_failed(conn), alone_failed(conn)
        return Scene(one.ids + two.ids, one.worker)

    def again(number: int) -> Sessions:
        def program(scene: Scene) -> Program:
            rows = yield from transaction(protocol.requeue([scene.ids[number]]))
            return rows[0][1]

        return program

    def check(conn: Connection, scene: Scene, results: Results) -> None:
        assert sorted(results.values()) == ["requeued", "taken"]

    race(begin, check, one=again(0), two=again(1))


@pytest.mark.parametrize("other", ["produce", "prune", "wake"])
def test_a_window_that_is_over(race: Race, other: str) -> None:
    """One job takes it over, whoever else sees that it is over."""

    def begin(conn: Connection) -> Scene:
        scene = alone_held(KEPT)(conn)
        assert run(conn, settlement(scene, "succeeded")) == {}
        conn.execute("UPDATE pgqueue.unique_job SET until = pgqueue.clock() - interval '1 second'")
        return scene

    def check(conn: Connection, scene: Scene, results: Results) -> None:
        given, mine = results["produce"]
        if other == "produce":
            assert given == results["other"][0] != scene.ids[0]
        else:
            assert given == mine
        held = conn.execute("SELECT job_id::text FROM pgqueue.unique_job").fetchall()
        assert held == [(given,)]
        forget(conn, scene, results)

    others: dict[str, Sessions] = {
        "produce": producing_one(KEPT, 2),
        "prune": pruning,
        "wake": lambda scene: transaction(protocol.wake(100)),
    }
    race(begin, check, produce=producing_one(KEPT), other=others[other])


def test_two_producers_of_two_keys_in_any_order(race: Race) -> None:
    """Calls with several jobs take their keys in one order: nobody waits in a circle."""

    def batch(*keys: str) -> Sessions:
        def program(scene: Scene) -> Program:
            wanted = [
                {"name": "job", "queue": "default", "job_id": new_job_id(), "unique": {"key": key, "on_conflict": "replace"}}
                for key in keys
            ]
            return transaction(protocol.enqueue_workflows(json.dumps(wanted)))

        return program

    def check(conn: Connection, scene: Scene, results: Results) -> None:
        assert sorted(results["one"]) == sorted(results["two"])

    def begin(conn: Connection) -> Scene:
        return Scene([], new_worker(conn))

    race(begin, check, one=batch("a", "b"), two=batch("b", "a"))
