"""pgqueue: the job is a transaction."""

import os
import subprocess
import sys
import time

import psycopg

from pgqueue import App

HOLD = 0.02  # seconds on either side of the effect
HAS_CHILDREN = True
app = App(os.environ["DSN"])
COMMAND = [sys.executable, "-m", "pgqueue", "work", "with_pgqueue:app", "-w", "2", "--lease", "5s"]


@app.transaction(name="effect", max_crashes=1000)
def effect(tx, job: int) -> None:
    time.sleep(HOLD)
    tx.execute("INSERT INTO effect VALUES (%s)", (job,))
    time.sleep(HOLD)


def prepare() -> None:
    subprocess.run([sys.executable, "-m", "pgqueue", "migrate"], env={**os.environ, "PGQUEUE_DSN": os.environ["DSN"]}, check=True)


def enqueue(jobs: int) -> None:
    app.enqueue_many(effect.map(range(jobs)))


def runners(children: list[int]) -> list[int]:
    """The workers, and not the housekeeper."""
    with psycopg.connect(os.environ["DSN"]) as conn:
        workers = conn.execute("SELECT pid FROM pgqueue.workers WHERE fenced_at IS NULL").fetchall()
    return [pid for (pid,) in workers if pid in children]
