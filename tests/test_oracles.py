"""The oracles of the chaos suite can fail: each is shown what it is there to see, and is silent without it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from chaos import history as history_module
from chaos import table
from chaos.arena import Arena, Setup, Specimen
from chaos.databases import copy_of
from chaos.faults import Fault, f09_failover, f17_drain, f21_migration, faults
from chaos.history import Commit, History, Start, starts
from chaos.nemesis import Entry, Nemesis
from chaos.one_by_one import late
from chaos.oracles import (
    atomicity,
    cancels,
    charges,
    claim_history,
    concurrency,
    conservation,
    effects,
    expectations,
    invariant,
    key_order,
    ledger,
    plain_steps,
    rates,
    ticks,
    values,
    waits,
)
from chaos.oracles.conservation import Journal
from chaos.plan import Round
from chaos.results import Report, Result
from chaos.server import GivenServer
from chaos.storm import Storm, not_drained
from chaos.verdicts import NAMES, Verdict, limited, with_findings
from chaos.waiting import wait_for
from chaos.workloads import bank, town
from pgqueue import protocol
from pgqueue.database import connect, run
from tests.support import ROOT, Hand, Server

Connection = psycopg.Connection[Any]


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bank") / "outside.txt"


@pytest.fixture(scope="module")
def worked(server: Server, template: str, outside: Path) -> Iterator[Connection]:
    """A bank that has worked, without any fault."""
    with pytest.MonkeyPatch.context() as patch, copy_of(server.dsn, template) as dsn, connect(dsn, "tests") as conn:
        patch.setenv("BANK_FILE", str(outside))
        bank.install(conn)
        claim_history.install(conn)
        bank.enqueue(conn, 2, 1, 2)
        bank.order.using(conn).enqueue(1)
        run(conn, bank.app.registration())
        bank.app.enqueue_many([town.chain.call(6), town.fan_out.call(2), town.waits.call("an event", 7)], conn=conn)
        hand = Hand(bank.app, dsn)
        wait_for(lambda: _all_ended(hand), "all jobs to end, in their time")
        hand.close()
        yield conn


def _all_ended(hand: Hand) -> bool:
    run(hand.conn, protocol.promote(1000))
    hand.drain(due_now=False)
    return hand.conn.execute("SELECT count(*) FROM pgqueue.job_values WHERE status = 'active'").fetchone() == (0,)


@pytest.fixture
def done(worked: Connection, outside: Path) -> Iterator[Connection]:
    """The same, for one test to spoil."""
    text = outside.read_text()
    with worked.transaction(force_rollback=True):
        yield worked
    worked.execute("SELECT setval('pgqueue.conflict', 1, false)")  # sequences are not rolled back
    outside.write_text(text)


def test_they_are_silent_where_all_is_well(done: Connection, outside: Path) -> None:
    assert done.execute("SELECT state, count(*) FROM pgqueue.jobs GROUP BY 1").fetchall() == [("succeeded", 20)]
    assert ledger.check(done) == []
    assert effects.check(done) == []
    assert plain_steps.check(done, outside, faults=0) == []
    assert conservation.check(done, Journal({1}, {1})) == []
    assert invariant.check(done) == []
    assert claim_history.check(done) == []
    assert (values.check(done), values.judged(done)) == ([], 19)
    assert (waits.check(done), waits.judged(done)) == ([], 2)
    assert done.execute("SELECT count(*) FROM effect").fetchone() == (22,)
    assert done.execute("SELECT count(DISTINCT event) FROM claim_history").fetchone() == (4,)


FALSE_LEDGERS = {
    "doubled": "UPDATE account SET balance = balance + 1 WHERE id = 1",
    "by half": "DELETE FROM movement WHERE account = 2 AND place = 1",
    "twice": "INSERT INTO movement SELECT * FROM movement WHERE account = 2 AND place = 1 AND amount <> 0",
    "out of order": "UPDATE account SET trail = trail[2:] || trail[1] WHERE id = 2",
}


@pytest.mark.parametrize("how", FALSE_LEDGERS)
def test_the_ledger_can_fail(done: Connection, how: str) -> None:
    done.execute(FALSE_LEDGERS[how])  # type: ignore[call-overload]
    assert ledger.check(done)


FALSE_EFFECTS = {
    "twice": "INSERT INTO effect SELECT * FROM effect LIMIT 1",
    "lost": "DELETE FROM effect WHERE ctid = (SELECT min(ctid) FROM effect)",
    "without a checkpoint": "INSERT INTO effect VALUES (gen_random_uuid(), 1, '1')",
    "of another transaction": "UPDATE effect SET xid = '1' WHERE seq = 1",
}


@pytest.mark.parametrize("how", FALSE_EFFECTS)
def test_effects_can_fail(done: Connection, how: str) -> None:
    done.execute(FALSE_EFFECTS[how])  # type: ignore[call-overload]
    assert effects.check(done)


FALSE_VALUES = {
    "a result": (
        "UPDATE pgqueue.outcome SET result = '0' WHERE job_id = (SELECT id FROM pgqueue.job WHERE name LIKE '%.town.chain')",
        "its result is 0, and it returned 15",
    ),
    "a checkpoint": (
        "UPDATE pgqueue.checkpoint SET result = '0' WHERE name LIKE '%.tell' AND result LIKE '%told 1%'",
        "its steps have stored [10, 0, -9, 'told 2'], and returned [10, 'told 1', -9, 'told 2']",
    ),
    "a step too few": (
        "DELETE FROM pgqueue.checkpoint WHERE name LIKE '%.town.outside'",
        "its steps have stored [0, 1, 2, 3, 5]",
    ),
}


@pytest.mark.parametrize("how", FALSE_VALUES)
def test_values_can_fail(done: Connection, how: str) -> None:
    statement, says = FALSE_VALUES[how]
    done.execute(statement)  # type: ignore[call-overload]
    assert says in values.check(done)[0]


def test_values_of_another_run_are_seen(done: Connection) -> None:
    """A job that says which run its result is of."""
    [(job,)] = done.execute("SELECT id FROM pgqueue.job WHERE name = %s LIMIT 1", (bank.tell.name,)).fetchall()
    done.execute("UPDATE pgqueue.job SET name = %s WHERE id = %s", (town.linger.name, job))
    done.execute("UPDATE pgqueue.outcome SET result = claim WHERE job_id = %s", (job,))
    assert values.check(done) == []
    done.execute("UPDATE pgqueue.outcome SET result = '77' WHERE job_id = %s", (job,))
    assert "with the result of claim 77" in values.check(done)[0]


def test_waits_can_fail(done: Connection) -> None:
    """A sleep that was none, a wait that was given up at once, and an event that nobody hears."""
    set_back = """
        UPDATE claim_history h SET at = (SELECT at FROM claim_history b WHERE b.job_id = h.job_id AND b.place < h.place
                                          AND b.event = '2 stored a step' ORDER BY b.place DESC LIMIT 1) + interval '0.2 s'
          FROM pgqueue.checkpoint k WHERE k.job_id = h.job_id AND k.xid = h.xid AND h.event = '2 stored a step'
           AND k.job_id = (SELECT id FROM pgqueue.job WHERE name = %s) AND k.result LIKE '%%timeout%%'"""
    done.execute(set_back, (town.waits.name,))
    said = [what.partition(": ")[2] for what in waits.check(done)]
    assert said == ["the sleep of 0.25 s was over after 0.200 s", "the event of 0.25 s was over after 0.200 s"]
    [(moment,)] = done.execute("SELECT extract(epoch FROM min(at))::float8 FROM claim_history").fetchall()
    assert waits.check(done, [(moment, moment + 60)]) == []
    assert len(waits.check(done, [(moment - 9, moment - 8)])) == 2
    done.execute("DELETE FROM pgqueue.outcome WHERE job_id = (SELECT id FROM pgqueue.job WHERE name = %s)", (town.waits.name,))
    done.execute(
        "INSERT INTO pgqueue.waiting (job_id, kind, key, queue, lane) SELECT id, 'event', 'an event', queue, 10 FROM pgqueue.job"
        " WHERE name = %s",
        (town.waits.name,),
    )
    done.execute("UPDATE pgqueue.event SET sent_at = sent_at - interval '1 minute'")
    assert waits.check(done)[-1].endswith("waits for the event 'an event', which was sent")


def test_cancels_can_fail(done: Connection) -> None:
    [(job,)] = done.execute("SELECT id::text FROM pgqueue.job WHERE name = %s", (town.chain.name,)).fetchall()
    stored = "SELECT extract(epoch FROM at)::float8 FROM claim_history WHERE job_id = %s AND event LIKE '2%%' ORDER BY at"
    moments = [row[0] for row in done.execute(stored, (job,)).fetchall()]
    assert cancels.check(done, {job: moments[2]}) == []
    assert cancels.check(done, {job: moments[1]}) == [f"job {job} has stored 4 steps after it was asked to end (succeeded)"]


TICK = "'2026-01-01 00:00:02+00'"
FALSE_TICKS = {
    "left out": [
        f"UPDATE pgqueue.tick SET job_id = NULL, why = 'overlap' WHERE due_at = {TICK}",
        "DELETE FROM pgqueue.job WHERE policy -> 'meta' ->> 'due_at' LIKE '%00:00:02%'",
    ],
    "lost": [f"DELETE FROM pgqueue.tick WHERE due_at = {TICK}"],
    "without its job": ["DELETE FROM pgqueue.job WHERE policy -> 'meta' ->> 'due_at' LIKE '%00:00:02%'"],
    "a job without a tick": [
        "DELETE FROM pgqueue.tick WHERE due_at = (SELECT max(due_at) FROM pgqueue.tick)",
    ],
    "twice": [
        "INSERT INTO pgqueue.job SELECT (j).* FROM (SELECT jsonb_populate_record(j, jsonb_build_object('id', gen_random_uuid())) AS j "  # noqa: E501
        "FROM pgqueue.job j WHERE policy -> 'meta' ->> 'due_at' LIKE '%00:00:02%') again"
    ],
    "with the job of another": [
        f"UPDATE pgqueue.tick SET job_id = (SELECT job_id FROM pgqueue.tick ORDER BY due_at LIMIT 1) WHERE due_at = {TICK}"
    ],
}


@pytest.fixture
def ticked(done: Connection) -> Connection:
    """A schedule of which three ticks have come."""
    done.execute("""
        INSERT INTO pgqueue.schedule (name, workflow, every, misfire, origin, done_until)
        VALUES ('s', 'chaos.workloads.bank.strike', 1, 'all', 'operator', '2026-01-01 00:00+00')""")
    three = "ARRAY(SELECT timestamptz '2026-01-01 00:00+00' + n * interval '1 s' FROM generate_series(1, 3) n)"
    done.execute(f"SELECT pgqueue.tick('s', 1, {three}, '2026-01-01 00:00:03+00', NULL, NULL, NULL)")
    assert ticks.check(done) == []
    return done


@pytest.mark.parametrize("how", FALSE_TICKS)
def test_ticks_can_fail(ticked: Connection, how: str) -> None:
    for statement in FALSE_TICKS[how]:
        ticked.execute(statement)  # type: ignore[call-overload]
    assert ticks.check(ticked)


def test_ticks_that_never_come_are_missed(ticked: Connection) -> None:
    def second(n: int) -> datetime:
        return datetime(2026, 1, 1, 0, 0, n, tzinfo=UTC)

    assert ticks.check(ticked, ticks.Span(second(1), second(3))) == []
    assert "has ticked from" in ticks.check(ticked, ticks.Span(second(0), second(3)))[0]
    assert "has stopped at" in ticks.check(ticked, ticks.Span(second(1), second(4)))[0]
    ticked.execute("DELETE FROM pgqueue.tick")
    assert "has never ticked" in ticks.check(ticked, ticks.Span(second(1), second(3)))[-1]
    ticked.execute("DELETE FROM pgqueue.schedule")
    assert "there is no schedule" in ticks.check(ticked, ticks.Span(second(1), second(3)))[-1]


def test_plain_steps_can_fail(done: Connection, outside: Path) -> None:
    lines = outside.read_text().splitlines()
    effect = next(line for line in lines if line.startswith("effect"))
    what, key, _, claim = effect.split()

    def wrong(*more: str, faults: int = 0) -> list[str]:
        outside.write_text("\n".join([*lines, *more]))
        return plain_steps.check(done, outside, faults)

    def runs(moment: float, claim: str = claim) -> str:
        return f"{what} {key} {moment} {claim}"

    assert wrong() == []
    assert wrong(runs(1.0), faults=1) == []
    assert "more than once" in wrong(runs(1.0))[0]
    assert "this very claim" in wrong(runs(9999999999.0), faults=9)[0]
    assert "which nobody had" in wrong(runs(1.0, "77"), faults=9)[0]
    lines = [line for line in lines if line != effect]
    assert "never ran" in wrong()[0]


def test_who_may_run_a_plain_step_that_is_stored(done: Connection, outside: Path) -> None:
    """Who had the job before, and is late: once."""
    what, key, *_ = next(line for line in outside.read_text().splitlines() if line.startswith("effect")).split()
    claims = (
        "INSERT INTO claim_history (xid, job_id, event, claim, at)"
        " VALUES (pg_current_xact_id(), %s, '1 claimed', %s, to_timestamp(%s))"
    )

    def judge(claim: int, began: float, *ran: float) -> plain_steps.Found:
        with done.transaction(force_rollback=True):
            done.execute(claims, (key.partition(":")[0], claim, began))
            before = outside.read_text()
            outside.write_text(before + "".join(f"{what} {key} {moment} {claim}\n" for moment in ran))
            found = plain_steps.judge(done, outside, faults=1)
            outside.write_text(before)
            return found

    earlier, later, late = 1.0, 9999999998.0, 9999999999.0
    assert (judge(77, earlier, late).wrong, judge(77, earlier, late).late) == ([], 1)
    assert "2 times for claim 77" in judge(77, earlier, late, late).wrong[0]
    assert "had a checkpoint when claim 77 began" in judge(77, later, late).wrong[0]
    assert (judge(77, earlier, 2.0).again, judge(77, earlier, 2.0).late) == (1, 0)


def test_a_plain_step_runs_again_only_where_its_connection_was_lost(done: Connection, outside: Path, tmp_path: Path) -> None:
    effect = next(line for line in outside.read_text().splitlines() if line.startswith("effect"))
    what, key, _, claim = effect.split()
    with outside.open("a") as file:
        file.write(f"{what} {key} 1.0 {claim}\n")

    def wrong() -> list[str]:
        return plain_steps.judge(done, outside, faults=9, again=plain_steps.begun_again(tmp_path)).wrong

    assert f"ran 2 times for claim {claim}, which lost its connection 0 times" in wrong()[0]
    said = f"job {key.partition(':')[0]} (chaos.x): the connection was lost, and the job begins again: it was"
    (tmp_path / "program-0.log").write_text(f'{{"level": "WARNING", "msg": "{said}"}}\n')
    assert wrong() == []
    assert '"job %s (%s): the connection was lost, and the job begins again: %s"' in (ROOT / "pgqueue/runtime/run.py").read_text()


FALSE_JOURNALS: dict[str, Callable[[], Journal]] = {
    "lost": lambda: Journal({1, 2}, {1, 2}),
    "from nowhere": Journal,
    "rolled back": lambda: Journal({1}, set(), {1}),
    "without its row": lambda: Journal({1}, {1}, set(), {1}),
}


@pytest.mark.parametrize("how", FALSE_JOURNALS)
def test_conservation_can_fail(done: Connection, how: str) -> None:
    assert conservation.check(done, FALSE_JOURNALS[how]())


def test_conservation_sees_doubles_unfinished_jobs_and_rows_alone(done: Connection) -> None:
    bank.order.using(done).enqueue(1)
    assert len(conservation.check(done, Journal({1}, {1}))) == 2
    done.execute("DELETE FROM pgqueue.job WHERE id IN (SELECT id FROM pgqueue.jobs WHERE state = 'ready')")
    assert conservation.check(done, Journal({1}, {1})) == []
    done.execute("INSERT INTO purchase VALUES (1)")
    assert conservation.check(done, Journal({1}, {1}))


FALSE_PLACES = {
    "none": "DELETE FROM pgqueue.outcome WHERE ctid = (SELECT min(ctid) FROM pgqueue.outcome)",
    "two": "INSERT INTO pgqueue.ready SELECT 'default', 11, 999, job_id FROM pgqueue.outcome LIMIT 1",
    "no job": "INSERT INTO pgqueue.ready VALUES ('default', 11, 999, gen_random_uuid())",
    "conflict": "SELECT nextval('pgqueue.conflict')",
}


@pytest.mark.parametrize("how", FALSE_PLACES)
def test_the_invariant_can_fail(done: Connection, how: str) -> None:
    done.execute(FALSE_PLACES[how])  # type: ignore[call-overload]
    assert invariant.check(done)


A_JOB = "(SELECT job_id FROM pgqueue.outcome ORDER BY 1 LIMIT 1)"
FREE = "'00000000-0000-0000-0000-000000000001'"
CLAIM = "INSERT INTO pgqueue.running SELECT {}, 77, gen_random_uuid(), 'default', 11, 1, clock_timestamp()"
FALSE_HISTORIES = {
    "claimed after its end": [CLAIM.format(A_JOB)],
    "two holders": [CLAIM.format(FREE), "ALTER TABLE pgqueue.running DROP CONSTRAINT running_pkey", CLAIM.format(FREE)],
    "a changed claim": [CLAIM.format(FREE), "UPDATE pgqueue.running SET claim = 78"],
    "a step of a stranger": [
        CLAIM.format(FREE),
        f"INSERT INTO pgqueue.checkpoint VALUES ({FREE}, 1, 'x', '1', NULL, 78, '1', clock_timestamp())",
    ],
    "an outcome of a stranger": [
        CLAIM.format(FREE),
        f"INSERT INTO pgqueue.outcome (job_id, status, claim, finished_at) VALUES ({FREE}, 'failed', 78, clock_timestamp())",
    ],
    "ended and held": [
        CLAIM.format(FREE),
        f"INSERT INTO pgqueue.outcome (job_id, status, claim, finished_at) VALUES ({FREE}, 'failed', 77, clock_timestamp())",
    ],
    "ended twice": [
        "ALTER TABLE pgqueue.outcome DROP CONSTRAINT outcome_pkey",
        f"INSERT INTO pgqueue.outcome SELECT * FROM pgqueue.outcome WHERE job_id = {A_JOB}",
    ],
}


@pytest.mark.parametrize("how", FALSE_HISTORIES)
def test_claim_history_can_fail(done: Connection, how: str) -> None:
    for statement in FALSE_HISTORIES[how]:
        done.execute(statement)  # type: ignore[call-overload]
    assert claim_history.check(done)


def test_claim_history_knows_release_and_requeue(done: Connection) -> None:
    for statement in (CLAIM.format(FREE), "DELETE FROM pgqueue.running", f"DELETE FROM pgqueue.outcome WHERE job_id = {A_JOB}"):
        done.execute(statement)  # type: ignore[call-overload]
    assert claim_history.check(done) == []


# ------------------------------------------------------------------------------- what is judged by the server's log

ID = "00000000-0000-0000-0000-00000000000{}"
ENDS = "DELETE FROM pgqueue.running WHERE pos = {}"


def runs(n: int, key: str = "NULL", at: str = "clock_timestamp()", lane: int = 11) -> str:
    """The n-th job begins: it costs 2."""
    values = f"'{ID.format(n)}', 1, gen_random_uuid(), 'q', {lane}, {n}, {at}, false, NULL, 'q', {key}, 2"
    return f"INSERT INTO pgqueue.running VALUES ({values})"


@pytest.fixture
def history(conn: Connection) -> Iterator[History]:
    made = History(conn)
    yield made
    made.close()


def test_the_history_is_what_was_committed_in_that_order(conn: Connection, history: History, dsn: str) -> None:
    with connect(dsn, "late") as late, late.transaction():
        late.execute(runs(1, "'it''s'").encode())
        conn.execute(runs(2, at="'2026-01-01 00:00:00.5Z'").encode())
        with conn.transaction(force_rollback=True):
            conn.execute(runs(3).encode())
        conn.execute("UPDATE pgqueue.running SET suspect = true")
    with conn.transaction():
        history.note("now")
        conn.execute(ENDS.format(2).encode())
    history.note("and nothing else")
    seen = history.read()
    assert [[start.pos for start in commit.began] for commit in seen] == [[2], [1], [], []]
    assert [len(commit.ended) for commit in seen] == [0, 0, 1, 0]
    assert [commit.note for commit in seen] == [None, None, "now", "and nothing else"]
    assert seen[0].began[0].stamp == datetime(2026, 1, 1, 0, 0, 0, 500_000, UTC)
    last = starts(seen, "q")[1]
    assert (last.job, last.key, last.cost, last.lane) == (ID.format(1), "it's", 2, 11)
    assert seen[0].at < seen[1].at <= seen[2].at
    assert history.read() == []


def test_concurrency_can_fail(conn: Connection, history: History) -> None:
    for statement in (runs(1, "'a'"), runs(2, "'b'"), ENDS.format(1), runs(3, "'b'")):
        conn.execute(statement.encode())
    seen = history.read()
    assert concurrency.check(seen, "q", limit=4, per_key=2) == []
    assert concurrency.check(seen, "other", limit=1, per_key=1) == []
    assert "4 of 3" in concurrency.check(seen, "q", limit=3)[0]
    assert "2 of 1 of the key b" in concurrency.check(seen, "q", per_key=1)[0]
    assert concurrency.check(seen[:1], "q", limit=1) == [], "larger than the limit, and alone"
    assert 2 < concurrency.use(seen, "q") < 4
    assert (concurrency.most(seen, "q"), concurrency.most(seen, "other")) == (4, 0)


def test_rates_can_fail(conn: Connection) -> None:
    begin = datetime(2026, 1, 1, tzinfo=UTC)
    even = [(begin + timedelta(seconds=n / 10), 1) for n in range(30)]
    assert rates.check(even, 10) == []
    assert rates.throughput(even) == pytest.approx(10)
    one_more = [*even, (begin + timedelta(seconds=1.55), 1)]
    assert "11 began within 1 s" in rates.check(one_more, 10)[0]
    assert rates.check(one_more, 10, burst=2) == rates.check(one_more, 10, extra=1) == []
    assert rates.check([*even, (begin + timedelta(seconds=9), 5)], 10) == []


def test_a_limit_that_nobody_reaches_is_not_judged() -> None:
    reached, idle, broken = limited([], "3 may", 3, 3, 7), limited([], "3 may", 2, 3, 7), limited(["4 of 3"], "3 may", 2, 3, 7)
    assert (reached.judged, reached.idle, reached.seen) == (True, False, 7)
    assert idle.idle
    assert "not judged: 3 may, and never more than 2 did" in idle.note
    assert broken.wrong == ["4 of 3"]
    rounds = [Result("storm", "x", "1", verdicts={"rates": verdict}) for verdict in (idle, reached, idle)]
    whole = Report("smoke", 1, 0.0, {}, {}, rounds=rounds)
    assert "oracle rates                                ok  7 starts: 3 may; the most was 3" in list(table.lines(whole))
    assert not Report("smoke", 1, 0.0, {}, {}, rounds=rounds[:1]).verdicts()["rates"].judged


def test_key_order_can_fail(conn: Connection, history: History) -> None:
    for statement in (runs(2, "'a'"), ENDS.format(2), runs(1, "'a'"), runs(3, "'b'"), runs(4, "'b'", lane=1), ENDS.format(4)):
        conn.execute(statement.encode())
    conn.execute(ENDS.format(1).encode())
    seen = history.read()
    jobs = [start.job for start in starts(seen, "q")]
    assert key_order.check(seen, "q", dict(zip(jobs, (1, 2, 3, 4), strict=True))) == []
    wrong = key_order.check(seen, "q", dict(zip(jobs, (2, 1, 4, 3), strict=True)))
    assert [line.split(" key a ")[1].split()[0] for line in wrong] == ["began", "ended"]


A_STEP = "INSERT INTO pgqueue.checkpoint VALUES ({}, 1, 'bank.move', '1', NULL, 77, pg_current_xact_id(), clock_timestamp())"
AN_EFFECT = "INSERT INTO effect VALUES ({}, 1, pg_current_xact_id())"


def test_atomicity_can_fail(conn: Connection) -> None:
    """It reads nothing but the server's log: not even the tables are as pgqueue would have them."""
    bank.install(conn)
    slot = history_module.begin(conn)

    def wrong(*statements: str) -> list[str]:
        with conn.transaction():
            for statement in statements:
                conn.execute(statement)
        return atomicity.check(history_module.read(conn, slot), {}, frozenset({"bank.move"}))

    def job(n: int) -> str:
        return f"'{ID.format(n)}'"

    assert wrong(A_STEP.format(job(1)), AN_EFFECT.format(job(1))) == []
    assert wrong(A_STEP.format(job(2)).replace("bank.move", "bank.tell")) == [], "a plain step leaves nothing in the database"
    assert len(wrong(AN_EFFECT.format(job(3)))) == 1
    assert len(wrong(A_STEP.format(job(4)))) == 1
    assert len(wrong(A_STEP.format(job(5)), AN_EFFECT.format(job(5)), AN_EFFECT.format(job(5)))) == 1, "twice"
    assert len(wrong(A_STEP.format(job(6)), AN_EFFECT.format(job(7)))) == 1, "of another step"
    history_module.end(conn, slot)


