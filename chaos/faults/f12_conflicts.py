"""F12: storms of serialization failures and deadlocks."""

from __future__ import annotations

import random

from chaos.arena import Arena
from chaos.workloads import bank

BROKEN = "Forty transfers at once between five accounts, at three isolation levels: 40001 and 40P01 all the time."
EXPECTED = "They are run again, with a pause, as often as it takes; that counts as nothing, and sums are right."
SEEN_BY = ("ledger", "effects", "atomicity", "expectations", "liveness")
LANE = "conflicts"


def inject(arena: Arena, chance: random.Random) -> str | None:
    """They are ordinary jobs."""
    levels = list(bank.MOVES)
    for _ in range(40):
        source, target = chance.sample(range(1, 6), 2)
        arena.add(bank.transfer.call(source, target, 2, chance.choice(levels)))
    return "40 transfers between five accounts"
