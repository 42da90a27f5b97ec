"""Celery on Redis. ``PROFILE=safe``: late acknowledgement, as its documentation advises for what must not be lost; ``fast``: its
defaults. The visibility timeout is short, so that nobody has to wait an hour for what is given back."""

import os
import sys
import time

import psycopg
import redis
from celery import Celery

HOLD = 0.02
HAS_CHILDREN = True
SAFE = os.environ.get("PROFILE", "safe") == "safe"
app = Celery("peers", broker=os.environ["REDIS"])
app.conf.update(
    task_ignore_result=True, broker_transport_options={"visibility_timeout": 10}, broker_connection_retry_on_startup=True
)
if SAFE:
    app.conf.update(task_acks_late=True, task_reject_on_worker_lost=True, worker_prefetch_multiplier=1)
COMMAND = [sys.executable, "-m", "celery", "-A", "with_celery", "worker", "-c", "2", "-l", "WARNING"]
_connections: dict[int, psycopg.Connection] = {}  # by process


@app.task(name="effect")
def effect(job: int) -> None:
    if os.getpid() not in _connections:
        _connections[os.getpid()] = psycopg.connect(os.environ["DSN"], autocommit=True)
    conn = _connections[os.getpid()]
    time.sleep(HOLD)
    conn.execute("INSERT INTO effect VALUES (%s)", (job,))
    time.sleep(HOLD)


def prepare() -> None:
    redis.Redis.from_url(os.environ["REDIS"]).flushdb()  # a purge would leave what was delivered and not acknowledged


def enqueue(jobs: int) -> None:
    for job in range(jobs):
        effect.delay(job)


def runners(children: list[int]) -> list[int]:
    return children
