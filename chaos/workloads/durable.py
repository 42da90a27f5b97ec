"""Workflows that wait, in large numbers, with all that they do written down where a double would show.

In the database ``effect``, on purpose without any unique constraint; plain steps write to the file that DURABLE_FILE names.
"""

from __future__ import annotations

import os
from datetime import datetime
from typing import Any

import psycopg

from pgqueue import App, Queue, current, gather, sleep, sleep_until, wait_event
from pgqueue.database import run

ENOUGH = 100_000  # crashes: the suite kills on purpose, and no job is to be blamed
STEPS = 20

TABLES = "CREATE TABLE effect (job_id uuid NOT NULL, what text NOT NULL);"

app = App(queues=[Queue("sleepers"), Queue("noops")])


def prepare(conn: psycopg.Connection[Any]) -> None:
    """The tables, and the App made known."""
    conn.execute(TABLES)
    run(conn, app.registration())


@app.transaction(max_crashes=ENOUGH)
def note(tx: psycopg.Connection[Any], what: str) -> str:
    tx.execute("INSERT INTO effect VALUES (%s, %s)", (current().job_id, what))
    return what


@app.step(max_crashes=ENOUGH)
def outside(what: str) -> str:
    descriptor = os.open(os.environ["DURABLE_FILE"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, f"{what} {current().job_id}\n".encode())
    finally:
        os.close(descriptor)
    return what


@app.workflow(max_crashes=ENOUGH)
def chain() -> list[str]:
    """Twenty steps, every other one a transaction."""
    return [(note if i % 2 else outside)(str(i)) for i in range(STEPS)]


@app.workflow(max_crashes=ENOUGH)
def fan_out(children: int) -> int:
    """Many children at once, and what follows when all have ended."""
    results = gather(*child.map(range(children)))
    note(f"callback {len(results)}")
    return sum(results)


@app.workflow(max_crashes=ENOUGH)
def child(n: int) -> int:
    note("child")
    return n


@app.workflow(queue="sleepers", max_crashes=ENOUGH)
def sleeper(until: datetime) -> str:
    sleep_until(until)
    return note("slept")


@app.workflow(queue="sleepers", max_crashes=ENOUGH)
def waiter(key: str) -> str:
    return note(wait_event(key))


@app.workflow(queue="sleepers", max_crashes=ENOUGH)
def napper() -> None:
    sleep(0.2)


@app.step(queue="noops")
def noop() -> None:
    """What claims are measured with."""
