"""An App without a single ``def`` job: its workers need no threads for jobs."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg

from pgqueue import App
from tests.apps.bank import write_outside

app = App()


@app.on("worker_start")
def started() -> None:
    write_outside("start")


@app.step
async def nap(seconds: float) -> str:
    write_outside("nap")
    await asyncio.sleep(seconds)
    return "awake"


@app.transaction
async def long_transaction(tx: psycopg.AsyncConnection[Any], seconds: float) -> None:
    write_outside("in transaction")
    await asyncio.sleep(seconds)


@app.workflow
async def short(n: int) -> str:
    return await nap(0)
