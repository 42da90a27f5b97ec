"""F6: nothing comes through any more, in both directions or in one."""

from __future__ import annotations

import random
import time

from chaos.arena import Arena
from chaos.faults import OWN_SERVER

BROKEN = """Between one host and the server nothing passes any more for some seconds, longer than its lease: no request, or no
answer, or neither; nobody is told, and then all that was held back arrives at once."""
EXPECTED = """The host's jobs go to another one when its lease is over. What arrives late is refused; one effect each. (The
bound of a connection that never comes back is the operating system's keepalive, which a proxy cannot take away.)"""
SEEN_BY = ("effects", "atomicity", "claim history", "expectations", "liveness")
LANE = "wire"
NEEDS = (OWN_SERVER,)  # the proxy knows the way to its socket


def inject(arena: Arena, chance: random.Random) -> str | None:
    """One way in three."""
    proxy = arena.proxy
    if proxy is None:
        return None
    way = chance.choice(("to server", "to client", ""))
    arena.interrupt(arena.setup.workers)
    seconds = arena.setup.lease * chance.uniform(1.0, 2.0)
    with arena.outages.under_way(proxy.dsn):
        proxy.block(lambda _, direction: direction.startswith(way))
        time.sleep(seconds)
        proxy.block(None)
    return f"nothing passed {way or 'in either direction'} for {seconds:.1f} s"
