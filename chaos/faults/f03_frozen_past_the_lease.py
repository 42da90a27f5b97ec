"""F3: a host stands still until others have taken its jobs, and then goes on as if nothing had been."""

from __future__ import annotations

import random
import time

from chaos.arena import Arena

BROKEN = "SIGSTOP to all processes of a host, wherever they are, past its lease; then SIGCONT, its workers first."
EXPECTED = """Another host takes its jobs when the lease is over. What wakes up can write nothing, and ends itself; the sessions
that it had in transactions do not outlive the reap."""
SEEN_BY = ("claim history", "effects", "atomicity", "ledger", "expectations")
LANE = "pauses"  # one host at a time: the others take over


def inject(arena: Arena, chance: random.Random) -> str | None:
    """One of several hosts: somebody has to be there to take over."""
    hosts = [host for host in list(arena.hosts) if host.alive]
    if len(hosts) < 2:
        return None
    host = chance.choice(hosts)
    mine = [worker for worker in arena.workers(0) if worker.pid in host.processes()]
    loss = arena.held(*mine)
    if not loss.jobs:  # nobody could take anything over
        return None
    arena.interrupt(arena.setup.workers)
    host.pause()
    arena.count("pauses")
    arena.losses.append(loss._replace(kind="host"))
    seconds = arena.setup.lease * chance.uniform(1.2, 2.2)
    time.sleep(seconds)
    host.resume(first=[worker.pid for worker in mine])
    return f"host {host.pid} stood still for {seconds:.1f} s, with {len(loss.jobs)} jobs"
