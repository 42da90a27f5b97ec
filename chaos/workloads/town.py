"""Everything at once on one App: the bank, and around it chains, fan-outs, waits, limited queues, and a clock that strikes.

What jobs do is written down as the bank does it: one row in ``effect`` for each transaction, one line in the file for each run of
a plain step.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import psycopg

from chaos.workloads import bank
from chaos.workloads.bank import ENOUGH, NOTE_EFFECT, RETRY, app, claim, effect, write_outside
from pgqueue import Queue, Rate, WaitTimeout, gather, sleep, wait_event
from pgqueue.database import run

#: The limits that the oracles hold claims to.
FEW, PER_SECOND, BURST = 3, 4, 2
IDLE = 2.0  # seconds that `dwell` may be silent in its transaction
NAP = 0.25  # seconds that `waits` sleeps, and then waits for what does not come

#: A queue for each workload, so that none waits behind another one's limits.
app.queues.update({
    queue.name: queue
    for queue in (
        Queue("few", concurrency=FEW),
        Queue("keys", per_key=1),
        Queue("even", rate=Rate(PER_SECOND, per="1s", burst=BURST)),
        Queue("zoo"),
    )
})  # fmt: skip


@app.transaction(max_crashes=ENOUGH, retry=RETRY)
def note(tx: psycopg.Connection[Any], n: int) -> int:
    tx.execute(NOTE_EFFECT, effect())
    return n


@app.step(max_crashes=ENOUGH, retry=RETRY)
def outside(n: int) -> int:
    write_outside("effect")
    return n


@app.workflow(max_crashes=ENOUGH)
def chain(steps: int) -> int:
    """Many small steps, every fifth of them a plain one."""
    return sum((outside if n % 5 == 4 else note)(n) for n in range(steps))


@app.step(max_crashes=ENOUGH, retry=RETRY)
def look_around(n: int) -> int:
    """Holds its worker, and uses nothing of the machine."""
    write_outside("effect")
    time.sleep(0.02)
    return n


@app.workflow(max_crashes=ENOUGH)
def stroll(steps: int) -> int:
    """What workers do while their recovery is measured."""
    return sum(look_around(n) for n in range(steps))


@app.transaction(max_crashes=ENOUGH, retry=RETRY, idle_timeout=IDLE)
def dwell(tx: psycopg.Connection[Any], n: int) -> int:
    """Is silent in its transaction for a while."""
    tx.execute(NOTE_EFFECT, effect())
    time.sleep(1.0)
    return n


@app.workflow(max_crashes=ENOUGH)
def errands(steps: int) -> int:
    """Many small steps, every other one a plain one."""
    return sum((outside if n % 2 else note)(n) for n in range(steps))


@app.workflow(max_crashes=ENOUGH)
def fan_out(children: int) -> int:
    """Children at once, and what follows when all have ended."""
    results = gather(*child.map(range(children)))
    note(len(results))
    return sum(results)


@app.workflow(max_crashes=ENOUGH)
def child(n: int) -> int:
    note(n)
    return n


@app.workflow(max_crashes=ENOUGH)
def waits(key: str, n: int) -> int:
    """Leaves its worker three times: for a moment; for an event that another job sends, when this one is waiting for it, unless a
    fault has held it up; and for an event that nobody sends, until its time is over."""
    note(1)
    sleep(NAP)
    bank.answer.enqueue(key, n)
    got = int(wait_event(key))
    note(2)
    try:
        wait_event(f"{key}, which nobody sends", timeout=NAP)
    except WaitTimeout:
        return note(got)
    return 0


@app.step(max_crashes=ENOUGH, retry=RETRY)
async def linger(seconds: float) -> int:
    """Its result says which run it is of."""
    write_outside("effect")
    await asyncio.sleep(seconds)
    return claim()


@app.step(queue="few", max_crashes=ENOUGH, retry=RETRY)
def visit(n: int) -> int:
    """What a queue with a limit is for. Long enough that others come meanwhile, and the limit is reached."""
    write_outside("effect")
    time.sleep(0.1)
    return n


@app.step(queue="keys", key="key", max_crashes=ENOUGH, retry=RETRY)
def serve(n: int, key: str) -> int:
    """One of a key at a time."""
    write_outside("effect")
    return n


def install(conn: psycopg.Connection[Any], history: bool = True) -> None:
    """The tables, what workers would register, and the history of claims."""
    conn.execute(bank.TABLES)
    run(conn, app.registration())
    if history:
        from chaos.oracles import claim_history  # here, because oracles know the workloads

        claim_history.install(conn)


def names(kind: str) -> frozenset[str]:
    """Of all functions of this kind."""
    return frozenset(function.name for function in app.functions.values() if function.kind == kind)
