"""An application whose code changes, and workers for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg

from tests.support import Work, Workers, wait_for

SHOP = """
import os
from pgqueue import App
app = App(queues=["mail"][:0])

@app.step(name="answer", max_crashes=1000)
def answer() -> str:
    return "{answer}"

@app.step(name="nap", max_crashes=1000)
def nap(seconds: float) -> str:
    import time
    time.sleep(seconds)
    return "{answer}"
"""


class Shop:
    """An application whose code changes."""

    def __init__(self, path: Path, conn: psycopg.Connection[Any], workers: Workers) -> None:
        self.path, self._conn, self._workers = path, conn, workers
        self.write("first")

    def write(self, answer: str, more: str = "") -> None:
        (self.path / "shop.py").write_text(SHOP.format(answer=answer) + more + "\n" * (len(answer) + len(more)))

    def start(self, *options: str) -> Work:
        return self._workers.start(
            "shop:app", *options, env={"PYTHONPATH": str(self.path), "PYTHONDONTWRITEBYTECODE": "1", "PGQUEUE_WORKERS": ""}
        )

    def enqueue(self, name: str = "answer", input: str = "{}") -> str:
        row = self._conn.execute("SELECT pgqueue.enqueue_workflow(%s, %s, queue => 'default')", (name, input)).fetchone()
        assert row is not None
        return str(row[0])

    def result(self, job: str) -> str | None:
        row = self._conn.execute("SELECT result FROM pgqueue.job_values WHERE id = %s", (job,)).fetchone()
        return row[0] if row else None

    def answer(self) -> str:
        job = self.enqueue()
        return wait_for(lambda: self.result(job), 60, "an answer").strip('"')
