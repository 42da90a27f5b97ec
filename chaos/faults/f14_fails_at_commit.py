"""F14: a deferred constraint fails inside COMMIT."""

from __future__ import annotations

import random

from chaos.arena import Arena, Specimen
from chaos.workloads import unruly

BROKEN = "A transaction violates a constraint that PostgreSQL looks at only inside COMMIT."
EXPECTED = "The step fails with the constraint's error, and all that it wrote is gone."
SEEN_BY = ("expectations", "effects", "atomicity")
LANE = "clients"


def inject(arena: Arena, chance: random.Random) -> str | None:
    """One such job."""
    arena.add(unruly.fails_at_commit.call(), Specimen("fails_at_commit", *unruly.EXPECTED["fails_at_commit"]))
    return "a transaction that fails inside COMMIT"