def test_atomicity_sees_two_holders() -> None:
    start = Start("job", "worker", "q", 11, 1, datetime(2026, 1, 1, tzinfo=UTC), None, 1)
    commits = [Commit(start.stamp, began=[start]), Commit(start.stamp, ended=["job"]), Commit(start.stamp, began=[start])]
    assert atomicity.check(commits, {}, frozenset()) == []
    assert "is held" in atomicity.check([commits[0], commits[2]], {}, frozenset())[0]


def test_expectations_can_fail(done: Connection) -> None:
    assert expectations.check(done, {}) == []
    [(good,)] = done.execute("SELECT job_id::text FROM pgqueue.outcome LIMIT 1").fetchall()
    bad = Specimen("a bad job", "failed")
    assert "expected was failed" in expectations.check(done, {good: bad})[0]
    assert "is not there" in expectations.check(done, {ID.format(1): bad})[0]
    done.execute("UPDATE pgqueue.outcome SET status = 'failed', error = '{\"type\": \"Oops\"}' WHERE job_id = %s", (good,))
    assert expectations.check(done, {good: bad}) == []
    assert (
        "expected was failed Oops ... Pity"
        in expectations.check(done, {good: Specimen("a bad job", "failed", ("Oops", "Pity"))})[0]
    )
    assert "did nothing wrong" in expectations.check(done, {})[0]
    done.execute("UPDATE pgqueue.outcome SET status = 'cancelled' WHERE job_id = %s", (good,))
    assert "did nothing wrong" in expectations.check(done, {})[0]
    assert expectations.check(done, {}, {good}) == []


