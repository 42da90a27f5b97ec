"""F8: PostgreSQL crashes, or is restarted, and is away for a while."""

from __future__ import annotations

import random

from chaos.arena import Arena
from chaos.faults import OWN_SERVER
from chaos.server import OwnServer

BROKEN = "Immediate stop (a crash: it recovers from its log) or fast restart, away for 0 to 3 s, now and then for 10 to 30 s."
EXPECTED = "Nothing that was acknowledged is lost, nothing is done twice. The first job runs within 2 s of the server's return."
SEEN_BY = ("conservation", "effects", "atomicity", "ledger", "claim history", "liveness")
LANE = "server"
NEEDS = (OWN_SERVER,)


def inject(arena: Arena, chance: random.Random) -> str | None:
    """Two of three are crashes."""
    assert isinstance(arena.server, OwnServer)
    mode = chance.choice(("immediate", "immediate", "fast"))
    down = chance.uniform(10, 30) if chance.random() < 0.02 else chance.choice((0.0, 0.0, chance.uniform(0, 3)))
    arena.interrupt_all()
    with arena.outages.under_way():
        arena.server.restart(mode, down)  # type: ignore[arg-type]
    arena.count("PostgreSQL crashes" if mode == "immediate" else "PostgreSQL restarts")
    arena.accepting()
    return f"{mode} stop, away for {down:.1f} s"
