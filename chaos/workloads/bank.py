"""The bank: transfers between accounts, with all that they do written down where a double would show.

In the database ``effect`` and ``movement``, on purpose without any unique constraint; outside of it the file that BANK_FILE
names: one line for each time that the code of a step ran.
"""

from __future__ import annotations

import os
import time
from typing import Any, cast

import psycopg

from pgqueue import App, Queue, Retry, StepFailed, current, gather, sleep, wait_event
from pgqueue.context import joined_run
from pgqueue.database import run
from pgqueue.failpoints import failpoint
from pgqueue.functions import Call
from pgqueue.runtime.calls import Calls

ACCOUNTS, BALANCE = 20, 1000
ENOUGH = 1000  # crashes: the suite kills on purpose, and no job is to be blamed
RETRY = Retry(5, backoff=0.05)

TABLES = f"""
CREATE TABLE account (id int PRIMARY KEY, balance bigint NOT NULL, trail text[] NOT NULL DEFAULT '{{}}');
INSERT INTO account SELECT g, {BALANCE} FROM generate_series(1, {ACCOUNTS}) g;
CREATE TABLE movement (account int NOT NULL, place int NOT NULL, amount bigint NOT NULL, step_key text NOT NULL);
CREATE TABLE effect (job_id uuid NOT NULL, seq int NOT NULL, xid xid8 NOT NULL);
CREATE TABLE purchase (number int NOT NULL);
"""

app = App(queues=[Queue("payments")])


def claim() -> int:
    """Of the run that asks. (Of interest to nobody's code but ours.)"""
    return cast(Calls, joined_run())._run.job.token


