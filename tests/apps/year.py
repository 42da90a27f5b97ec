"""An App whose jobs write down for which ticks they ran, over a year in three countries."""

from __future__ import annotations

from typing import Any

import psycopg

from pgqueue import App, current

TABLES = "CREATE TABLE struck (schedule text NOT NULL, due_at timestamptz NOT NULL);"  # nothing unique: doubles must show

SCHEDULES = {
    "fixed": ("30 1 * * *", "Europe/London"),
    "hours": ("0 */3 * * *", "Europe/London"),
    "gap": ("30 2 * * *", "America/New_York"),
    "working-days": ("0 9 * * mon-fri", "America/New_York"),
    "half": ("*/30 1-2 * * sun", "Australia/Lord_Howe"),
}

app = App()


@app.transaction(max_crashes=1000)
def strike(tx: psycopg.Connection[Any]) -> None:
    meta = current().meta
    tx.execute("INSERT INTO struck VALUES (%s, %s)", (meta["schedule"], meta["due_at"]))


for name, (cron, zone) in SCHEDULES.items():
    app.schedule(cron, timezone=zone, name=name, misfire="all")(strike)
