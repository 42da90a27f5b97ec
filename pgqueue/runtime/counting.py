"""What is counted of the steps of a run, and of the accidents that it meets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pgqueue import protocol
from pgqueue.metrics import CLAIM_LOST, IN_DOUBT, STEPS

if TYPE_CHECKING:
    from pgqueue.runtime.run import JobRun
    from pgqueue.runtime.session import Restart


def count_step(run: JobRun, step: str, kind: str, outcome: str) -> None:
    """``succeeded``, ``failed``, ``retry`` (will be tried again) or ``replayed``."""
    run.app.meter.add(STEPS, (run.name, step, kind, outcome))


def count_lost(run: JobRun, op: str) -> None:
    """A write was refused, because this run does not hold its job any more."""
    run.app.meter.add(CLAIM_LOST, (op,))


async def count_in_doubt(run: JobRun, restart: Restart, answer: str) -> None:
    """Where a COMMIT had no answer: what has become of it? ``answer``: what ``resolve`` says."""
    if restart.committing is None:
        return
    resolved = {"settled": "committed", "lost": "lost"}.get(answer, "aborted")
    if answer == "held" and restart.committing:
        there = await run.ground.sessions.run(protocol.continues(run.job_id, restart.committing))
        resolved = "committed" if there else "aborted"
    run.app.meter.add(IN_DOUBT, (resolved,))