def write_outside(what: str) -> None:
    """An effect outside of the database: ``what step_key moment claim`` in one write to a file."""
    line = f"{what} {current().step_key} {time.time():.6f} {claim()}\n"
    descriptor = os.open(os.environ["BANK_FILE"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


MOVE = "UPDATE account SET balance = balance + %s, trail = trail || %s::text WHERE id = %s RETURNING cardinality(trail)"
NOTE_MOVE = "INSERT INTO movement VALUES (%s, %s, %s, %s)"
NOTE_EFFECT = "INSERT INTO effect VALUES (%s, %s, pg_current_xact_id())"


def effect() -> tuple[str, int]:
    """What every transaction of the bank notes: the oracle wants one effect for each checkpoint."""
    job_id, _, seq = current().step_key.partition(":")
    return job_id, int(seq)


def move_money(tx: psycopg.Connection[Any], source: int, target: int, amount: int) -> int:
    """Both accounts, and the trail of each, which shows the order of movements."""
    write_outside("body")
    key = current().step_key
    for account, change in ((source, -amount), (target, amount)):
        place = tx.execute(MOVE, (change, key, account)).fetchone()
        tx.execute(NOTE_MOVE, (account, *(place or ()), change, key))
        failpoint("bank.between_statements")
    tx.execute(NOTE_EFFECT, effect())
    return amount


@app.transaction(max_crashes=ENOUGH, retry=RETRY)
def move(tx: psycopg.Connection[Any], source: int, target: int, amount: int) -> int:
    return move_money(tx, source, target, amount)


@app.transaction(max_crashes=ENOUGH, retry=RETRY, isolation="repeatable read")
def move_repeatable_read(tx: psycopg.Connection[Any], source: int, target: int, amount: int) -> int:
    return move_money(tx, source, target, amount)


@app.transaction(max_crashes=ENOUGH, retry=RETRY, isolation="serializable")
def move_serializable(tx: psycopg.Connection[Any], source: int, target: int, amount: int) -> int:
    return move_money(tx, source, target, amount)


MOVES = {"read committed": move, "repeatable read": move_repeatable_read, "serializable": move_serializable}


@app.step(max_crashes=ENOUGH, retry=RETRY)
def tell(account: int) -> str:
    """A plain step."""
    write_outside("effect")
    return f"told {account}"


@app.workflow(queue="payments", max_crashes=ENOUGH)
def transfer(source: int, target: int, amount: int, isolation: str = "read committed") -> str:
    """Two transactions and two plain steps."""
    MOVES[isolation](source, target, amount)
    tell(source)
    MOVES[isolation](source, target, 1 - amount)
    return tell(target)


@app.transaction(max_crashes=ENOUGH, retry=RETRY)
async def move_async(tx: psycopg.AsyncConnection[Any], source: int, target: int, amount: int) -> int:
    """The same on the event loop."""
    write_outside("body")
    key = current().step_key
    for account, change in ((source, -amount), (target, amount)):
        place = await (await tx.execute(MOVE, (change, key, account))).fetchone()
        await tx.execute(NOTE_MOVE, (account, *(place or ()), change, key))
        failpoint("bank.between_statements")
    await tx.execute(NOTE_EFFECT, effect())
    return amount


@app.step(max_crashes=ENOUGH, retry=RETRY)
async def tell_async(account: int) -> str:
    write_outside("effect")
    return f"told {account}"


@app.workflow(queue="payments", max_crashes=ENOUGH)
async def transfer_async(source: int, target: int, amount: int) -> str:
    """Two transactions and two plain steps, on the event loop."""
    await move_async(source, target, amount)
    await tell_async(source)
    await move_async(source, target, 1 - amount)
    return await tell_async(target)


@app.workflow(max_crashes=ENOUGH)
def one_move(source: int, target: int, isolation: str) -> int:
    """One transaction."""
    return MOVES[isolation](source, target, 1)


@app.workflow(max_crashes=ENOUGH)
def one_tell(account: int) -> str:
    """One plain step."""
    return tell(account)


@app.transaction(max_crashes=ENOUGH, retry=RETRY)
def grant(tx: psycopg.Connection[Any], account: int, amount: int) -> int:
    """A job that is one transaction, and enqueues another job in it."""
    move_money(tx, 1, account, amount)
    tell.enqueue(account)
    return amount


@app.step(max_crashes=ENOUGH, retry=Retry(2, backoff=0.05))
def refuse() -> None:
    raise RuntimeError("refused")


@app.workflow(max_crashes=ENOUGH)
def insist() -> str:
    """A step that fails for good, and a workflow that lives with it."""
    try:
        refuse()
    except StepFailed as error:
        return f"caught {error.type}"
    return "?"


@app.workflow(max_crashes=ENOUGH, retry=RETRY)
def answer(key: str, value: int) -> int:
    """Sends an event when somebody has waited for it for a while."""
    sleep(0.3)
    app.send_event(key, value)
    return value


@app.workflow(max_crashes=ENOUGH)
def standing_order(account: int) -> str:
    """Waits for its day, moves money with two children, and waits for a third to have seen it."""
    sleep(0.15)
    gather(one_move.call(account, account + 1, "read committed"), one_move.call(account + 1, account, "read committed"))
    answer.enqueue(f"standing order {account}", account)
    return tell(wait_event(f"standing order {account}"))


@app.transaction(max_crashes=ENOUGH)
def order(tx: psycopg.Connection[Any], number: int) -> int:
    """What producers enqueue."""
    tx.execute(NOTE_EFFECT, effect())
    return number


@app.transaction(max_crashes=ENOUGH, retry=RETRY)
def strike(tx: psycopg.Connection[Any]) -> str:
    """What the clock of the bank does each second."""
    tx.execute(NOTE_EFFECT, effect())
    return str(current().meta["due_at"])


if os.environ.get("BANK_STRIKES"):  # only where somebody wants jobs that nobody has enqueued
    app.schedule(every="1s", misfire="all")(strike)


def install(conn: psycopg.Connection[Any]) -> None:
    """The tables, and what workers would register."""
    conn.execute(TABLES)
    run(conn, app.registration())


def enqueue(conn: psycopg.Connection[Any], transfers: int, on_the_loop: int, grants: int) -> list[str]:
    """The work of the sweep: transfers of both colours, grants, and a job of each other kind. The ids, without those of the
    grants' own jobs."""
    calls: list[Call[Any]] = [transfer.call(i % 4 + 1, i % 4 + 2, 10 + i) for i in range(transfers)]
    calls += [transfer_async.call(i % 4 + 1, i % 4 + 2, 20 + i) for i in range(on_the_loop)]
    calls += [grant.call(i % 4 + 3, 7) for i in range(grants)]
    return [job.id for job in app.enqueue_many([*calls, tell.call(5), insist.call(), standing_order.call(8)], conn=conn)]
