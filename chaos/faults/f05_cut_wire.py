"""F5: the connection is cut at one message. (At every message of a workflow, in every mode: the round ``cuts`` of the plan
``sweep``.)"""

from __future__ import annotations

import random
import time

from chaos.arena import Arena
from chaos.faults import OWN_SERVER
from chaos.wire import MODES

BROKEN = """A connection of the host that works through the proxy is broken at a random message: dropped before it arrives,
closed or reset behind it, silent for a second, or late."""
EXPECTED = "As the position dictates: run again if the commit had not arrived, replayed if it had. Never charged to the job."
SEEN_BY = ("effects", "atomicity", "ledger", "plain steps", "expectations", "charges")
LANE = "wire"
NEEDS = (OWN_SERVER,)  # the proxy knows the way to its socket


def inject(arena: Arena, chance: random.Random) -> str | None:
    """A few in a row."""
    proxy = arena.proxy
    if proxy is None:
        return None
    hit = []
    with arena.outages.under_way(proxy.dsn):
        for _ in range(chance.randint(1, 5)):
            cut = proxy.arm(chance.randint(1, 120), chance.choice(list(MODES)), lambda name: name.startswith("pgqueue:"))
            if cut.done.wait(1.0):
                arena.interrupt(1)
                hit.append(f"{cut.mode} at {cut.what.partition(' of ')[0]}")
            time.sleep(chance.uniform(0, 0.1))
        proxy.cut = None
    return f"cut: {', '.join(hit)}" if hit else None
