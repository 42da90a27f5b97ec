"""What operators have asked for by signals, and what holds until they ask for something else: through a reload, and where the
supervisor executes itself again. Used by the supervisor."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass

import msgspec

VARIABLE = "PGQUEUE_STANDING"  # from one execution to the next; never there for children


@dataclass
class Standing:
    """Claim nothing (TSTP), and so many workers (TTIN, TTOU) instead of what the settings said then (0: auto)."""

    paused: bool = False
    workers: int = 0
    instead_of: int = -1

    @classmethod
    def taken(cls) -> Standing:
        """What the last execution has left for this one."""
        left = os.environ.pop(VARIABLE, "")
        return msgspec.json.decode(left, type=cls) if left else cls()

    def variables(self) -> dict[str, str]:
        """For the next execution."""
        return {VARIABLE: msgspec.json.encode(asdict(self)).decode()}

    def ask_for(self, workers: int, instead_of: int) -> None:
        """So many from now on, as long as the settings do not change their mind."""
        self.workers, self.instead_of = workers, instead_of

    def count(self, setting: int) -> int:
        """How many workers there should be, where the settings say this."""
        return self.workers if setting == self.instead_of else setting
