"""F16: the processes that watch over others die or stand still: supervisor, housekeeper, or a whole host at once."""

from __future__ import annotations

import random
import signal
import time

from chaos.arena import Arena
from chaos.processes import Host, parent, send_signal
from pgqueue.ids import start_ticks

BROKEN = """SIGKILL to a supervisor, to a housekeeper, or to all processes of a host in one moment; SIGSTOP to a supervisor or a
housekeeper for a second, then SIGCONT."""
EXPECTED = """Workers do not outlive their supervisor; a housekeeper is replaced; leases of a whole dead host run out, and another
one takes its jobs."""
SEEN_BY = ("claim history", "effects", "atomicity", "liveness")
LANE = "supervisors"


def inject(arena: Arena, chance: random.Random) -> str | None:
    """One of five ways."""
    hosts = [host for host in list(arena.hosts) if host.alive and not host.booting]  # which has no housekeeper yet
    if not hosts:
        return None
    host = chance.choice(hosts)
    how = chance.choice(("supervisor", "housekeeper", "host", "stop supervisor", "stop housekeeper"))
    workers = [worker for worker in arena.workers(0) if worker.pid in host.processes()]
    keeper = _housekeeper(host, {worker.pid for worker in workers})
    arena.interrupt(len(workers))
    if how == "host":
        loss = arena.held(*workers)
        arena.sigkill(*host.processes())
        arena.losses.append(loss._replace(kind="host"))
    elif how == "supervisor":
        loss = arena.held(*workers)
        arena.sigkill(host.pid)
        arena.losses.append(loss._replace(kind="supervisor"))
    elif how == "housekeeper":
        if keeper is None:
            return None
        arena.sigkill(keeper)
    else:
        stopped = host.pid if how == "stop supervisor" else keeper
        if stopped is None:
            return None
        arena.count("pauses", send_signal(stopped, signal.SIGSTOP))
        time.sleep(chance.uniform(0.3, 1.2))
        send_signal(stopped, signal.SIGCONT)
    return f"{how} of {host.pid}"


def _housekeeper(host: Host, workers: set[int]) -> int | None:
    """The first child of a supervisor that stays. (What jobs have forked is no child of its own, as long as they run.)"""
    others = [pid for pid in host.processes() if parent(pid) == host.pid and pid not in workers]
    return min(others, key=lambda pid: start_ticks(pid) or 0, default=None)
