"""F2: the next worker dies too, while it deals with what the first one left."""

from __future__ import annotations

import random
import time

from chaos.arena import Arena

BROKEN = "SIGKILL to a worker, and again, up to three times within half a second, to those that take its jobs."
EXPECTED = "As for one kill. A job is charged with each crash once."
SEEN_BY = ("effects", "atomicity", "claim history", "expectations", "charges", "liveness")
LANE = "kills"


def inject(arena: Arena, chance: random.Random) -> str | None:
    """The first, and then whoever holds its jobs."""
    worker = arena.victim(chance)
    if worker is None:
        return None
    jobs = arena.held(worker).jobs
    killed = [worker.pid] if arena.kill(worker) else []
    for _ in range(2):
        time.sleep(chance.uniform(0.02, 0.25))
        heirs = {row[0] for row in arena.chaos.query(_HEIRS, jobs)}
        heir = next((w for w in arena.workers(0.3) if w.id in heirs), None)
        if heir is not None and arena.kill(heir):
            killed.append(heir.pid)
    return f"killed {len(killed)} workers that had the same jobs: {killed}" if killed else None


_HEIRS = "SELECT DISTINCT worker::text FROM pgqueue.running WHERE job_id::text = ANY (%s)"
