"""F18: what people and jobs do to jobs that are under way. (Every order of the statements of two or three sessions:
``tests/test_interleavings.py``.)"""

from __future__ import annotations

import random
import time

from chaos.arena import Arena
from chaos.feeder import KINDS
from chaos.workloads import town
from pgqueue import protocol
from pgqueue.database import run

BROKEN = """Jobs are cancelled at the very moment at which they are claimed, run, settled, suspended or taken back; a queue is
paused and resumed."""
EXPECTED = "A cancelled job ends once, and soon: as cancelled, or as what it had become. Nobody waits for ever."
SEEN_BY = ("claim history", "invariant", "expectations", "liveness", "key order", "cancels")
LANE = "clients"

STEPS = 150  # of about 0.03 s each
PATIENCE = 15.0  # seconds
_BEGUN = "SELECT 1 FROM pgqueue.checkpoint WHERE job_id = %s LIMIT 1"


def inject(arena: Arena, chance: random.Random) -> str | None:
    """Five jobs, each cancelled a random moment after its enqueue; and a pause."""
    jobs = []
    for kind in ("chain", "waits", "fan_out", "grant", "tell"):
        job = arena.add(KINDS[kind](chance.randrange(10**9)))
        arena.cancelled.add(job)
        arena.over.wait(chance.uniform(0, 0.1))
        jobs.append(job)
        arena.snapshot(lambda conn: run(conn, protocol.cancel(jobs[-1:])))
    _in_the_middle(arena)
    arena.snapshot(lambda conn: run(conn, protocol.pause("few")))
    arena.over.wait(0.2)
    arena.snapshot(lambda conn: run(conn, protocol.resume("few")))
    return f"cancelled {len(jobs)} jobs on their way, and one in the middle; paused a queue"


def _in_the_middle(arena: Arena) -> None:
    """A workflow of many steps is cancelled when it has begun. Where it does not begin soon, that proves nothing."""
    job = arena.add(town.stroll.options(priority=0).call(STEPS))
    arena.cancelled.add(job)
    deadline = time.monotonic() + PATIENCE
    while not (begun := arena.chaos.query(_BEGUN, job)) and time.monotonic() < deadline:
        time.sleep(0.02)
    arena.snapshot(lambda conn: run(conn, protocol.cancel([job])))
    if begun:
        arena.asked_to_end[job] = arena.server_time()
