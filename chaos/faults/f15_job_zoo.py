"""F15: jobs that take their process down, or nearly so."""

from __future__ import annotations

import random

from chaos.arena import Arena, Specimen
from chaos.workloads import zoo

BROKEN = """Jobs that end in a segmentation fault, leave their process, kill it, eat its memory, recurse without end, loop in C,
fork again and again, start children that stay, write megabytes of output, or ignore SIGTERM."""
EXPECTED = """Those that kill their process fail after three crashes, and say how; the others fail or succeed as any job. The
queue moves on, and no neighbour is charged."""
SEEN_BY = ("expectations", "charges", "liveness")
LANE = "clients"


def inject(arena: Arena, chance: random.Random) -> str | None:
    """One animal."""
    name = chance.choice(list(zoo.EXPECTED))
    arena.add(getattr(zoo, name).call(), Specimen(name, *zoo.EXPECTED[name]))
    return f"let in {name}"