def test_expectations_of_a_job_that_kills_its_worker(done: Connection) -> None:
    """It may do so three times, and its error says how often it did, and how."""
    [(job,)] = done.execute("SELECT job_id::text FROM pgqueue.outcome LIMIT 1").fetchall()
    done.execute("UPDATE pgqueue.workflow SET max_crashes = 3")
    bad = {job: Specimen("a bad job", "failed", dies="killed by SIGSEGV")}

    def wrong(crashes: int, error: str, how: str = "killed by SIGSEGV") -> list[str]:
        with done.transaction(force_rollback=True):
            done.execute(
                "INSERT INTO pgqueue.attempt (job_id, kind, checkpoints, worker, error, ended_at) SELECT %s, 'crash', 0,"
                " gen_random_uuid(), json_build_object('message', %s::text), clock_timestamp() FROM generate_series(1, %s) n",
                (job, how, crashes),
            )
            died = "json_build_object('type', 'WorkerDied', 'message', %s::text)"
            done.execute(f"UPDATE pgqueue.outcome SET status = 'failed', error = {died} WHERE job_id = %s", (error, job))
            return expectations.check(done, bad)

    says = "the worker process died {} times while it ran this job, the last time: killed by SIGSEGV"
    assert wrong(3, says.format(3)) == []
    assert "given up after 1 crashes, 3 may be" in wrong(1, says.format(1))[0]
    assert "its error is 'WorkerDied: ?'" in wrong(3, "?")[0]
    assert "its error is" in wrong(3, says.format(2))[0]
    assert "'killed by SIGSEGV' is nowhere" in wrong(3, says.format(3), "exit code 1")[1]


