"""F17: hosts are drained while they work: a deploy, again and again."""

from __future__ import annotations

import os
import random
import signal
import time

from chaos.arena import Arena
from pgqueue.config import Exit

BROKEN = """SIGTERM to a supervisor; to it twice; to all its processes; to one that has only just started; a drain that is killed.
Another host is started in its place."""
EXPECTED = "Nothing is lost, no attempt is used up, and the supervisor ends with 0 (75 where it gave jobs back)."
SEEN_BY = ("effects", "atomicity", "claim history", "expectations", "charges", "liveness")
LANE = "drains"


def inject(arena: Arena, chance: random.Random) -> str | None:
    """The successor is there first, as in a rolling restart."""
    hosts = [host for host in list(arena.hosts) if host.alive]
    if not hosts:
        return None
    how = chance.choice(("once", "twice", "group", "booting", "killed"))
    replaced = chance.choice(hosts)
    successor = arena.start_host(arena.ways[replaced.pid])
    leaving = successor if how == "booting" else replaced
    arena.forget(leaving)
    if how == "booting":
        time.sleep(chance.uniform(0.05, 0.6))
    leaving.signal(signal.SIGTERM)
    if how == "twice":
        leaving.signal(signal.SIGTERM)
    elif how == "group":
        for pid in leaving.processes():
            _term(pid)
    elif how == "killed":
        time.sleep(chance.uniform(0, 0.2))
        arena.interrupt(arena.setup.workers)
        arena.sigkill(leaving.pid)
    code = leaving.wait(60)
    arena.findings += wrong(code, how, leaving.booting, arena.forgiven(leaving, code))
    return f"drained {leaving.pid} ({how}): exit code {code}"


def wrong(code: int, how: str, booting: bool, forgiven: bool) -> list[str]:
    """``booting``: it was told so before it could listen. ``forgiven``: another fault has killed it meanwhile, or taken
    the server away while it began."""
    if forgiven or code in (Exit.OK, Exit.GIVEN_BACK, -signal.SIGTERM if booting else Exit.OK):
        return []
    return [f"drain: a supervisor that was told to drain ({how}) ended with {code}"]


def _term(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        pass
