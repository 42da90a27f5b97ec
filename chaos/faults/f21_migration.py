"""F21: the schema is migrated while workers run."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Sequence

from chaos.arena import Arena
from pgqueue.config import Exit

BROKEN = "pgqueue migrate, twice at the same time, while everything works; sometimes one of them is killed half way."
EXPECTED = (
    "They take turns, one that is killed leaves nothing, and workers go on. One that comes when the server is away says so."
)
SEEN_BY = ("liveness", "claim history", "expectations", "migration")
LANE = "migrations"

PATIENCE = 60.0  # seconds in which one has to work, however often the server is away


def inject(arena: Arena, chance: random.Random) -> str | None:
    """To the version that is there: functions and views are made anew each time."""
    migrators = [arena.chaos.run("pgqueue", "migrate") for _ in range(2)]
    killed = chance.random() < 0.5
    if killed:
        time.sleep(chance.uniform(0.2, 1.0))
        migrators[0].kill()
    ended = [(migrator.wait(90), migrator.text()) for migrator in migrators]
    first = [code for code, _ in ended]
    deadline = time.monotonic() + PATIENCE
    while not worked(ended) and ended[-1][0] == Exit.UNREACHABLE and time.monotonic() < deadline:
        time.sleep(0.5)
        one_more = arena.chaos.run("pgqueue", "migrate")
        ended.append((one_more.wait(90), one_more.text()))
    arena.findings += [f"migration: {what}" for what in wrong(ended, killed)]
    return f"migrated while everything ran, exit codes {first}"


def worked(ended: Sequence[tuple[int, str]]) -> bool:
    """Has any of them?"""
    return any(code == Exit.OK for code, _ in ended)


def wrong(ended: Sequence[tuple[int, str]], killed: bool) -> list[str]:
    """``ended``: exit codes and outputs. ``killed``: the first was, perhaps not before it had ended."""
    found = [
        f"one has ended with {code}: {said[-500:]}"
        for number, (code, said) in enumerate(ended)
        if code not in (Exit.OK, Exit.UNREACHABLE) and not (killed and number == 0 and code == -signal.SIGKILL)
    ]
    if not worked(ended):
        found.append(f"none has worked, in {PATIENCE:g} s: they ended with {[code for code, _ in ended]}")
    return found
