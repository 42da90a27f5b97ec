"""What a worker counts of its claims and of the jobs that it has run."""

from __future__ import annotations

import logging

from pgqueue.meter import Meter
from pgqueue.metrics import CLAIM_BATCH, CLAIM_LOST, CLAIMS, DURATION, JOBS, RUNS, WAIT
from pgqueue.model import ENDED, Settlement

log = logging.getLogger(__name__)


def count_claim(meter: Meter, found: int) -> None:
    """A claim was answered."""
    meter.add(CLAIMS, ("jobs" if found else "empty",))
    if found:
        meter.observe(CLAIM_BATCH, (), found)


def count_run(meter: Meter, settlement: Settlement, answer: str | None) -> None:
    """A run is over, and the database has said what it makes of it."""
    job = settlement.job
    how = job.ended if settlement.how == "nothing" else settlement.how
    if answer == "lost":
        meter.add(CLAIM_LOST, ("settle",))
        how = None
    labels = (job.queue, job.name.partition("@")[0])
    if how is not None:
        meter.add(JOBS if how in ENDED else RUNS, (*labels, how))
    if job.took is not None:
        if how is not None and log.isEnabledFor(logging.DEBUG):
            about = {"job_id": job.id, "workflow": labels[1], "queue": job.queue, "duration_ms": round(1000 * job.took, 1)}
            log.debug("a run has ended: %s", how, extra=about)
        meter.observe(DURATION, labels, job.took)
        if job.waited is not None:
            meter.observe(WAIT, labels, job.waited)
