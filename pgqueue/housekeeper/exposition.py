"""What a supervisor's port answers: /metrics, /livez, /readyz. All of it comes out of shared memory or was looked up before, so
an answer needs neither the database nor the supervisor, and delays neither."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from pgqueue._version import __version__
from pgqueue.config import host_and_port
from pgqueue.housekeeper.gauges import KEPT_FOR, Gauges
from pgqueue.housekeeper.http import Answer, Page, Server
from pgqueue.meter import Meter
from pgqueue.metrics import INFO, WORKERS, Values
from pgqueue.slots import Order, Phase, Slots

STUCK_AFTER = 10.0  # seconds without a tick of the supervisor
SILENT_AFTER = 30.0  # seconds without an answer of the database


@dataclass
class Health:
    """What the housekeeper knows of the database."""

    answered_at: float = float("-inf")
    schema_fits: bool = False

    def answered(self) -> None:
        """It has just answered."""
        self.answered_at = time.monotonic()


class Exposition:
    """The pages of one supervisor."""

    def __init__(self, slots: Slots, health: Health, app: str, queues: Sequence[str]) -> None:
        self._what = (__version__, app, ",".join(queues))
        self._slots = slots
        self._health = health
        self._last: Values = {}
        self._page: Page | None = None

    def serve(self, address: str, dsn: str, meter: Meter) -> None:
        """Answer, from now on, in threads of their own."""
        self._gauges = Gauges(dsn, meter)
        self._gauges.start()
        Server(host_and_port(address), {"/metrics": self.metrics, "/livez": self.livez, "/readyz": self.readyz}).start()

    def metrics(self, accept: str) -> Answer:
        """For Prometheus."""
        if self._page is None:
            from pgqueue.housekeeper.collector import MetricsPage  # here, because it takes a while to load

            self._page = MetricsPage(self._counted, self._workers, self._gauges.values)
        return self._page(accept)

    def livez(self, _: str = "") -> Answer:
        """Does the supervisor go round?"""
        age = self._slots.supervisor.age
        return _verdict([f"the supervisor has not gone round for {age:.0f} s"] if age > STUCK_AFTER else [])

    def readyz(self, _: str = "") -> Answer:
        """Can jobs run here?"""
        silent = time.monotonic() - self._health.answered_at
        booted = any(slot.phase in (Phase.IDLE, Phase.BUSY) for slot in self._slots.used())
        problems = {
            "it is draining": self._slots.stopping,
            "the schema of the database does not fit": not self._health.schema_fits,
            "the database has not answered lately": silent > SILENT_AFTER,
            "no worker has started": not booted,
        }
        return _verdict([problem for problem, is_so in problems.items() if is_so])

    def _counted(self) -> Values:
        found = self._slots.meters.read()
        if found is not None:
            self._last = found
        return self._last

    def _workers(self) -> Values:
        states = dict.fromkeys(("booting", "idle", "busy", "paused", "draining"), 0.0)
        for slot in self._slots.used():
            paused = slot.order == Order.PAUSE and slot.phase == Phase.IDLE  # as long as it runs something, it is busy
            states["draining" if slot.order == Order.DRAIN else "paused" if paused else slot.phase.name.lower()] += 1
        return {WORKERS: {(state,): [amount] for state, amount in states.items()}, INFO: {self._what: [1.0]}}


def _verdict(problems: list[str]) -> Answer:
    return Answer(503, "".join(f"{problem}\n" for problem in problems).encode()) if problems else Answer(200, b"ok\n")


class Exporter:
    """The pages of ``pgqueue exporter``: the database's metrics, whoever else shows them; supervisors leave them to it."""

    def __init__(self, dsn: str) -> None:
        self._gauges = Gauges(dsn, Meter(), always=True)

    def serve(self, address: tuple[str, int]) -> None:
        """Answer, from now on."""
        from pgqueue.housekeeper.collector import MetricsPage

        self._gauges.start()
        pages: dict[str, Page] = {
            "/metrics": MetricsPage(self._gauges.values),
            "/livez": lambda _: _verdict([]),
            "/readyz": self._readyz,
        }
        Server(address, pages).start()

    def _readyz(self, _: str) -> Answer:
        return _verdict(["the database has not answered lately"] if self._gauges.age > KEPT_FOR else [])
