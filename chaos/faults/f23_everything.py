"""F23: everything at once. (The storm itself is that too, and ends with its liveness phase.)"""

from __future__ import annotations

import random

from chaos.arena import Arena
from chaos.server import OwnServer

BROKEN = "All processes of all hosts are killed in one moment, and PostgreSQL crashes with them. Then both are started again."
EXPECTED = "All of the other faults' expectations, and the first job soon after the start: nobody waits for a lease of the dead."
SEEN_BY = ("effects", "atomicity", "ledger", "conservation", "claim history", "liveness")
LANE = "server"


def inject(arena: Arena, chance: random.Random) -> str | None:
    """The hosts are started again by whoever keeps them."""
    arena.interrupt_all()
    pids = [pid for host in list(arena.hosts) for pid in host.processes()]
    killed = arena.sigkill(*pids)
    if isinstance(arena.server, OwnServer):
        with arena.outages.under_way():
            arena.server.restart("immediate")
        arena.count("PostgreSQL crashes")
        arena.accepting()
    return f"killed all {killed} processes, and crashed the server"
