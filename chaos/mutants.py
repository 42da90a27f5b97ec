"""pgqueue, broken on purpose: each mutant is a small change of its source, and names what has to notice.

``python -m chaos.mutants [NAME ...]`` (``make mutants``) makes the change in a copy of the project, runs what is to catch it
there, and says how long that took. ``--write`` puts the table into docs/chaos/mutants.md.

A change that does not fit its file any more, or fits twice, is an error: a mutant cannot rot in silence.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "chaos" / "mutants.md"
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
    """What is broken, the test that must fail, and what that has to say."""

    name: str
    test: str  # as pytest is told
    says: str  # a pattern in what it prints
    edits: tuple[Edit, ...]


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


@dataclass
class Verdict:
    """Whether it was noticed."""

    caught: bool
    seconds: float
    said: str


def copy_with(mutant: Mutant, root: Path) -> None:
    """The project, with that mutant in it."""
    for name in ("pgqueue", "chaos", "tests"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", root)
    for edit in mutant.edits:
        edit.apply(root)


def judge(mutant: Mutant) -> Verdict:
    """Run its test in a copy."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as home:
        copy_with(mutant, Path(home))
        environment = {**os.environ, "PYTHONPATH": home, "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-m", "", mutant.test]
        began = time.monotonic()
        done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, timeout=300, check=False)
        seconds = time.monotonic() - began
    said = done.stdout + done.stderr
    # 1: tests ran, and some failed. An error before the test (2, 4, 5) is no oracle that has spoken.
    caught = done.returncode == 1 and " failed" in said and re.search(mutant.says, said) is not None
    return Verdict(caught, seconds, said)


def table(verdicts: dict[str, Verdict]) -> str:
    """As the page shows it."""
    lines = ["| what is broken | where | caught by | seconds |", "|---|---|---|--:|"]
    for mutant in MUTANTS:
        files = ", ".join(dict.fromkeys(f"`{Path(edit.file).name}`" for edit in mutant.edits))
        lines.append(f"| {mutant.name} | {files} | `{mutant.test}` | {verdicts[mutant.name].seconds:.0f} |")
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Judge all, or those that are named."""
    write = "--write" in arguments
    names = [name for name in arguments if name != "--write"]
    verdicts: dict[str, Verdict] = {}
    for mutant in MUTANTS:
        if names and mutant.name not in names:
            continue
        verdict = verdicts[mutant.name] = judge(mutant)
        print(f"{'caught' if verdict.caught else 'NOT CAUGHT'} in {verdict.seconds:.0f} s: {mutant.name}", flush=True)
        if not verdict.caught:
            print(verdict.said[-3000:])
    if write and len(verdicts) == len(MUTANTS):
        before, _, rest = PAGE.read_text().partition("<!-- begin -->\n")
        PAGE.write_text(f"{before}<!-- begin -->\n{table(verdicts)}\n<!-- end -->\n{rest.partition('<!-- end -->' + chr(10))[2]}")
    return int(not all(verdict.caught for verdict in verdicts.values()) or not verdicts)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
