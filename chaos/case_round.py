"""A round of cases: each fault at each place, several at a time, each with a database and processes of its own
(chaos/sweep.py)."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from chaos.cases import HANG, LEASE, Case, all_cases, failpoint_names
from chaos.databases import copy_of
from chaos.plan import Round
from chaos.results import Result
from chaos.server import Server
from chaos.sweep import Sweep
from chaos.verdicts import Verdict

AT_ONCE = 6
SLEEP = "sleep:0.4"
#: A worker, or a whole host, is overtaken while it stands still at these.
OVERTAKEN = (
    "transaction.fenced",
    "transaction.committing",
    "step.after_effect",
    "settle.before",
    "claim.before",
    "heartbeat.before",
)
#: A process is killed at one of these, and then whoever deals with that, or runs its job next.
ON_THE_WAY = ("bank.", "claim.", "dispatch.", "settle.", "step.", "transaction.", "failure.", "heartbeat.", "promote.")
JOBLESS = ("heartbeat.", "promote.")  # nothing has to be reaped when one of these dies


class Cases:
    """One round."""

    def __init__(self, entry: Round, server: Server, directory: Path, seed: str, say: Callable[[str], None]) -> None:
        self._round, self._server, self._directory, self._seed, self._say = entry, server, directory, seed, say

    def run(self, seconds: float) -> Result:
        """All that the plan asks for, however long it takes."""
        began = time.time()
        cases = self.all()
        wrong: list[str] = []
        with ThreadPoolExecutor(AT_ONCE) as pool:
            running = {pool.submit(self._play, case): case for case in cases}
            try:
                for number, done in enumerate(as_completed(running), 1):
                    error = done.exception()
                    if error is not None:
                        wrong.append(f"{running[done]}: {str(error)[:2000]}")
                        (self._directory / "wrong.txt").open("a").write(f"{running[done]}: {error}\n\n")
                    self._say(f"{self._round.name}: {number}/{len(cases)} cases, {len(wrong)} wrong")
            finally:
                pool.shutdown(cancel_futures=True)  # whoever interrupts us does not wait for the others
        kinds = Counter(case.action.partition(":")[0] + (" twice" if "=kill9" in case.first else "") for case in cases)
        note = f"{len(cases)} faults at {len({case.failpoint for case in cases})} places"
        result = Result("cases", self._round.name, self._seed, time.time() - began, cases=dict(kinds))
        result.counts = {"SIGKILLs": kinds["kill9"] + 2 * kinds["kill9 twice"]}
        result.verdicts = {"cases": Verdict(wrong, note)}
        return result

    def all(self) -> list[Case]:
        """Each once, in the order in which they are begun."""
        if self._round.only:
            return [Case.of(*text.split("=")) for text in self._round.only]
        singles = all_cases() + [Case.of(name, SLEEP) for name in failpoint_names()]
        singles += [
            Case.of(name, how) for name in OVERTAKEN for how in (HANG, LEASE) if (name, how) != ("heartbeat.before", HANG)
        ]
        chance = random.Random(self._seed)
        if self._round.sample:
            singles = chance.sample(singles, min(self._round.sample, len(singles)))
        return singles + chance.sample([pair for pair in pairs() if pair not in singles], self._round.pairs)

    def _play(self, case: Case) -> None:
        directory = self._directory / str(case)
        directory.mkdir()
        with copy_of(self._server.dsn, self._server.name) as dsn:
            Sweep(case, dsn, directory).run()


def pairs() -> list[Case]:
    """A process is killed, and then again the one that runs its job next, or whoever deals with the death."""
    killers = [name for name in failpoint_names() if name.startswith(ON_THE_WAY)]
    recovery = [*killers, "supervisor.child_reaped", "reap.selected", "reap.committed"]
    return [
        Case(again, "kill9", f"{first}=kill9")
        for first in killers
        for again in recovery
        if first != again and not (first.startswith(JOBLESS) and again.startswith("reap."))
    ]
