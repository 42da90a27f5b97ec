"""The application that tests kill: accounts, and effects that are written down where duplicates would show."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import psycopg

from pgqueue import App, Queue, Retry, StepFailed, current, gather, sleep, stream, wait_event

app = App(queues=[Queue("payments")])

TABLES = """
CREATE TABLE account (id int PRIMARY KEY, balance bigint NOT NULL);
INSERT INTO account SELECT g, 0 FROM generate_series(1, 20) g;
CREATE TABLE effect (step_key text NOT NULL, xid xid8 NOT NULL, account int, amount int);  -- nothing unique: doubles must show
"""


def write_outside(line: str) -> None:
    """An effect outside of the database: a line in a file, in one write."""
    descriptor = os.open(os.environ["BANK_FILE"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(descriptor, line.encode() + b"\n")
    finally:
        os.close(descriptor)


def outside() -> list[str]:
    path = Path(os.environ["BANK_FILE"])
    return path.read_text().splitlines() if path.exists() else []


@app.transaction(max_crashes=1000)
def credit(tx: psycopg.Connection[Any], account: int, amount: int) -> int:
    tx.execute("UPDATE account SET balance = balance + %s WHERE id = %s", (amount, account))
    tx.execute("INSERT INTO effect VALUES (%s, pg_current_xact_id(), %s, %s)", (current().step_key, account, amount))
    return amount


@app.step(max_crashes=1000)
def notify(account: int) -> str:
    write_outside(current().step_key)
    return f"told {account}"


@app.workflow(queue="payments", max_crashes=1000)
def deposit(account: int, amount: int) -> str:
    credit(account, amount)
    told = notify(account)
    credit(account, -amount + 1)
    return told


@app.workflow(max_crashes=1000)
def slow(seconds: float) -> str:
    nap(seconds)
    return "awake"


@app.step
def nap(seconds: float) -> None:
    write_outside("nap " + current().step_key)
    time.sleep(seconds)


@app.transaction(max_crashes=1000)
def slow_credit(tx: psycopg.Connection[Any], account: int, amount: int, seconds: float) -> None:
    credit(account, amount)
    write_outside("in transaction")
    time.sleep(seconds)


@app.step
def noop() -> None:
    pass


@app.step(retry=Retry(3, backoff=0.05))
def flaky(fail: int) -> int:
    """Fails so many times."""
    write_outside("flaky " + current().step_key)
    done = outside().count("flaky " + current().step_key)
    if done <= fail:
        raise RuntimeError(f"failure {done}")
    return done


@app.workflow
def suicidal() -> None:
    """Kills its worker whenever it runs."""
    os.kill(os.getpid(), 9)


@app.step
def starts_a_child(seconds: float) -> None:
    import subprocess

    child = subprocess.Popen(["sleep", str(seconds)])
    write_outside(f"child {child.pid}")
    child.wait()


@app.step(retry=Retry(2, backoff=0.05))
def hopeless() -> None:
    raise RuntimeError("hopeless")


@app.workflow(max_crashes=1000)
def survives() -> str:
    try:
        hopeless()
    except StepFailed as error:
        return f"caught {error.type}"
    return "?"


@app.step(retry=Retry(1))
def dies_late(result: str) -> str:
    """Returns well; its process is to die a moment later."""
    write_outside("late")
    return result


@app.step(retry=Retry(1))
def forks(how: str) -> str:
    """Its child comes back into pgqueue."""
    pid = os.fork()
    if pid == 0:
        if how == "exit":
            raise SystemExit(0)
        if how == "raise":
            raise ValueError("child")
        return "child"
    os.waitpid(pid, 0)
    return "parent"


@app.transaction
def forks_in_transaction(tx: psycopg.Connection[Any], account: int) -> str:
    tx.execute("UPDATE account SET balance = balance + 1 WHERE id = %s", (account,))
    pid = os.fork()
    if pid == 0:
        return "child"
    os.waitpid(pid, 0)
    return "parent"


@app.step(max_crashes=1000)
def hog(seconds: float) -> None:
    """Holds the interpreter's lock: no other thread of its process runs meanwhile."""
    import ctypes

    write_outside("hog")
    ctypes.PyDLL(None).usleep(int(seconds * 1e6))


@app.step(timeout=0.5, retry=Retry(2, backoff=0.01))
def too_slow(seconds: float) -> str:
    """Takes longer than it may."""
    write_outside("slow")
    time.sleep(seconds)
    return "in time"


@app.transaction(timeout=0.5, retry=Retry(2, backoff=0.01))
def too_slow_in_a_transaction(tx: psycopg.Connection[Any], account: int) -> None:
    tx.execute("UPDATE account SET balance = balance + 1000000 WHERE id = %s", (account,))
    tx.execute("SELECT pg_sleep(60)")


@app.workflow
def has_slow_steps() -> list[str]:
    """Catches what the steps come to."""
    results = []
    for step, argument in ((too_slow, 60.0), (too_slow_in_a_transaction, 1), (too_slow, 0.01)):
        try:
            results.append(str(step(argument)))
        except StepFailed as error:
            results.append(error.type)
    return results


@app.workflow(timeout=2)
def takes_for_ever(how: str) -> None:
    """Longer than the job may."""
    if how == "computes":
        while True:
            time.sleep(1)
    if how == "steps":
        while True:
            nap(0.1)
    wait_event("never") if how == "waits" else sleep("1h")


@app.workflow
def family() -> list[None]:
    """Two children that take long."""
    return gather(*slow_child.map([60.0, 60.0]))


@app.workflow
def slow_child(seconds: float) -> None:
    nap(seconds)


@app.step
def talks(times: int, pause: float) -> None:
    """Says how far it is."""
    for i in range(times):
        stream.write(i)
        current().progress((i + 1) / times, f"{i + 1} of {times}")
        time.sleep(pause)
