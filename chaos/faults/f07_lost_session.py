"""F7: the server ends sessions, or a server process is killed. (The reply of a committed claim lost, and the housekeeper stopped
between its two reads: the failpoints ``claim.committed`` and ``reconcile.read`` of the plan ``sweep``.)"""

from __future__ import annotations

import random

from chaos.arena import Arena
from chaos.controller import SESSIONS
from chaos.server import OwnServer

BROKEN = """pg_terminate_backend of all sessions of one kind: steps, claims, heartbeat, the housekeeper's duties, producers. On a
server of the suite also SIGKILL to one server process: PostgreSQL then ends them all, and recovers from its log."""
EXPECTED = "They connect again, after a while. No step fails because of it, and no crash is charged to a job."
SEEN_BY = ("effects", "atomicity", "claim history", "expectations", "charges", "liveness")
LANE = "server"


def inject(arena: Arena, chance: random.Random) -> str | None:
    """One kind of sessions."""
    kind = chance.choice(list(SESSIONS))
    sessions = arena.chaos.sessions(kind)
    if not sessions:
        return None
    if isinstance(arena.server, OwnServer) and chance.random() < 0.25:
        arena.interrupt_all()
        with arena.outages.under_way():
            if not arena.server.crash_itself(lambda: arena.chaos.kill_session(chance.choice(sessions))):
                return None
        arena.count("PostgreSQL crashes")
        arena.accepting()
        return f"killed a server process of the kind {kind}"
    arena.interrupt(len(sessions))
    for session in sessions:
        arena.chaos.terminate(session)
    return f"terminated {len(sessions)} sessions of the kind {kind}"
