"""F18: what people and jobs do to jobs that are under way. (Every order of the statements of two or three sessions:
``tests/test_interleavings.py``.)"""

from __future__ import annotations

import random

from chaos.arena import Arena
from chaos.feeder import KINDS
from pgqueue import protocol
from pgqueue.database import run

BROKEN = """Jobs are cancelled at the very moment at which they are claimed, run, settled, suspended or taken back; a queue is
paused and resumed."""
EXPECTED = "A cancelled job ends once: as cancelled, or as what it had become. Nobody waits for ever."
SEEN_BY = ("claim history", "invariant", "expectations", "liveness", "key order")
LANE = "clients"


def inject(arena: Arena, chance: random.Random) -> str | None:
    """Five jobs, each cancelled a random moment after its enqueue; and a pause."""
    jobs = []
    for kind in ("chain", "waits", "fan_out", "grant", "tell"):
        job = arena.add(KINDS[kind](chance.randrange(10**9)))
        arena.cancelled.add(job)
        arena.over.wait(chance.uniform(0, 0.1))
        jobs.append(job)
        arena.snapshot(lambda conn: run(conn, protocol.cancel(jobs[-1:])))
    arena.snapshot(lambda conn: run(conn, protocol.pause("few")))
    arena.over.wait(0.2)
    arena.snapshot(lambda conn: run(conn, protocol.resume("few")))
    return f"cancelled {len(jobs)} jobs on their way; paused a queue"