def test_expectations_count_crashes(done: Connection) -> None:
    """Three times as many are allowed only to a job that was not alone in any worker that died."""
    jobs = [row[0] for row in done.execute("SELECT job_id FROM pgqueue.outcome ORDER BY 1 LIMIT 2").fetchall()]
    crash = (
        "INSERT INTO pgqueue.attempt (job_id, kind, checkpoints, worker, ended_at)"
        " SELECT %s, 'crash', 0, lpad(n::text, 32, '0')::uuid, clock_timestamp() FROM generate_series(%s::int, %s::int) n"
    )
    done.execute(crash, (jobs[0], 1, bank.ENOUGH))
    assert expectations.check(done, {}) == []
    done.execute(crash, (jobs[0], bank.ENOUGH + 1, bank.ENOUGH + 1))
    assert "was charged with 1001 crashes, and may have 1000" in expectations.check(done, {})[0]
    done.execute(crash, (jobs[1], 1, 1))
    assert expectations.check(done, {}) == []


def test_charges_can_fail(done: Connection) -> None:
    """Of a worker that was fenced somehow, with two of its jobs charged."""
    jobs = [row[0] for row in done.execute("SELECT job_id::text FROM pgqueue.outcome ORDER BY 1 LIMIT 2").fetchall()]
    worker, name = ID.format(7), done.execute("SELECT name FROM pgqueue.job WHERE id = %s", (jobs[0],)).fetchall()[0][0]

    def wrong(
        started: list[str] | None,
        *charged: str,
        killed: int = 0,
        killer: str = "",
        fence: bool = True,
        at_once: int = 2,
        said: str = "",
    ) -> str:
        with done.transaction(force_rollback=True):
            seen = "INSERT INTO worker_history (id, event, pid, reason, started) VALUES (%s, %s, 4711, %s, %s)"
            done.execute(seen, (worker, "registered", None, None))
            if fence:
                done.execute(seen, (worker, "fenced", "exit code 1", started))
            for job in charged:
                done.execute(
                    "INSERT INTO pgqueue.attempt (job_id, claim, kind, checkpoints, worker, error, ended_at)"
                    " VALUES (%s, 1, 'crash', 0, %s, json_build_object('message', %s::text), clock_timestamp())",
                    (job, worker, said),
                )
            return "; ".join(charges.check(done, [killed], [killer], at_once))

    assert wrong(jobs, *jobs, killed=4711) == wrong(jobs, *jobs, killer=name) == ""
    assert "nobody has killed it" in wrong(jobs, *jobs)
    assert f"job {jobs[1]} was charged, and had not begun" in wrong(jobs[:1], *jobs, killed=4711)
    assert "had not begun" in wrong([], jobs[0]), "it was drained"
    assert "2 jobs were charged" in wrong(jobs, *jobs, killed=4711, at_once=1)
    assert "charged 2 times for one run" in wrong(jobs, jobs[0], jobs[0], killed=4711)
    assert wrong(None, jobs[0]) == "", "its lease ran out, and it had one job"
    assert "2 jobs were charged" in wrong(None, *jobs)
    assert "nobody has fenced it" in wrong(None, jobs[0], fence=False)
    assert wrong([], jobs[0], said=charges.GONE) == ""
    assert "given behind its end" in wrong([], *jobs, said=charges.GONE)


