"""An App with a schedule of every second, whose job writes down which tick it was for."""

from __future__ import annotations

from typing import Any

import psycopg

from pgqueue import App, current

TABLES = "CREATE TABLE struck (due_at timestamptz NOT NULL);"  # nothing unique: doubles must show

app = App()


@app.schedule(every="1s", misfire="all")
@app.transaction(max_crashes=1000)
def strike(tx: psycopg.Connection[Any]) -> None:
    tx.execute("INSERT INTO struck VALUES (%s)", (current().meta["due_at"],))
