"""Transactions whose code does what it should not, on the App of the town. ``EXPECTED`` says how each has to end: as an error, or
well; never as an effect without its checkpoint, nor the other way round."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import psycopg

from chaos.workloads.bank import ENOUGH, NOTE_EFFECT, app, effect
from chaos.workloads.town import note, outside
from pgqueue import Retry, current

ONCE = Retry(1)

MISUSED = "TransactionMisused: "

#: Status, and what the error has to say: all of it.
EXPECTED: dict[str, tuple[str, tuple[str, ...]]] = {
    "commits": ("failed", (MISUSED, "tx.commit()")),
    "rolls_back": ("failed", (MISUSED, "tx.rollback()")),
    "commits_in_sql": ("failed", (MISUSED, "COMMIT")),
    "swallows": ("failed", ("PgQueueError: ", "swallows went on after a database error")),
    "sets_autocommit": ("failed", (MISUSED, "tx.autocommit")),
    "closes": ("failed", (MISUSED, "tx.close()")),
    "forks": ("succeeded", ()),
    "shares_with_a_thread": ("succeeded", ()),
    "opens_a_second": ("succeeded", ()),
    "fails_at_commit": ("failed", ("UniqueViolation: ", '"once"')),
    "changes": ("failed", ("NonDeterministic: ", f"Stored: 1 {note.name}", f"Called: 1 {outside.name}")),
}

TABLES = "CREATE TABLE strict (n int CONSTRAINT once UNIQUE DEFERRABLE INITIALLY DEFERRED)"


def _note(tx: psycopg.Connection[Any]) -> None:
    tx.execute(NOTE_EFFECT, effect())


@app.transaction(max_crashes=ENOUGH, retry=ONCE)
def commits(tx: psycopg.Connection[Any]) -> None:
    _note(tx)
    tx.commit()


@app.transaction(max_crashes=ENOUGH, retry=ONCE)
def rolls_back(tx: psycopg.Connection[Any]) -> None:
    _note(tx)
    tx.rollback()


@app.transaction(max_crashes=ENOUGH, retry=ONCE)
def commits_in_sql(tx: psycopg.Connection[Any]) -> None:
    _note(tx)
    tx.execute("COMMIT")


@app.transaction(max_crashes=ENOUGH, retry=ONCE)
def swallows(tx: psycopg.Connection[Any]) -> None:
    """COMMIT of an aborted transaction succeeds, and rolls back."""
    _note(tx)
    try:
        tx.execute("SELECT 1 / 0")
    except psycopg.Error:
        pass


@app.transaction(max_crashes=ENOUGH, retry=ONCE)
def sets_autocommit(tx: psycopg.Connection[Any]) -> None:
    _note(tx)
    tx.autocommit = True


@app.transaction(max_crashes=ENOUGH, retry=ONCE)
def closes(tx: psycopg.Connection[Any]) -> None:
    _note(tx)
    tx.close()


@app.transaction(max_crashes=ENOUGH, retry=ONCE)
def forks(tx: psycopg.Connection[Any]) -> None:
    _note(tx)
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


@app.transaction(max_crashes=ENOUGH, retry=ONCE)
def shares_with_a_thread(tx: psycopg.Connection[Any]) -> None:
    key = effect()
    thread = threading.Thread(target=tx.execute, args=(NOTE_EFFECT, key))
    thread.start()
    thread.join()


@app.transaction(max_crashes=ENOUGH, retry=Retry(10, backoff=0.1))
def opens_a_second(tx: psycopg.Connection[Any]) -> None:
    """Looks at the accounts from elsewhere. (Where the server is down it fails, and is tried again.)"""
    _note(tx)
    with psycopg.connect(os.environ["PGQUEUE_DSN"]) as other:
        other.execute("SELECT count(*) FROM account")


@app.transaction(max_crashes=ENOUGH, retry=ONCE)
def fails_at_commit(tx: psycopg.Connection[Any]) -> None:
    """A constraint that is looked at inside COMMIT (fault F14)."""
    _note(tx)
    tx.execute("INSERT INTO strict VALUES (1), (1)")


@app.workflow(max_crashes=ENOUGH)
def changes() -> None:
    """Its code is another one after a crash (fault F20)."""
    deployed = Path(f"{os.environ['BANK_FILE']}.{current().job_id}")
    if deployed.exists():
        outside(1)
    else:
        note(1)
        deployed.touch()
        os._exit(1)
