"""Metrics that the database knows. One process looks for all: whoever has the duty "metrics", which is a row with a time limit,
so that any other may take over. Looked at every few seconds, and only while somebody reads them."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from typing import Any

import psycopg

from pgqueue import database, protocol
from pgqueue.errors import DatabaseUnreachable
from pgqueue.meter import Meter
from pgqueue.metrics import DB_ERRORS, METRICS, Family, Values

log = logging.getLogger(__name__)

EVERY = 10.0  # seconds between two looks
TIME_LIMIT = 2.0  # seconds that a look may take in the database
WANTED_FOR = 150.0  # seconds after which nobody seems to read them any more
KEPT_FOR = 60.0  # seconds after which old values are worse than none
DUTY = "metrics"


class Gauges(threading.Thread):
    """Looks at the database while ``wanted()`` is called now and then. ``always``: whoever else does so too."""

    def __init__(self, dsn: str, meter: Meter, always: bool = False) -> None:
        super().__init__(name="pgqueue-gauges", daemon=True)
        self._dsn = dsn
        self._meter = meter
        self._always = always
        self._holder = str(uuid.uuid4())
        self._wanted = threading.Event()
        self._wanted_at = 0.0
        self._over = threading.Event()
        self._found: tuple[float, Values] = (float("-inf"), {})

    def values(self) -> Values:
        """What was found lately; nothing where another process looks."""
        self._wanted_at = time.monotonic()
        self._wanted.set()
        return self._found[1] if self.age < KEPT_FOR else {}

    @property
    def age(self) -> float:
        """Seconds since the last look that had an answer."""
        return time.monotonic() - self._found[0]

    def stop(self) -> None:
        """Look no more."""
        self._over.set()
        self._wanted.set()
        self.join()

    def run(self) -> None:
        tries = 0
        while not self._over.is_set():
            if not self._always:
                self._wanted.wait()
            try:
                with database.connect(self._dsn, f"pgqueue:metrics:{self._holder}") as conn:
                    while self._look(conn) and not self._over.wait(EVERY):
                        tries = 0
            except (psycopg.Error, DatabaseUnreachable) as error:
                log.warning("metrics: %s", database.brief(error))
                self._meter.add(DB_ERRORS, ("metrics",))
                tries += 1
                self._over.wait(min(EVERY, database.backoff(tries, EVERY)))

    def _look(self, conn: psycopg.Connection[Any]) -> bool:
        """False: nobody wants to know."""
        if not self._always and time.monotonic() - self._wanted_at > WANTED_FOR:
            self._wanted.clear()
            return False
        if database.run(conn, protocol.take_duty(DUTY, self._holder, 3 * EVERY, self._always)):
            with conn.transaction():
                database.run(conn, protocol.statement_limit(TIME_LIMIT))
                rows = database.run(conn, protocol.metrics())
            self._found = (time.monotonic(), _by_family(rows))
        else:
            self._found = (float("-inf"), {})
        return True


_FAMILIES = {family.name: family for family in METRICS if family.source == "database"}


def _by_family(rows: protocol.Rows) -> Values:
    found: dict[Family, dict[tuple[str, ...], list[float]]] = {}
    for name, labels, value in rows:
        family = _FAMILIES.get(name)
        if family is not None and value is not None:  # a newer schema may know more
            found.setdefault(family, {})[tuple(labels)] = [value]
    return found
