"""An application with metrics of its own, and jobs that end in every way."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

import psycopg

from pgqueue import App, Cancel, Queue, Retry, StepFailed, current, gather, sleep

app = App(queues=[Queue("other", concurrency=3)])
seen = app.counter("shop_seen_total", "Seen.", ["who"])
level = app.gauge("shop_level", "Level.", combine="max")
size = app.histogram("shop_size_bytes", "Size.", ["who"], buckets=[1, 10, 100])


@app.step(name="see", max_crashes=1000)
def see(who: str, bytes: float = 5) -> None:
    seen.inc(who=who)
    level.set(bytes)
    size.observe(bytes, who=who)


@app.step(name="nap", max_crashes=1000)
def nap(seconds: float) -> None:
    time.sleep(seconds)


@app.transaction(name="write", max_crashes=1000)
def write(tx: psycopg.Connection[Any]) -> None:
    tx.execute("SELECT 1")


@app.step(name="fail", retry=Retry(1))
def fail() -> None:
    raise ValueError("no")


@app.step(name="fail_once", retry=Retry(2, backoff=0.05))
def fail_once() -> None:
    raise ValueError("no")


@app.workflow(name="every", max_crashes=1000)
def every(end: str) -> None:
    see("every")
    write()
    sleep(0.2)
    gather(see.call("a"), see.call("b"))
    try:
        fail()
    except StepFailed:
        pass
    if end == "cancel":
        raise Cancel("enough")
    if end == "fail":
        fail_once()


@app.step(name="noisy")
def noisy(secret: str) -> int:
    for number in range(10):
        current().logger.info("number %d, %s", number, "x" * 1000)
    return 1


@app.step(name="log")
def log() -> None:
    logger = current().logger
    logger.info("in the step")
    logging.getLogger("a.library").info("not even this")
    logging.getLogger("a.library").warning("of a library")
    thread = threading.Thread(target=lambda: logger.info("in a thread"))
    thread.start()
    thread.join()


@app.workflow(name="logs")
def logs_in_step() -> None:
    current().logger.info("in the body")
    log()
