"""F22: rows that no client of ours would write."""

from __future__ import annotations

import random

import psycopg

from chaos.arena import Arena, Specimen
from chaos.waiting import wait_for
from pgqueue.database import is_lost

BROKEN = (
    "Jobs enqueued by SQL with inputs that do not fit: arguments missing or unknown, of a wrong type, 5,000 deep, 5,000 digits."
)
EXPECTED = "That job fails, and says why. Those that were claimed with it are not harmed."
SEEN_BY = ("expectations", "liveness")
LANE = "clients"

SAYS = "BadValue: the input of chaos.workloads.town.outside does not fit its type"
#: And what is said of each.
INPUTS = {
    "nothing": ("{}", "required field `n`"),
    "an unknown argument": ('{"n": 1, "m": 2}', "unknown field `m`"),
    "a wrong type": ('{"n": "one"}', "Expected `int`, got `str`"),
    "very deep": ('{"n": ' + "[" * 5000 + "]" * 5000 + "}", "Expected `int`, got `array`"),
    "5,000 digits": ('{"n": ' + "9" * 5000 + "}", "out of range"),
}
_ENQUEUE = "SELECT pgqueue.enqueue_workflow('chaos.workloads.town.outside', %s::json, id => %s)::text"


def inject(arena: Arena, chance: random.Random) -> str | None:
    """One bad row."""
    name = chance.choice(list(INPUTS))
    input, why = INPUTS[name]
    key = str(arena.injected["F22"])  # the id is derived from this: once more is the same job
    job = wait_for(lambda: _enqueued(arena, input, key), "a bad row to be written")
    arena.attempted.add(job)
    arena.enqueued.add(job)
    arena.specimens[job] = Specimen(f"input: {name}", "failed", (SAYS, why))
    return f"a job with {name}"


def _enqueued(arena: Arena, input: str, key: str) -> str:
    try:
        return str(arena.chaos.conn.execute(_ENQUEUE, (input, key)).fetchall()[0][0])
    except psycopg.Error as error:
        if not is_lost(error):
            raise
        arena.chaos.conn.close()
        return ""
