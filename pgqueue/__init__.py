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

from pgqueue._version import __version__
from pgqueue.app import App
from pgqueue.client import Client, Job
from pgqueue.context import current
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
    StepFailed,
    UnknownJob,
)
from pgqueue.model import Queue
from pgqueue.retry import Retry

__all__ = [
    "App",
    "Cancel",
    "ClaimLost",
    "Client",
    "IdConflict",
    "Job",
    "JobCancelled",
    "JobFailed",
    "NonDeterministic",
    "NotConfigured",
    "PgQueueError",
    "Queue",
    "ResultTimeout",
    "Retry",
    "StepFailed",
    "UnknownJob",
    "__version__",
    "current",
]
