"""F1: a worker dies, at any moment. (At every failpoint, one by one: the plan ``sweep``.)"""

from __future__ import annotations

import random

from chaos.arena import Arena

BROKEN = "SIGKILL to a worker process while it works."
EXPECTED = """Steps that were committed are never run again. The transaction at the frontier has its effect once. The jobs that it
held run again elsewhere in under a second."""
SEEN_BY = ("effects", "atomicity", "ledger", "plain steps", "claim history", "charges", "liveness")
LANE = "kills"


def inject(arena: Arena, chance: random.Random) -> str | None:
    """One worker, mostly one that has jobs."""
    worker = arena.victim(chance)
    return f"killed worker {worker.pid} with {worker.jobs} jobs" if worker and arena.kill(worker) else None
