"""F10: the clock of the database jumps."""

from __future__ import annotations

import random
import time

from chaos.arena import Arena
from pgqueue import migrate

BROKEN = """pgqueue's clock of the database is some seconds ahead or behind for a moment, or an hour behind: its functions clock()
and clock_bound() are replaced, for everybody. (A session cannot do that: there is no setting to set. What is put off while it is
an hour ahead comes an hour late, and a rate that was used then waits as long: tests/test_schedules.py, tests/test_limits.py.)"""
EXPECTED = "Leases hold, no tick comes twice. Of a limited rate at most one burst gets through for each step, none by its stamps."
SEEN_BY = ("ticks", "rates", "claim history", "liveness", "waits")
LANE = "clock"

_CLOCKS = """
SELECT pg_advisory_xact_lock({1});
CREATE OR REPLACE FUNCTION pgqueue.clock() RETURNS timestamptz LANGUAGE sql VOLATILE
AS $$ SELECT clock_timestamp() {0} $$;
CREATE OR REPLACE FUNCTION pgqueue.clock_bound() RETURNS timestamptz LANGUAGE sql STABLE
AS $$ SELECT statement_timestamp() {0} $$;
"""


def inject(arena: Arena, chance: random.Random) -> str | None:
    """There, and back: two steps."""
    seconds = chance.choice((-5, 5, -2, 2, -3600))
    try:
        _set(arena, f"+ interval '{seconds} seconds'")
        time.sleep(chance.uniform(0.5, 3))
    finally:
        _set(arena, "")
    return f"the clock was {seconds:+d} s off"


def _set(arena: Arena, offset: str) -> None:
    """In one transaction, behind a migration that is under way (F21): it replaces the same functions."""
    before = arena.server_time()
    arena.snapshot(lambda conn: conn.execute(_CLOCKS.format(offset, migrate.LOCK)))
    arena.clock_set.append((before, arena.server_time()))
