"""F13: what user code can do to the connection that it is given."""

from __future__ import annotations

import random

from chaos.arena import Arena, Specimen
from chaos.workloads import unruly

BROKEN = """A transaction whose code commits, rolls back, sends COMMIT, swallows a database error, sets autocommit, closes the
connection, forks, shares it with a thread, or opens a second one."""
EXPECTED = "An error of that job, or all is well: never an effect without its checkpoint, nor a checkpoint without its effect."
SEEN_BY = ("expectations", "effects", "atomicity")
LANE = "clients"

CODE = [name for name in unruly.EXPECTED if name not in ("fails_at_commit", "changes")]


def inject(arena: Arena, chance: random.Random) -> str | None:
    """One kind of code."""
    name = chance.choice(CODE)
    arena.add(getattr(unruly, name).call(), Specimen(name, *unruly.EXPECTED[name]))
    return f"a transaction that {name.replace('_', ' ')}"
