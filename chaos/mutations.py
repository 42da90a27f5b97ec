"""The changes that break pgqueue on purpose, and what has to notice each: the data of chaos/mutants.py."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

SQL = "pgqueue/sql/functions"


@dataclass(frozen=True)
class Edit:
    """A text that is in its file once, and what stands there instead."""

    file: str
    right: str
    wrong: str

    def apply(self, root: Path) -> None:
        path = root / self.file
        text = path.read_text()
        if text.count(self.right) != 1:
            raise LookupError(f"{self.file} contains this {text.count(self.right)} times, not once: {self.right!r}")
        path.write_text(text.replace(self.right, self.wrong))


@dataclass(frozen=True)
class Mutant:
    """What is broken, the test that must fail (or the storm that must find it), and what that has to say."""

    name: str
    test: str  # as pytest is told; or a command of pgqueue
    says: str  # a pattern in what it prints
    edits: tuple[Edit, ...]

    @property
    def by_storm(self) -> bool:
        """Is it a storm that has to find it?"""
        return self.test.startswith("pgqueue ")

    @property
    def oracle(self) -> str:
        """Of a storm: which one finds it. Its report has the name first."""
        return self.says.partition(":")[0] if self.by_storm else ""

    @property
    def command(self) -> list[str]:
        """What judges it, in the copy."""
        if self.by_storm:
            return [sys.executable, "-m", *self.test.split(), "--out", "out"]
        return [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-m", "", self.test]


MUTANTS = [
    Mutant(
        "fence removed",
        "tests/test_interleavings.py::test_a_zombie_and_its_successor",
        "AssertionError",
        (Edit(f"{SQL}/fence.sql", "AND r.claim = token FOR KEY SHARE", "FOR KEY SHARE"),),
    ),
    Mutant(
        "fence by a sequence",
        "tests/test_caught.py::test_no_token_comes_twice[restarted]",
        "came twice",
        (
            Edit(
                "pgqueue/ids.py",
                "def new_token() -> int:",
                "import itertools\n_numbers = itertools.count(1)\ndef new_token() -> int:",
            ),
            Edit("pgqueue/ids.py", "return int.from_bytes(os.urandom(8)) >> 2 or 1", "return next(_numbers)"),
        ),
    ),
    Mutant(
        "fence on the attempt",
        "tests/test_caught.py::test_no_token_comes_twice[taken away]",
        "came twice",
        (Edit("pgqueue/ids.py", "return int.from_bytes(os.urandom(8)) >> 2 or 1", "return 1  # no attempt has failed"),),
    ),
    Mutant(
        "checkpoint in a second transaction",
        "tests/test_failpoints.py::test_every_failpoint[transaction.committing-kill9]",
        r"has 2 effects|trail|movement|sum",
        (
            Edit(
                "pgqueue/runtime/session.py",
                "results = await self._exchange([closing, _COMMIT, *(self._calls(then) if then is not None else ())], view)",
                "then, first = None, await self._exchange([_COMMIT], view)\n"
                "        results = [*await self._exchange([closing]), *first]",
            ),
            Edit(f"{SQL}/checkpoint.sql", "IF pg_current_xact_id_if_assigned() IS DISTINCT FROM xid THEN", "IF false THEN"),
            Edit(f"{SQL}/finish.sql", "IF pg_current_xact_id_if_assigned() IS DISTINCT FROM xid THEN", "IF false THEN"),
        ),
    ),
    Mutant(
        "KEY SHARE in the in-doubt resolution",
        "tests/test_interleavings.py::test_resolve",
        "AssertionError",
        (Edit(f"{SQL}/resolve.sql", "r.claim = token FOR UPDATE;", "r.claim = token FOR KEY SHARE;"),),
    ),
    Mutant(
        "no continuity check at settle",
        "tests/test_caught.py::test_a_job_whose_checkpoint_is_gone_is_not_settled",
        "settled without the effect",
        (
            Edit(
                f"{SQL}/settle.sql",
                "WHERE (g.seen = 0 OR k.job_id IS NOT NULL) AND g.how <> 'suspend'",
                "WHERE g.how <> 'suspend'",
            ),
        ),
    ),
    Mutant(
        "reap without compare",
        "tests/test_interleavings.py::test_two_reapers",
        "AssertionError",
        (Edit(f"{SQL}/reap.sql", "FOR UPDATE OF r SKIP LOCKED", ""),),
    ),
    Mutant(
        "no reconciliation of unknown claims",
        "tests/test_caught.py::test_a_claim_that_its_worker_does_not_know_is_given_back",
        "nobody runs it",
        (Edit("pgqueue/housekeeper/recovery.py", "    if unknown:\n", "    if unknown and not held:\n"),),
    ),
    Mutant(
        "reconciliation that reads memory first",
        "tests/test_caught.py::test_a_claim_that_arrives_between_the_two_looks_is_kept",
        "a live job was taken away",
        (
            Edit(
                "pgqueue/housekeeper/recovery.py",
                "    claims = run(conn, protocol.held_claims([worker for worker in by_worker if worker]))\n    failpoint",
                "    held = {worker: slot.held() for worker, slot in by_worker.items()}\n    failpoint",
            ),
            Edit(
                "pgqueue/housekeeper/recovery.py",
                "    held = {worker: slot.held() for worker, slot in by_worker.items()}\n    unknown",
                "    claims = run(conn, protocol.held_claims([worker for worker in by_worker if worker]))\n    unknown",
            ),
        ),
    ),
    Mutant(
        "no Sync between settle and claim",
        "tests/test_caught.py::test_settle_and_claim_never_share_a_transaction",
        "one transaction settled and claimed",
        (
            Edit(
                "pgqueue/worker/claims.py",
                "self._wire.send(*groups)",
                "self._wire.send([call for group in groups for call in group])",
            ),
        ),
    ),
    Mutant(
        "claim that returns what it did not insert",
        "tests/test_interleavings.py::test_a_row_too_many_is_claimed_once",
        "AssertionError",
        (
            Edit(
                f"{SQL}/claim.sql",
                "AND ((SELECT count(*) FROM conflicts) = 0 OR k.pos = ANY (ARRAY(SELECT s.pos FROM started s)))",
                "AND (SELECT count(*) FROM conflicts) >= 0",
            ),
        ),
    ),
    Mutant(
        "fence without comparing the beat",
        "tests/test_interleavings.py::test_heartbeat_and_fence",
        "AssertionError",
        (Edit(f"{SQL}/fence_worker.sql", "AND w.beat = coalesce(seen_beat, w.beat)", ""),),
    ),
    Mutant(
        "who waits for its turn leaves no word",
        "tests/test_interleavings.py::test_the_order_of_a_key[another comes while the last one goes]",
        "AssertionError",
        (Edit(f"{SQL}/line_up.sql", "FROM placed p WHERE p.behind) t;", "FROM placed p WHERE false) t;"),),
    ),
    Mutant(
        "edge-triggered wake",
        "tests/test_interleavings.py::test_what_it_waits_for_comes_while_it_is_suspended",
        "AssertionError",
        (Edit(f"{SQL}/suspend.sql", "PERFORM pgqueue.look_again(looked);", "NULL;"),),
    ),
    Mutant(
        "now() for the clock",
        "tests/test_caught.py::test_time_goes_on_inside_a_transaction",
        "the clock stood still",
        (Edit(f"{SQL}/clock.sql", "SELECT clock_timestamp()", "SELECT now()"),),
    ),
    Mutant(
        "in-doubt commit treated as failure",
        "tests/test_runtime.py::test_connection_lost_in_a_step_replays",
        "Error",
        (
            Edit(
                "pgqueue/runtime/transact.py",
                "    if lost and not isinstance(error, ClaimLost):\n",
                "    if lost and error is None:\n",
            ),
        ),
    ),
    Mutant(
        "swallowed ClaimLost",
        "tests/test_runtime.py::test_a_lost_claim_cannot_be_swallowed",
        "AssertionError",
        (
            Edit("pgqueue/errors.py", "class ClaimLost(BaseException):", "class ClaimLost(Exception):"),
            Edit(
                "pgqueue/runtime/run.py",
                "            self._ending = ending\n        raise ending",
                "            pass\n        raise ending",
            ),
        ),
    ),
]

#: The first round of the plan smoke: a little of everything at once. Each of these breaks what that does again and again.
STORM = "pgqueue chaos run --minutes 0.2 --seed 1620"
REAP = f"{SQL}/reap.sql"
MUTANTS += [
    Mutant(
        "no schedule ever fires",
        STORM,
        "ticks: round 0: .* has never ticked",
        (
            Edit(
                "pgqueue/housekeeper/ticks.py",
                '    failpoint("tick.before")\n',
                '    return 0, None\n    failpoint("tick.before")\n',
            ),
        ),
    ),
    Mutant(
        "schedules stop after five ticks",
        STORM,
        "ticks: round 0: .* has stopped at",
        (
            Edit(
                f"{SQL}/due_schedules.sql",
                "s.next_at <= moment ORDER BY",
                "s.next_at <= moment AND (SELECT count(*) < 5 FROM pgqueue.tick) ORDER BY",
            ),
        ),
    ),
    Mutant(
        "some jobs that are due are never promoted",
        STORM,
        "liveness: round 0: nothing has moved",
        (
            Edit(
                f"{SQL}/promote.sql",
                "WHERE s.run_at <= pgqueue.clock_bound() ORDER",
                "WHERE s.run_at <= pgqueue.clock_bound() AND s.job_id::text !~ '[0-3]$' ORDER",
            ),
        ),
    ),
    Mutant(
        "migrate that never works",
        STORM,
        "migration: round 0: one has ended with 1",
        (
            Edit(
                "pgqueue/cli/commands.py",
                "        applied = migrate.migrate(conn, roles)\n",
                "        raise SystemExit(1)\n        applied = migrate.migrate(conn, roles)\n",
            ),
        ),
    ),
    Mutant(
        "a poison job is given up after one crash",
        STORM,
        "expectations: round 0: .* given up after 1 crashes",
        (
            Edit(
                REAP,
                "p.crashes + 1 >= coalesce((j.policy ->> 'max_crashes')::integer, w.max_crashes, 3)",
                "p.crashes + 1 >= CASE WHEN coalesce(w.max_crashes, 3) = 3 THEN 1 ELSE 1000 END",
            ),
        ),
    ),
    Mutant(
        "a poison job does not say why",
        STORM,
        r"expectations: round 0: .* its error is 'WorkerDied: \?'",
        (
            Edit(
                REAP,
                "format('the worker process died %s times while it ran this job, the last time: %s', crash.times, reason)",
                "'?'",
            ),
        ),
    ),
    Mutant(
        "every job that is given back is charged",
        STORM,
        "charges: round 0: worker .* was charged, and had not begun",
        (
            Edit(
                REAP,
                "reason IS NOT NULL AND (r.job_id = ANY (started) OR (reap.kind = 'lost' AND alone)) AS charged",
                "true AS charged",
            ),
        ),
    ),
    Mutant(
        "some replayed steps run again",
        STORM,
        "plain steps: round 0: step .* ran although it had a checkpoint",
        (
            Edit(
                "pgqueue/runtime/steps.py",
                "        return _replayed(function, seq, recorded)\n",
                '        if function.kind == "step" and recorded.result is not None and seq % 20 == 5:\n'
                "            with run.inside(seq):\n"
                "                await run.invoke(function, **arguments)\n"
                "        return _replayed(function, seq, recorded)\n",
            ),
        ),
    ),
    Mutant(
        "some plain steps run twice in a healthy worker",
        STORM,
        "plain steps: round 0: step .* ran 2 times for claim .*, which lost its connection 0 times",
        (
            Edit(
                "pgqueue/runtime/steps.py",
                '    run.only_in_the_worker()\n    failpoint("step.after_effect")\n',
                "    run.only_in_the_worker()\n"
                "    if seq % 20 == 5:\n"
                "        text = run.result_text(function, await run.invoke(function, **arguments))\n"
                '    failpoint("step.after_effect")\n',
            ),
        ),
    ),
    Mutant(
        "numbers are stored as 0 by steps",
        STORM,
        "values: round 0: .* its steps have stored",
        (
            Edit(
                f"{SQL}/checkpoint.sql",
                "checkpoint.name, checkpoint.result, checkpoint.error",
                "checkpoint.name, CASE WHEN checkpoint.result ~ '^[0-9]+$' THEN '0' ELSE checkpoint.result END, checkpoint.error",
            ),
        ),
    ),
    Mutant(
        "numbers are stored as 0 at settle",
        STORM,
        "values: round 0: .* its result is 0, and it returned",
        (
            Edit(
                f"{SQL}/settle.sql",
                "SELECT h.job_id, h.how, h.result, h.detail",
                "SELECT h.job_id, h.how, CASE WHEN h.result ~ '^[0-9]+$' THEN '0' ELSE h.result END, h.detail",
            ),
        ),
    ),
    Mutant(
        "settle without the fence",
        STORM,
        "values: round 0: linger, .* with the result of claim",
        (
            Edit(
                f"{SQL}/settle.sql",
                "AND r.claim = g.token\n          LEFT JOIN LATERAL",
                "\n          LEFT JOIN LATERAL",
            ),
        ),
    ),
    Mutant(
        "an event wakes nobody",
        STORM,
        "waits: round 0: .* waits for the event",
        (Edit(f"{SQL}/wake_jobs.sql", "OR e.key IS NOT NULL OR m.pos", "OR m.pos"),),
    ),
    Mutant(
        "a sleep ends at once",
        STORM,
        "waits: round 0: .* the sleep of .* was over after",
        (
            Edit(
                f"{SQL}/proceed.sql",
                "        until := coalesce(until, nullif(key, '')::timestamptz);",
                "        result := '{\"timeout\":true}';",
            ),
            Edit(
                f"{SQL}/suspend.sql",
                "CASE WHEN w.job_id IS NOT NULL THEN w.until WHEN d.kind = 'sleep' AND d.key",
                "CASE WHEN d.kind = 'sleep' THEN stamp WHEN w.job_id IS NOT NULL THEN w.until WHEN d.kind = 'sleep' AND d.key",
            ),
        ),
    ),
    Mutant(
        "between its steps nobody hears that a job is to end",
        STORM,
        "cancels: round 0: .* steps after it was asked to end",
        (Edit(f"{SQL}/checkpoint.sql", "    RETURN FOUND;", "    RETURN false;"),),
    ),
    Mutant(
        "every third tick has no job",
        STORM,
        "ticks: round 0: the tick of schedule .* has no job: overlap",
        (
            Edit(
                f"{SQL}/tick.sql",
                "    ids := pgqueue.enqueue_ticks",
                "    IF s.revision % 3 = 0 THEN runs := '{}'; END IF;\n    ids := pgqueue.enqueue_ticks",
            ),
        ),
    ),
    Mutant(
        "one more than may at once",
        STORM,
        "concurrency: round 0: .* 4 of 3 are running in few",
        (
            Edit(
                f"{SQL}/pick_limited.sql",
                "room := q.concurrency - pgqueue.used(q);",
                "room := q.concurrency + 1 - pgqueue.used(q);",
            ),
        ),
    ),
    Mutant(
        "twice the rate",
        STORM,
        "rates: round 0: .* began within 1 s",
        (
            Edit(
                f"{SQL}/take_start.sql",
                "ceil(cost * seconds / amount * 1e6)",
                "ceil(cost * seconds / amount / 2 * 1e6)",
            ),
            Edit(
                f"{SQL}/take_start.sql",
                "ceil(take_start.cost * seconds / amount * 1e6)",
                "ceil(take_start.cost * seconds / amount / 2 * 1e6)",
            ),
        ),
    ),
    Mutant(
        "jobs of a dead worker that had not begun use up an attempt",
        STORM,
        "charges: round 0: job .* whose code raises nothing, has used up an attempt",
        (
            Edit(REAP, "WHERE d.charged OR (reap.kind = 'lost' AND reason IS NOT NULL)", "WHERE true"),
            Edit(REAP, "WHEN d.charged THEN 'crash' ELSE 'lost' END", "WHEN d.charged THEN 'crash' ELSE 'error' END"),
        ),
    ),
]
