"""F9: another server takes over, with all commits or without the last ones; or the database goes back to an earlier time."""

from __future__ import annotations

import random
from typing import Any

import psycopg

from chaos.arena import Arena
from chaos.faults import OWN_SERVER
from chaos.oracles import effects, invariant, ledger
from chaos.server import OwnServer

BROKEN = """A standby is cut off, 1 to 50 steps are committed and acknowledged, the primary crashes, the standby is promoted:
these commits are gone. Or it takes over with everything. Or the primary is lost, and a backup of a moment ago takes its place."""
EXPECTED = """What is there is one prefix of history, application data and jobs alike. Whoever remembers more than that is fenced,
although sequences went back: random claims, and the look at the last checkpoint."""
SEEN_BY = ("prefix", "effects", "ledger", "claim history", "invariant")
LANE = "server"
NEEDS = (OWN_SERVER,)

_COMMITTED = "SELECT (SELECT count(*) FROM pgqueue.checkpoint) + (SELECT count(*) FROM pgqueue.outcome)"


def inject(arena: Arena, chance: random.Random) -> str | None:
    """Four of six lose commits, one loses none, one is a restore."""
    assert isinstance(arena.server, OwnServer)
    how = chance.choice(("lossy", "lossy", "lossy", "lossy", "lossless", "restore"))
    lose = chance.randint(1, 50)
    arena.interrupt_all()
    before = 0
    if how == "restore":
        kept = arena.server.keep()
        reached = _committed(arena) + lose
        arena.until(lambda: _committed(arena) >= reached)
        before = _committed(arena)
        with arena.outages.under_way():
            arena.server.go_back(kept)
    elif how == "lossless":
        with arena.outages.under_way():
            arena.server.fail_over()
    else:
        arena.server.prepare_standby()
        goal: list[int] = []

        def enough() -> bool:
            nonlocal before
            before = _committed(arena)
            goal[:] = goal or [before + lose]
            return before >= goal[0] or arena.feeding_is_over.is_set()

        with arena.outages.under_way():
            arena.server.fail_over(enough)
    arena.accepting()
    arena.begin_log()
    lost = max(0, before - _committed(arena)) if how != "lossless" else 0
    arena.count("lossy failovers" if how == "lossy" and lost else "restores" if how == "restore" else "failovers without loss")
    if how != "lossless":
        arena.lossy += 1
        arena.lost_commits.append(lost)
    # As the new primary has it, before anybody has had time to repair anything.
    arena.findings += [f"prefix: right after the {how} failover, {what}" for what in arena.snapshot(torn)]
    return f"{how}: {lost} commits of steps and outcomes are gone"


def torn(conn: psycopg.Connection[Any]) -> list[str]:
    """What shows that data and jobs are not of one moment."""
    checks = {"invariant": invariant.check, "ledger": ledger.check, "effects": effects.check}
    return [f"{name}: {what}" for name, check in checks.items() for what in check(conn)]


def _committed(arena: Arena) -> int:
    return int(arena.chaos.query(_COMMITTED)[0][0])
