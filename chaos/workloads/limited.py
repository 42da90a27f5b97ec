"""Queues with limits, and jobs that do nothing or take a moment."""

from __future__ import annotations

import time
from typing import Any

import psycopg

from chaos.history import History
from pgqueue import App, Queue, Rate
from pgqueue.database import run

ENOUGH = 100_000  # crashes: the suite kills on purpose, and no job is to be blamed

app = App(
    queues=[
        Queue("few", concurrency=5),
        Queue("keys", per_key=1),
        Queue("both", concurrency=5, per_key=1),
        Queue("even", rate=Rate(100, per="1s")),
        Queue("bursts", rate=Rate(100, per="1s", burst=20)),
        Queue("plenty", concurrency=100_000),
        Queue("free"),
        Queue("shared", fair_by="who"),
    ]
)


@app.step(key="key", max_crashes=ENOUGH)
def work(n: int, key: str | None = None, seconds: float = 0.0, who: str = "") -> int:
    """Goes to any of the queues."""
    if seconds:
        time.sleep(seconds)
    return n


def prepare(conn: psycopg.Connection[Any]) -> History:
    """The App made known, and the history of what runs from now on."""
    run(conn, app.registration())
    return History(conn)
