"""What must be true whatever is killed when. Each module is one oracle: ``check(...)`` returns what is wrong, in words.

``ledger``, ``invariant`` and ``claim_history`` hold in every snapshot, the others when all jobs have ended. They read the tables
of chaos/workloads/bank.py; ``values``, ``waits`` and ``cancels`` know what the workloads do. ``concurrency``, ``rates`` and
``key_order`` judge what chaos/history.py has read from the server's log. tests/test_oracles.py shows that each of them can fail.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg

from chaos.oracles import (
    cancels,
    charges,
    claim_history,
    concurrency,
    conservation,
    effects,
    invariant,
    key_order,
    ledger,
    plain_steps,
    rates,
    ticks,
    values,
    waits,
)

__all__ = [
    "all_wrong",
    "cancels",
    "charges",
    "claim_history",
    "concurrency",
    "conservation",
    "effects",
    "invariant",
    "key_order",
    "ledger",
    "plain_steps",
    "rates",
    "ticks",
    "values",
    "waits",
]


def all_wrong(conn: psycopg.Connection[Any], directory: Path, faults: int, at_once: int = 1) -> list[str]:
    """What any oracle says, when all jobs have ended. The numbers are those of plain_steps."""
    return [
        *invariant.check(conn),
        *ledger.check(conn),
        *effects.check(conn),
        *ticks.check(conn),
        *claim_history.check(conn),
        *values.check(conn),
        *plain_steps.check(conn, directory / "outside.txt", faults, at_once),
        *conservation.check(conn, conservation.Journal.read(directory / "journal.txt")),
    ]