def test_errors_of_jobs_that_raise_nothing_are_charges_too(done: Connection) -> None:
    assert charges.errors(done, [bank.tell.name]) == []
    done.execute(
        "INSERT INTO pgqueue.attempt (job_id, claim, kind, checkpoints, error, ended_at)"
        """ SELECT id, 1, 'error', 0, '{"type": "Drained"}', clock_timestamp() FROM pgqueue.job WHERE name = %s LIMIT 1""",
        (bank.tell.name,),
    )
    assert "has used up an attempt: Drained" in charges.errors(done, [bank.tell.name])[0]
    assert charges.errors(done, [bank.order.name]) == []
    assert charges.errors(done, [bank.insist.name]), "its step is refused"


def test_conservation_of_chosen_ids_can_fail(done: Connection) -> None:
    ids = {row[0] for row in done.execute("SELECT id::text FROM pgqueue.job WHERE parent IS NULL").fetchall()}
    inside = (bank.tell.name,)
    assert conservation.check_ids(done, ids, ids, inside) == []
    lost = {ID.format(1)}
    assert "no such job" in conservation.check_ids(done, ids | lost, ids | lost, inside)[0]
    assert conservation.check_ids(done, ids | lost, ids | lost, inside, lossy=True) == []
    assert conservation.check_ids(done, ids | lost, ids, inside) == [], "nobody knows"
    assert "nobody tried" in conservation.check_ids(done, set(), set(), inside)[0]
    done.execute("DELETE FROM pgqueue.outcome")
    assert "not finished" in conservation.check_ids(done, ids, ids, inside)[0]


