"""F21: the schema is migrated while workers run."""

from __future__ import annotations

import random
import time

from chaos.arena import Arena

BROKEN = "pgqueue migrate, twice at the same time, while everything works; sometimes one of them is killed half way."
EXPECTED = "They take turns, one that is killed leaves nothing, and workers go on."
SEEN_BY = ("liveness", "claim history", "expectations", "migration")
LANE = "clients"


def inject(arena: Arena, chance: random.Random) -> str | None:
    """To the version that is there: functions and views are made anew each time."""
    migrators = [arena.chaos.run("pgqueue", "migrate") for _ in range(2)]
    killed = chance.random() < 0.5
    if killed:
        time.sleep(chance.uniform(0.2, 1.0))
        migrators[0].kill()
    codes = [migrator.wait(90) for migrator in migrators]
    for migrator, code in zip(migrators, codes, strict=True):
        if code not in (0, 1, 69, -9):  # 1, 69: the server was away
            arena.findings.append(f"migration: ended with {code}: {migrator.text()[-500:]}")
    return f"migrated while everything ran, exit codes {codes}"
