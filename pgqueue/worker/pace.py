"""How many jobs to hold ahead: about 75 ms of work, so that neither the database nor other workers wait."""

from __future__ import annotations

WORK = 0.075  # seconds of work to hold
MOST = 500


class Pace:
    """Learns how long jobs take here, where so many run at once."""

    def __init__(self, at_once: int) -> None:
        self._at_once = at_once
        self._typical = WORK  # until we know
        self._seen = 0
        self._last = 1

    def ran(self, seconds: float) -> None:
        """A job took so long. One that is really slow is believed at once, and so are the first ones."""
        self._seen += 1
        weight = 0.5 if seconds > max(self._typical, WORK) else max(0.1, 1 / self._seen)
        self._typical += weight * (seconds - self._typical)

    def ahead(self) -> int:
        """Jobs that make about 75 ms of work, at most four times as many as last time; 0 where not even one does."""
        fitting = int(self._at_once * WORK / max(self._typical, 1e-6))
        self._last = max(1, min(MOST, 4 * self._last, fitting))
        return self._last if self._last > 1 else 0