def test_conservation_of_jobs_from_inside_can_fail(ticked: Connection) -> None:
    """Each grant has told somebody; and each strike is of a schedule."""
    assert conservation.check_grants(ticked) == []
    ids = {row[0] for row in ticked.execute("SELECT id::text FROM pgqueue.job WHERE parent IS NULL").fetchall()}
    strikes = {row[0] for row in ticked.execute("SELECT id::text FROM pgqueue.job WHERE name = %s", (bank.strike.name,))}
    assert strikes
    assert conservation.check_ids(ticked, ids - strikes, set(), ()) == []
    ticked.execute("UPDATE pgqueue.job SET policy = policy - 'meta' WHERE name = %s", (bank.strike.name,))
    assert "nobody tried" in conservation.check_ids(ticked, ids - strikes, set(), ())[0], "of no schedule"
    ticked.execute("DELETE FROM pgqueue.job WHERE name = %s AND parent IS NOT NULL", (bank.tell.name,))
    assert "2 grants have enqueued a job each, and there are 0" in conservation.check_grants(ticked)[0]


# ------------------------------------------------------------------------------ what is found while a round is under way


def test_migration_can_fail() -> None:
    killed, away, done = (-9, ""), (69, "no server"), (0, "")
    assert f21_migration.wrong([done, away], killed=False) == []
    assert f21_migration.wrong([killed, done], killed=True) == []
    assert "ended with 1: oops" in f21_migration.wrong([done, (1, "oops")], killed=False)[0]
    assert "ended with -9" in f21_migration.wrong([killed, done], killed=False)[0]
    assert "ended with -9" in f21_migration.wrong([done, killed], killed=True)[0]
    assert "none has worked" in f21_migration.wrong([killed, away, away], killed=True)[0]


