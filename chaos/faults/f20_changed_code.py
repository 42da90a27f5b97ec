"""F20: the code of a workflow is another one after a crash."""

from __future__ import annotations

import random

from chaos.arena import Arena, Specimen
from chaos.workloads import unruly

BROKEN = "A workflow's process dies after its first step, and the code that runs it next calls another step first."
EXPECTED = "It is noticed by the name of the step. The job fails with a message that names both; nothing is replayed wrongly."
SEEN_BY = ("expectations", "effects")
LANE = "clients"


def inject(arena: Arena, chance: random.Random) -> str | None:
    """One such job."""
    arena.add(unruly.changes.call(), Specimen("changes", *unruly.EXPECTED["changes"]))
    return "a workflow that changes"
