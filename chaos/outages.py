"""When the database could not be reached, because of a fault: what a host that was begun then is forgiven. Faults note it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

BACK = 3.0  # seconds after it in which a host that begins may still find nobody: PgBouncer refuses everybody for one


@dataclass(eq=False)
class Outage:
    """``ways``: the DSNs that led nowhere; empty: all."""

    ways: tuple[str, ...]
    ended: float | None = None


class Outages:
    """Of one round."""

    def __init__(self) -> None:
        self._all: list[Outage] = []

    @contextmanager
    def under_way(self, *ways: str) -> Iterator[None]:
        """In this block the database cannot be reached (on these ways), or sessions end as they come."""
        outage = Outage(ways)
        self._all.append(outage)
        try:
            yield
        finally:
            outage.ended = time.time()

    def since(self, moment: float, way: str | None) -> bool:
        """Has there been one since then, on this way? None: the usual one."""
        return any(
            (outage.ended is None or moment <= outage.ended + BACK) and (not outage.ways or way in outage.ways)
            for outage in list(self._all)
        )
