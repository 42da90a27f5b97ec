"""What the housekeeper counts of jobs that it takes back from workers, or ends for them."""

from __future__ import annotations

from pgqueue.meter import Meter
from pgqueue.metrics import JOBS, RECOVERED
from pgqueue.model import ENDED
from pgqueue.protocol import Rows


def count_recovered(meter: Meter, reason: str, amount: int) -> None:
    """Jobs were given back: ``crash``, ``timeout``, ``ended`` (by their supervisor, and nobody is charged) or ``lost``."""
    if amount:
        meter.add(RECOVERED, (reason,), amount)


def count_ended(meter: Meter, jobs: Rows) -> None:
    """Those of these jobs that have ended: their worker did not live to count them."""
    for _, name, queue, state in jobs:
        if state in ENDED:
            meter.add(JOBS, (queue, name, state))
