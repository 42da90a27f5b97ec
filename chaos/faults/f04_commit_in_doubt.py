"""F4: the connection is lost while the server is inside COMMIT. (Each kind of commit, before and after it is durable, with the
server process held there: ``tests/test_in_doubt.py``. Before COMMIT arrives, and after it ran, message by message: F5.)"""

from __future__ import annotations

import random
import time

from chaos.arena import Arena
from chaos.faults import OWN_SERVER

BROKEN = """No commit of the whole server is answered for half a second: it is durable, and waits for a synchronous standby that
does not exist. Meanwhile the sessions of steps are terminated: their commits are there, and their clients never hear of it."""
EXPECTED = "Whoever lost a commit asks what became of it, and replays it. Nobody guesses, and nothing runs twice."
SEEN_BY = ("effects", "atomicity", "ledger", "claim history", "expectations")
LANE = "server"
NEEDS = (OWN_SERVER,)

_WAITING = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
 WHERE datname = current_database() AND wait_event = 'SyncRep' AND application_name LIKE 'pgqueue:%%:step%%'
"""


def inject(arena: Arena, chance: random.Random) -> str | None:
    """With ALTER SYSTEM, which outlives a session that is lost."""
    _set(arena, "ghost")
    try:
        time.sleep(chance.uniform(0.2, 0.6))
        lost = len(arena.chaos.query(_WAITING))
    finally:
        _set(arena, "")
    if not lost:
        return None
    arena.interrupt(lost)
    return f"{lost} commits of steps were durable, and never answered"


def _set(arena: Arena, name: str) -> None:
    arena.snapshot(lambda conn: conn.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{name}'"))
    arena.chaos.query("SELECT pg_reload_conf()")
