"""procrastinate, with the periodic task of its documentation that retries stalled jobs."""

import os
import sys
import time

import procrastinate
import psycopg

HOLD = 0.02
HAS_CHILDREN = False
COMMAND = [sys.executable, "with_procrastinate.py"]
app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=os.environ["DSN"]))
_connections: list[psycopg.Connection] = []


@app.task(name="effect")
def effect(job: int) -> None:
    if not _connections:
        _connections.append(psycopg.connect(os.environ["DSN"], autocommit=True))
    time.sleep(HOLD)
    _connections[0].execute("INSERT INTO effect VALUES (%s)", (job,))
    time.sleep(HOLD)


@app.periodic(cron="* * * * * */5")
@app.task(queueing_lock="retry_stalled_jobs", pass_context=True)
async def retry_stalled_jobs(context, timestamp: int) -> None:
    for job in await app.job_manager.get_stalled_jobs(seconds_since_heartbeat=5):
        await app.job_manager.retry_job(job)


def prepare() -> None:
    with psycopg.connect(os.environ["DSN"], autocommit=True) as conn:
        if conn.execute("SELECT to_regclass('procrastinate_jobs')").fetchone() == (None,):
            with app.open():
                app.schema_manager.apply_schema()


def enqueue(jobs: int) -> None:
    with app.open():
        for job in range(jobs):
            effect.defer(job=job)


if __name__ == "__main__":
    import asyncio

    async def work() -> None:
        async with app.open_async():
            await app.run_worker_async(concurrency=1, update_heartbeat_interval=2, stalled_worker_timeout=5)

    asyncio.run(work())
