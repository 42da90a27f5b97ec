"""Checks the model exhaustively with spin, and that it can fail: each mutant must lead to an assertion that does not hold.

``python -m chaos.promela.check`` (``make model``), or with the names of mutants. Needs ``spin`` and ``gcc``.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

MODEL = Path(__file__).parent / "job.pml"
NEEDED = ("spin", "gcc")

#: What is broken in each mutant, and how many faults in one history it takes to show.
MUTANTS = {
    "NO_FENCE": ("no write looks whether its run still holds the claim", 1),
    "SEQUENCE_FENCE": ("claims are numbered by a sequence, which a crash takes back", 2),
    "ATTEMPT_FENCE": ("claims are numbered by the attempt, which is the same again after a run was taken away", 1),
    "SECOND_TRANSACTION": ("the checkpoint of a transaction is stored in a second one", 2),
    "KEY_SHARE_IN_DOUBT": ("whoever asks what became of a COMMIT does not wait for the old session", 2),
    "NO_CONTINUITY_AT_SETTLE": ("settling does not look whether the last checkpoint that the run saw is still there", 2),
    "NO_COMPARE_IN_REAP": ("reaping takes the job, whoever holds it by now", 1),
    "NO_BEAT_IN_FENCE": ("a worker is fenced although it has beaten since it was looked at", 1),
    "NO_RECONCILIATION": ("a claim whose reply was lost is looked for by nobody", 1),
    "MEMORY_FIRST": ("reconciliation reads what the worker knows first, and the table second", 1),
    "NO_SYNC": ("settle shares a transaction, and so an asynchronous commit, with the next claim", 2),
    "DOUBT_IS_FAILURE": ("a COMMIT of which nothing was heard counts as failed", 2),
    "CLAIM_LOST_IS_SWALLOWED": ("a run that was told that its claim is lost goes on to the next step", 1),
}

#: A second housekeeper for one of the workers makes four times as many states: for the protocol, and what only two can get wrong.
TWO_HOSTS = ("", "NO_COMPARE_IN_REAP")


@dataclass
class Verdict:
    """What spin says."""

    violated: str  # the assertion, or "" where all hold
    states: int
    seconds: float

    def __str__(self) -> str:
        return f"({self.states:,} states, {self.seconds:.1f} s)"


def missing() -> list[str]:
    """The programs that are needed and not there."""
    return [program for program in NEEDED if shutil.which(program) is None]


def check(mutant: str = "", faults: int = 1, seconds: float = 600) -> Verdict:
    """Look at every state of the model, or of a mutant."""
    with tempfile.TemporaryDirectory(prefix="promela-") as home:
        defines = [f"-DFAULTS={faults}", *([f"-D{mutant}"] if mutant else [])]
        if mutant in TWO_HOSTS:
            defines.append("-DTWO_HOSTS")
        _run(["spin", "-a", *defines, str(MODEL)], home, seconds)
        _run(["gcc", "-O2", "-w", "-DSAFETY", "-DCOLLAPSE", "-DMEMLIM=6000", "-o", "pan", "pan.c"], home, seconds)
        began = time.monotonic()
        said = _run(["./pan", "-m100000"], home, seconds)
    seconds = time.monotonic() - began
    violated = re.search(r"^pan:1: (?:assertion violated +)?(.*?) \(at depth", said, re.MULTILINE)
    states = re.search(r"([\d.e+]+) states, stored", said)
    if violated is None and ("Search not completed" in said or states is None):
        raise RuntimeError(f"spin did not look at everything:\n{said}")
    return Verdict(violated[1] if violated else "", int(float(states[1])) if states else 0, seconds)


def _run(command: list[str], home: str, seconds: float) -> str:
    done = subprocess.run(command, cwd=home, capture_output=True, text=True, timeout=seconds, check=False)
    if done.returncode or not Path(home, "pan.c").exists():
        raise RuntimeError(f"{' '.join(command)}:\n{done.stdout}{done.stderr}")
    return done.stdout


def main(names: list[str]) -> int:
    """Print a verdict for the model, or for each of these mutants and the model: what ``make model`` shows."""
    if missing():
        print(f"!!! SKIPPED: {' and '.join(missing())} not found (Debian: apt install spin gcc)")
        return 0
    wrong = 0
    if not names:
        verdict = check()
        wrong += bool(verdict.violated)
        print(f"{'BROKEN: ' + verdict.violated if verdict.violated else 'holds'}: the protocol {verdict}")
    for name in names or MUTANTS:
        what, faults = MUTANTS[name]
        verdict = check(name, faults)
        wrong += not verdict.violated
        print(f"{'caught' if verdict.violated else 'NOT CAUGHT'}: {name}: {what} {verdict}", flush=True)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
