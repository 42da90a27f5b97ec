"""F3: a host stands still until others have taken its jobs, and then goes on as if nothing had been."""

from __future__ import annotations

import random
import time

from chaos.arena import Arena, Worker
from chaos.processes import Host, session
from chaos.workloads import town

BROKEN = "SIGSTOP to all processes of a host, wherever they are, past its lease; then SIGCONT, its workers first."
EXPECTED = """Another host takes its jobs when the lease is over. What wakes up can write nothing, and ends itself; the sessions
that it had in transactions do not outlive the reap."""
SEEN_BY = ("claim history", "effects", "atomicity", "ledger", "expectations", "values")
LANE = "pauses"  # one host at a time: the others take over

LINGERS = 2.0  # seconds: over when its host goes on, and not yet where it was taken over
PATIENCE = 5.0  # seconds
_HELD = "SELECT w.pid FROM pgqueue.running r JOIN pgqueue.worker w ON w.id = r.worker WHERE r.job_id = %s"


def inject(arena: Arena, chance: random.Random) -> str | None:
    """One of several hosts: somebody has to be there to take over. It has a job that somebody else runs when it goes on, with
    which it has nothing to do but to settle it."""
    hosts = [host for host in list(arena.hosts) if host.alive]
    if len(hosts) < 2:
        return None
    job = arena.add(town.linger.options(priority=0).call(LINGERS))
    host = _holder(arena, job, hosts)
    if host is None:
        return None
    mine = [worker for worker in arena.workers(0) if worker.pid in host.processes()]
    loss = arena.held(*mine)
    arena.interrupt(arena.setup.workers)
    host.pause()
    began = time.monotonic()
    arena.count("pauses")
    arena.losses.append(loss._replace(kind="host"))
    least, most = (began + arena.setup.lease * times for times in (1.2, chance.uniform(1.6, 5)))
    while (now := time.monotonic()) < least or (now < most and not _taken(arena, job, mine)):
        time.sleep(0.02)
    host.resume(first=[worker.pid for worker in mine])
    return f"host {host.pid} stood still for {time.monotonic() - began:.1f} s, with {len(loss.jobs)} jobs"


def _holder(arena: Arena, job: str, hosts: list[Host]) -> Host | None:
    """Who runs it, if that is soon one of these."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        for (pid,) in arena.chaos.query(_HELD, job):
            if (host := next((host for host in hosts if host.pid == session(pid)), None)) is not None:
                return host
        time.sleep(0.02)
    return None


def _taken(arena: Arena, job: str, mine: list[Worker]) -> bool:
    """Has somebody else got it?"""
    return any(pid not in {worker.pid for worker in mine} for (pid,) in arena.chaos.query(_HELD, job))
