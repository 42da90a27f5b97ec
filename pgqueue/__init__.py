"""Background jobs and durable workflows that live inside your own PostgreSQL.

app = App("postgresql:///shop")

@app.transaction
def credit(tx, account: int, amount: int) -> None:
    tx.execute("update account set balance = balance + %s where id = %s", (amount, account))

@app.workflow
def deposit(account: int, amount: int) -> None:
    credit(account, amount)          # its writes and its checkpoint are one commit: exactly once

deposit.using(conn).enqueue(1, 100)  # joins the caller's transaction
"""

from __future__ import annotations

import importlib

from pgqueue._version import __version__

TYPE_CHECKING = False  # of typing, which takes longer to load than all that is loaded here
if TYPE_CHECKING:
    from typing import Any

    from pgqueue.app import App
    from pgqueue.client import AsyncClient, AsyncJob, Client, Job
    from pgqueue.context import current
    from pgqueue.durable import gather, patched, receive, sleep, sleep_until, stream, wait_event
    from pgqueue.errors import (
        Cancel,
        ClaimLost,
        IdConflict,
        JobCancelled,
        JobFailed,
        NonDeterministic,
        NotConfigured,
        PgQueueError,
        ResultTimeout,
        Snooze,
        StepFailed,
        UniqueConflict,
        UnknownJob,
        WaitTimeout,
        WrongColour,
    )
    from pgqueue.model import Failure, Progress, Queue, Rate
    from pgqueue.retry import Retry
    from pgqueue.unique import Debounce, Unique

__all__ = [
    "App",
    "AsyncClient",
    "AsyncJob",
    "Cancel",
    "ClaimLost",
    "Client",
    "Debounce",
    "Failure",
    "IdConflict",
    "Job",
    "JobCancelled",
    "JobFailed",
    "NonDeterministic",
    "NotConfigured",
    "PgQueueError",
    "Progress",
    "Queue",
    "Rate",
    "ResultTimeout",
    "Retry",
    "Snooze",
    "StepFailed",
    "Unique",
    "UniqueConflict",
    "UnknownJob",
    "WaitTimeout",
    "WrongColour",
    "__version__",
    "current",
    "gather",
    "patched",
    "receive",
    "sleep",
    "sleep_until",
    "stream",
    "wait_event",
]

_HOMES = {
    "app": ("App",),
    "client": ("AsyncClient", "AsyncJob", "Client", "Job"),
    "context": ("current",),
    "durable": ("gather", "patched", "receive", "sleep", "sleep_until", "stream", "wait_event"),
    "model": ("Failure", "Progress", "Queue", "Rate"),
    "retry": ("Retry",),
    "unique": ("Debounce", "Unique"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Names are loaded at first use: commands such as ``pgqueue --help`` start at once, and where libpq is missing, the command
    line can say so."""
    if name not in __all__:
        raise AttributeError(f"module 'pgqueue' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"pgqueue.{_HOME.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
