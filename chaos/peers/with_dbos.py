"""DBOS: each job is a workflow with one transaction, which stores its result beside what it writes, in the same database."""

import os
import sys
import time

import sqlalchemy
from dbos import DBOS, DBOSClient, SQLAlchemyDatasource

HOLD = 0.02
HAS_CHILDREN = False
COMMAND = [sys.executable, "with_dbos.py"]
URL = os.environ["DSN"].replace("postgresql://", "postgresql+psycopg://", 1)
VERSION = "1"


def prepare() -> None:
    DBOS.migrate(URL)


def enqueue(jobs: int) -> None:
    client = DBOSClient(system_database_url=URL)
    for job in range(jobs):
        client.enqueue({"queue_name": "effects", "workflow_name": "effect", "app_version": VERSION}, job)


def work() -> None:
    """Until it is killed. A process that is started again is the same executor, and takes up what the last one had begun."""
    DBOS(
        config={"name": "peers", "system_database_url": URL, "application_version": VERSION, "executor_id": os.environ["NUMBER"]}
    )
    source = SQLAlchemyDatasource.create(URL)

    @source.transaction()
    def write(job: int) -> None:
        time.sleep(HOLD)
        source.sql_session().execute(sqlalchemy.text("INSERT INTO effect VALUES (:job)"), {"job": job})
        time.sleep(HOLD)

    @DBOS.workflow(name="effect")
    def effect(job: int) -> None:
        write(job)

    DBOS.launch()
    DBOS.register_queue("effects", polling_interval_sec=0.2, worker_concurrency=2)
    time.sleep(3600)


if __name__ == "__main__":
    work()
