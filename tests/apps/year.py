"""An App whose jobs write down for which ticks they ran, over a year in three countries."""

from __future__ import annotations

from typing import Any

import psycopg

from pgqueue import App, current
from pgqueue.schedules import Misfire

TABLES = "CREATE TABLE struck (schedule text NOT NULL, due_at timestamptz NOT NULL);"  # nothing unique: doubles must show

#: cron expression, time zone, and what becomes of ticks that are too late.
SCHEDULES: dict[str, tuple[str, str, Misfire]] = {
    "fixed": ("30 1 * * *", "Europe/London", "all"),
    "hours": ("0 */3 * * *", "Europe/London", "all"),
    "gap": ("30 2 * * *", "America/New_York", "all"),
    "working-days": ("0 9 * * mon-fri", "America/New_York", "all"),
    "half": ("*/30 1-2 * * sun", "Australia/Lord_Howe", "all"),
    "skipped": ("0 * * * *", "Europe/London", "skip"),
    "once": ("0 * * * *", "America/New_York", "once"),
}

app = App()


@app.transaction(max_crashes=1000)
def strike(tx: psycopg.Connection[Any]) -> None:
    meta = current().meta
    tx.execute("INSERT INTO struck VALUES (%s, %s)", (meta["schedule"], meta["due_at"]))


for name, (cron, zone, misfire) in SCHEDULES.items():
    app.schedule(cron, timezone=zone, name=name, misfire=misfire)(strike)
