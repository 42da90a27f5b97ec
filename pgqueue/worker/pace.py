"""How many jobs to claim at once: about 75 ms of work, so that neither the database nor other workers wait."""

from __future__ import annotations

WORK = 0.075  # seconds of work to hold
MOST = 500


class Pace:
    """Learns how long jobs take here."""

    def __init__(self) -> None:
        self._typical = WORK  # until we know: one at a time
        self._last = 1

    def ran(self, seconds: float) -> None:
        """A job took so long. One slow job is believed sooner than one fast one."""
        weight = 0.5 if seconds > self._typical else 0.1
        self._typical += weight * (seconds - self._typical)

    def amount(self) -> int:
        """Jobs that make about 75 ms of work; at most four times as many as last time."""
        self._last = max(1, min(MOST, 4 * self._last, int(WORK / max(self._typical, 1e-6))))
        return self._last
