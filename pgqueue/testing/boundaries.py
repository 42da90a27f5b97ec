"""The places at which ``crash_matrix`` kills a process: the failpoints that a job passes on its way, and what they mean."""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from pgqueue.context import joined_run
from pgqueue.runtime.open_steps import open_step

How = Literal["kill", "lost", "durable"]


class Place(NamedTuple):
    """What a failpoint is, to the author of a workflow."""

    words: str
    lost: str = ""  # the COMMIT that follows, if one does: killed inside of it, and it never happens
    durable: str = ""  # and it does, but nobody is there to hear of it


#: Others are not told apart: what is stored is the same as at one of these.
PLACES = {
    "dispatch.before_run": Place("before its first line"),
    "step.before_effect": Place("before its code"),
    "step.after_effect": Place(
        "after its code, before its checkpoint", "inside the COMMIT of its checkpoint", "after that COMMIT, before the answer"
    ),
    "step.checkpointed": Place("after its checkpoint"),
    "transaction.before_begin": Place("before its code"),
    "transaction.user_code_done": Place("after its code, before COMMIT", "inside COMMIT", "after COMMIT, before the answer"),
    "transaction.committed": Place("after it"),
    "failure.before_recorded": Place("after its code has raised", "inside the COMMIT of that", "after that COMMIT"),
    "failure.recorded": Place("after its error is stored"),
    "settle.before": Place(
        "after its last line, or where it leaves to wait", "inside the COMMIT of that", "after that COMMIT, before the answer"
    ),
}
LAST = "settle.before"  # not inside any step
COMMITTED = "transaction.committed"


@dataclass(frozen=True)
class Boundary:
    """One place, as one run comes by it. Equal in every run: ids of jobs are not."""

    name: str  # of the failpoint
    job: str  # the name of what was enqueued
    seq: int  # of the step; 0: none
    nth: int  # time that this happens
    how: How = "kill"

    @property
    def words(self) -> str:
        place = PLACES[self.name]
        return {"kill": place.words, "lost": place.lost, "durable": place.durable}[self.how]

    def variants(self) -> list[Boundary]:
        """Itself; and in the COMMIT that follows, both ways in which that can end."""
        ways: list[How] = ["kill", "lost", "durable"] if PLACES[self.name].lost else ["kill"]
        return [replace(self, how=how) for how in ways]


class Watch:
    """Stands at every failpoint of this process. Notes what comes by, and strikes at ``target``."""

    def __init__(self, target: Boundary | None, before: Sequence[tuple[Boundary, str]]) -> None:
        self.passed: list[tuple[Boundary, str]] = []  # with the id of the job
        self._target = target
        self._times = Counter((boundary.name, boundary.job, boundary.seq) for boundary, _ in before)
        self._job = ("", "")

    def install(self, hold: Callable[[], None]) -> None:
        """From now on, until the process ends. ``hold``: what to do where the target is inside the COMMIT that comes next."""
        self._hold = hold
        for name, module in list(sys.modules.items()):
            if name.startswith("pgqueue.") and hasattr(module, "failpoint"):
                module.failpoint = self  # type: ignore[attr-defined]

    def __call__(self, name: str) -> None:
        if name not in PLACES:
            return
        run, step = joined_run(), open_step.get()
        if run is not None:
            self._job = (run.name, run.job_id)
        key = (name, self._job[0], step.seq if step is not None and name != LAST else 0)
        if name == LAST and self._has_ended():
            return
        self._times[key] += 1
        boundary = Boundary(*key, self._times[key])
        self.passed.append((boundary, self._job[1]))
        if self._target is None or boundary != replace(self._target, how="kill"):
            return
        if self._target.how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        self._hold()

    def _has_ended(self) -> bool:
        """Was the job one transaction, whose COMMIT is its end? Then nothing more is stored, and no COMMIT comes."""
        last = self.passed[-1][0] if self.passed else None
        return last is not None and (last.name, last.job, last.seq) == (COMMITTED, self._job[0], 0)