def test_drain_can_fail() -> None:
    assert [f17_drain.wrong(code, "once", False, False) for code in (0, 75)] == [[], []]
    assert (
        f17_drain.wrong(-15, "booting", booting=True, forgiven=False) == f17_drain.wrong(-9, "once", False, forgiven=True) == []
    )
    for code in (1, 69, -9, -15):
        assert f"ended with {code}" in f17_drain.wrong(code, "once", booting=False, forgiven=False)[0]
    assert not_drained(0, []) == not_drained(69, [], forgiven=True) == []
    assert "ended with 69" in not_drained(69, [])[0]
    assert "ended with 75" in not_drained(75, [])[0]
    assert "left the processes [7]" in not_drained(0, [7])[0]


def test_prefix_can_fail(done: Connection) -> None:
    assert f09_failover.torn(done) == []
    done.execute(
        "DELETE FROM pgqueue.checkpoint WHERE ctid = (SELECT min(ctid) FROM pgqueue.checkpoint WHERE name LIKE '%.move')"
    )
    assert "effects: step" in f09_failover.torn(done)[0], "a moment later than the jobs"


def test_recovery_can_fail() -> None:
    bounds = {"one worker": 1.0}
    assert late(bounds, {"one worker": [0.2, 9.9], "another": [77.0]}) == []
    assert "one worker: 10.1 s" in late(bounds, {"one worker": [10.1]})[0]


