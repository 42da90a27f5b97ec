"""Queues with limits, and jobs that do nothing or take a moment."""

from __future__ import annotations

import time
from typing import Any

import psycopg

from pgqueue import App, Queue, Rate
from pgqueue.database import run

ENOUGH = 100_000  # crashes: the suite kills on purpose, and no job is to be blamed

app = App(
    queues=[
        Queue("few", concurrency=5),
        Queue("keys", per_key=1),
        Queue("even", rate=Rate(100, per="1s")),
        Queue("bursts", rate=Rate(100, per="1s", burst=20)),
        Queue("plenty", concurrency=100_000),
        Queue("free"),
        Queue("shared", fair_by="who"),
    ]
)

#: Every start, as it was committed: what the limits are judged by.
HISTORY = """
CREATE TABLE start (job_id uuid NOT NULL, queue text NOT NULL, key text, stamp timestamptz NOT NULL);
CREATE FUNCTION note_start() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO start VALUES (NEW.job_id, NEW.queue, NEW.key, NEW.started_at);
    RETURN NULL;
END $$;
CREATE TRIGGER note_start AFTER INSERT ON pgqueue.running FOR EACH ROW EXECUTE FUNCTION note_start();
"""


@app.step(key="key", max_crashes=ENOUGH)
def work(n: int, key: str | None = None, seconds: float = 0.0, who: str = "") -> int:
    """Goes to any of the queues."""
    if seconds:
        time.sleep(seconds)
    return n


def prepare(conn: psycopg.Connection[Any], history: bool = True) -> None:
    """The App made known, and the history of starts."""
    run(conn, app.registration())
    if history:
        conn.execute(HISTORY)
