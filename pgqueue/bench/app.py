"""The application that the benchmarks run."""

from __future__ import annotations

import ctypes
import os
import time
from typing import Any

import psycopg

from pgqueue import App, Queue, current

app = App(queues=[Queue("free"), Queue("concurrency", concurrency=100_000), Queue("keys", per_key=1)])

COUNTERS = 1000  # rows of the table counter
TABLES = """
CREATE TABLE counter (id int PRIMARY KEY, n bigint NOT NULL) WITH (fillfactor = 50);
INSERT INTO counter SELECT g, 0 FROM generate_series(1, 1000) g;
CREATE TABLE mark (job text NOT NULL, pid int NOT NULL, at timestamptz NOT NULL DEFAULT clock_timestamp());
"""
UPDATE = "UPDATE counter SET n = n + 1 WHERE id = %s"


@app.step(name="bench.noop")
def noop() -> None:
    """Nothing: what a job costs by itself."""


@app.step(name="bench.tick")
def tick(i: int) -> int:
    """One of ten."""
    return i


@app.workflow(name="bench.steps")
def steps() -> int:
    """Ten steps, ten checkpoints."""
    return sum(tick(i) for i in range(10))


@app.transaction(name="bench.update")
def update(tx: psycopg.Connection[Any], id: int) -> None:
    """One UPDATE: compare with the same in a bare transaction."""
    tx.execute(UPDATE, (id,))


@app.step(name="bench.mark", max_crashes=1000)
def mark() -> None:
    """Write down when this ran. The first time, then wait to be killed."""
    with psycopg.connect(os.environ["PGQUEUE_DSN"], autocommit=True) as conn:
        job = current().job_id
        conn.execute("INSERT INTO mark (job, pid) VALUES (%s, %s)", (job, os.getpid()))
        runs = conn.execute("SELECT count(*) FROM mark WHERE job = %s", (job,)).fetchone()
    if runs == (1,):
        time.sleep(60)


@app.step(name="bench.stamp")
def stamp() -> float:
    """The moment of the first line of a job."""
    return time.time()


@app.step(name="bench.short")
def short() -> tuple[float, int]:
    """The moment and the process in which it began."""
    return time.time(), os.getpid()


@app.step(name="bench.long")
def long(seconds: float, keeps_gil: bool) -> tuple[float, int]:
    """The same, and it takes so long. With ``keeps_gil`` no other thread of its process runs meanwhile."""
    began = time.time()
    if keeps_gil:
        ctypes.PyDLL(None).poll(None, 0, int(1000 * seconds))  # a PyDLL does not release the GIL while it calls
    else:
        time.sleep(seconds)
    return began, os.getpid()