A_TICK = """
WITH ticked AS (
    INSERT INTO pgqueue.tick (schedule, due_at, job_id, why, ticked_at)
    VALUES ('s', clock_timestamp() + %s * interval '1 s', gen_random_uuid(), 'due', clock_timestamp()) RETURNING job_id
)
INSERT INTO pgqueue.outcome (job_id, status, finished_at) SELECT job_id, 'succeeded', clock_timestamp() FROM ticked
"""


@pytest.fixture
def arena(server: Server, dsn: str, tmp_path: Path) -> Iterator[Arena]:
    """A round without hosts."""
    made = Arena(GivenServer(server.dsn), dsn, tmp_path, Setup(hosts=0, strikes=False), "7")
    with made.chaos:
        town.install(made.chaos.conn)
        yield made


def test_liveness_can_fail(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that nobody runs; and a fault that is never mended."""
    monkeypatch.setattr("chaos.storm.LIVENESS", 0.2)
    storm = Storm(Round("storm", "still"), arena.server, arena.directory, "7", lambda _: None)
    storm._drain(arena)
    assert arena.findings == []
    arena.add(bank.tell.call(1))
    storm._drain(arena)
    assert "liveness: nothing has moved" in arena.findings[0]
    over = threading.Event()
    nemesis = Nemesis(arena, [Entry(0.0, "F1", "7")], {"F1": fault(lambda *_: str(over.wait(60)))})
    nemesis.start()
    nemesis.stop(0.1)
    over.set()
    nemesis.stop()
    assert "liveness: a fault of the lane kills was not mended" in arena.findings[1]


def test_a_job_that_is_lost_is_found_while_a_schedule_ticks(arena: Arena, dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chaos.storm.LIVENESS", 0.2)
    arena.ticking = [arena.full_second("floor")] * 2
    arena.add(bank.tell.call(1))
    found = threading.Event()

    def tick() -> None:
        with connect(dsn, "clock") as conn:
            for second in range(1, 1000):
                conn.execute(A_TICK, (second,))
                if found.wait(0.01):
                    return

    clock = threading.Thread(target=tick)
    clock.start()
    storm = Storm(Round("storm", "ticking"), arena.server, arena.directory, "7", lambda _: None)
    assert not storm._drain(arena)
    assert clock.is_alive(), "not only when the ticks have stopped"
    found.set()
    clock.join()
    assert "liveness: nothing has moved" in arena.findings[0]
    [(last,)] = arena.chaos.query("SELECT max(due_at) FROM pgqueue.tick")
    arena.chaos.conn.execute("UPDATE pgqueue.tick SET job_id = (SELECT id FROM pgqueue.job) WHERE due_at = %s", (last,))
    assert storm._drain(arena), "what a schedule enqueues meanwhile is not waited for"


def test_the_suites_own_trouble_is_found(arena: Arena) -> None:
    def fails(*_: Any) -> str:
        raise LookupError("no idea")

    nemesis = Nemesis(arena, [Entry(0.0, "F1", "7")], {"F1": fault(fails)})
    nemesis.start()
    wait_for(lambda: arena.findings, "a finding")
    nemesis.stop()
    assert arena.findings == ["suite: injecting F1 failed: LookupError('no idea')"]
    assert with_findings({"suite": Verdict([])}, arena.findings)["suite"].wrong == ["injecting F1 failed: LookupError('no idea')"]


def fault(inject: Callable[..., str]) -> Fault:
    return replace(faults()["F1"], inject=inject)


#: Which tests show that each oracle of a round can fail.
SHOWN = {
    "effects": test_effects_can_fail,
    "atomicity": test_atomicity_can_fail,
    "concurrency": test_concurrency_can_fail,
    "ledger": test_the_ledger_can_fail,
    "conservation": test_conservation_can_fail,
    "claim history": test_claim_history_can_fail,
    "invariant": test_the_invariant_can_fail,
    "plain steps": test_plain_steps_can_fail,
    "rates": test_rates_can_fail,
    "key order": test_key_order_can_fail,
    "ticks": test_ticks_can_fail,
    "expectations": test_expectations_can_fail,
    "charges": test_charges_can_fail,
    "values": test_values_can_fail,
    "waits": test_waits_can_fail,
    "cancels": test_cancels_can_fail,
    "prefix": test_prefix_can_fail,
    "liveness": test_liveness_can_fail,
    "drain": test_drain_can_fail,
    "recovery": test_recovery_can_fail,
    "migration": test_migration_can_fail,
    "suite": test_the_suites_own_trouble_is_found,
}


def test_each_oracle_is_shown_something() -> None:
    assert SHOWN.keys() == {*NAMES, "recovery"}
    said = (ROOT / "chaos" / "README.md").read_text()
    assert [name for name in SHOWN if f"\n| {name} |" not in said] == []
