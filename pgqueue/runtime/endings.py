"""How the code of a job is left for good, before it has come to its end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from pgqueue.errors import ClaimLost
from pgqueue.model import Settlement
from pgqueue.runtime.session import Restart

if TYPE_CHECKING:
    from pgqueue.runtime.run import JobRun


class Unwind(BaseException):
    """Leaves the user's code because the run is over for now, with what becomes of the job."""

    def __init__(self, settlement: Settlement | None) -> None:
        self.settlement = settlement


def merged(run: JobRun, endings: Sequence[BaseException]) -> BaseException:
    """Steps that ran at once have ended their run, each in its own way: how it ends."""
    for kind in (ClaimLost, Restart):
        for ending in endings:
            if isinstance(ending, kind):
                return ending
    settlements = [ending.settlement for ending in endings if isinstance(ending, Unwind) and ending.settlement is not None]
    for settlement in settlements:
        if settlement.how != "retry":
            return Unwind(settlement)
    details = [msgspec.json.decode(settlement.detail or "{}") for settlement in settlements]
    errors = [error for detail in details for error in detail.get("errors", [])]
    return Unwind(run.settlement("retry", {"errors": errors, "delay": max(detail["delay"] for detail in details)}))
