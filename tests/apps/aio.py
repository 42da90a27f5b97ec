"""The bank once more, with ``async def`` jobs, and ``def`` jobs beside them in the same workers."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import psycopg

from pgqueue import App, Queue, Retry, current
from pgqueue.context import Current
from pgqueue.errors import TransactionMisused
from tests.apps.bank import outside, write_outside

app = App(queues=[Queue("threads"), Queue("loop")])
pool: list[str] = []  # what the hooks open
tenant: ContextVar[str] = ContextVar("tenant", default="nobody")


@app.on("worker_start")
async def opened() -> None:
    await asyncio.sleep(0)
    pool.append("opened")
    write_outside("async start")


@app.on("worker_start")
def said() -> None:
    assert pool == ["opened"], "hooks are called in the order in which they were registered"
    write_outside("start")
    if os.environ.get("BANK_START") == "fail":
        raise RuntimeError("no pool to be had")


@app.on("worker_stop")
def closed() -> None:
    write_outside("stop")


@app.on("worker_stop")
async def closed_too() -> None:
    write_outside("async stop")


@app.middleware
def tenants(job: Current) -> Iterator[None]:
    tenant.set(f"tenant of {job.job_id}")
    yield


@app.transaction
async def credit(tx: psycopg.AsyncConnection[Any], account: int, amount: int) -> int:
    await tx.execute("UPDATE account SET balance = balance + %s WHERE id = %s", (amount, account))
    await tx.execute("INSERT INTO effect VALUES (%s, pg_current_xact_id(), %s, %s)", (current().step_key, account, amount))
    return amount


@app.transaction
def def_credit(tx: psycopg.Connection[Any], account: int, amount: int) -> int:
    tx.execute("UPDATE account SET balance = balance + %s WHERE id = %s", (amount, account))
    tx.execute("INSERT INTO effect VALUES (%s, pg_current_xact_id(), %s, %s)", (current().step_key, account, amount))
    return amount


@app.step
async def notify(account: int) -> str:
    write_outside(current().step_key)
    return f"told {account}"


@app.step
async def pause(seconds: float) -> None:
    write_outside("pause " + current().job_id)
    await asyncio.sleep(seconds)


@app.step(queue="loop")
async def wait(seconds: float) -> str:
    """Says when it begins; holds nothing meanwhile."""
    write_outside("wait " + current().job_id)
    await asyncio.sleep(seconds)
    return tenant.get()


@app.workflow
async def deposit(account: int, amount: int, seconds: float = 0) -> str:
    await credit(account, amount)
    if seconds:
        await pause(seconds)
    told = await notify(account)
    await def_credit.aio(account, 1 - amount)
    return told


def arrive(place: str) -> None:
    write_outside(f"{place} {os.getpid()}")


def all_here(place: str, count: int) -> bool:
    """Have so many come to this place, in this process?"""
    return outside().count(f"{place} {os.getpid()}") >= count


@app.step(queue="loop", retry=Retry(1))
async def meet(place: str, count: int) -> None:
    """Ends when so many are here at the same time."""
    arrive(place)
    while not all_here(place, count):
        await asyncio.sleep(0.01)


@app.step(queue="threads", retry=Retry(1))
def def_meet(place: str, count: int) -> None:
    arrive(place)
    while not all_here(place, count):
        time.sleep(0.01)


@app.workflow(queue="loop")
async def meet_in_threads(place: str, count: int) -> None:
    await def_meet.aio(place, count)


@app.workflow(queue="loop")
async def suicidal(seconds: float) -> None:
    """Kills its worker whenever it runs."""
    await asyncio.sleep(seconds)
    os.kill(os.getpid(), signal.SIGKILL)


@app.step(retry=Retry(1))
async def leaves() -> None:
    """A task that would end the process."""

    async def leave() -> None:
        raise SystemExit(3)

    await asyncio.create_task(leave())


@app.step(queue="loop")
async def ticks(count: int) -> None:
    """Writes something down again and again: whoever runs it twice is seen."""
    for i in range(count):
        write_outside(f"tick {current().job_id} {i}")
        await asyncio.sleep(0.02)


@app.step(queue="loop", retry=Retry(1))
async def forks(how: str) -> str:
    """Its child comes back into pgqueue, or goes on with the event loop of its parent."""
    pid = os.fork()
    if pid == 0:
        if how == "raise":
            raise ValueError("child")
        if how == "sleep":
            await asyncio.sleep(0.1)
        while how == "spin":
            await asyncio.sleep(0)
        return "child"
    deadline = time.monotonic() + 5
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
        await asyncio.sleep(0.01)
    return "parent"


remembered: ContextVar[str] = ContextVar("remembered", default="nothing")


@app.step(queue="loop")
async def remember(what: str) -> str:
    """What there was before."""
    before = remembered.get()
    remembered.set(what)
    return before


@app.step(queue="threads")
def def_remember(what: str) -> str:
    before = remembered.get()
    remembered.set(what)
    return before


@app.transaction(retry=Retry(1))
async def hammers(tx: psycopg.AsyncConnection[Any], raises: bool) -> None:
    """Leaves a task behind that uses the connection without a pause."""

    async def hammer() -> None:
        while True:
            await tx.execute("SELECT 1")

    leftovers.append(asyncio.create_task(hammer()))
    await asyncio.sleep(0.02)
    if raises:
        raise ValueError("over")


@app.transaction(retry=Retry(1))
def thread_hammers(tx: psycopg.Connection[Any]) -> None:
    """The same with a thread."""

    def hammer() -> None:
        try:
            while True:
                tx.execute("SELECT 1")
        except (psycopg.Error, TransactionMisused):
            pass

    threading.Thread(target=hammer, daemon=True).start()
    time.sleep(0.02)


leftovers: list[asyncio.Task[None]] = []


@app.step(timeout=0.5, retry=Retry(2, backoff=0.01))
async def too_slow(blocks: bool) -> None:
    """Takes longer than it may; where it blocks, nothing can cancel it."""
    write_outside(f"slow {blocks}")
    if blocks:
        time.sleep(60)
    await asyncio.sleep(60)
