"""What a worker process does from its fork to its exit."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence

from pgqueue import database, protocol
from pgqueue.app import App
from pgqueue.config import Exit, WorkSettings
from pgqueue.context import process
from pgqueue.errors import Configuration, DatabaseUnreachable
from pgqueue.failpoints import failpoint
from pgqueue.ids import Process, digest
from pgqueue.loading import load_app
from pgqueue.model import Settlement
from pgqueue.runtime.failure import describe
from pgqueue.runtime.run import JobRun
from pgqueue.runtime.session import Session
from pgqueue.slots import Phase, Slot
from pgqueue.worker.claims import Claims

log = logging.getLogger(__name__)


def work(settings: WorkSettings, worker: str, slot: Slot, wake: tuple[int, int]) -> int:
    """Run jobs until told to drain. The exit code."""
    process.is_worker = True
    try:
        app = load_app(settings.target)
        queues = served_queues(app, settings.queues)
    except Configuration as error:
        log.error("%s", error)
        return Exit.CONFIG
    failpoint("dispatch.forked")
    if settings.dsn:  # beats what the App says, for what its jobs enqueue too
        app.client.pool.given_dsn = settings.dsn
    dsn = app.dsn
    max_bytes = register(app, dsn, worker)
    slot.set_registered()
    slot.phase = Phase.BUSY
    claims = Claims(dsn, worker, queues, list(app.functions), slot, wake)
    claims.start()
    run_jobs(app, claims, Session(dsn, worker), slot, max_bytes)
    claims.join(timeout=5)
    return Exit.OK


def run_jobs(app: App, claims: Claims, session: Session, slot: Slot, max_bytes: int) -> None:
    """The loop of the main thread: one job after the other, until there are to be no more."""
    while (job := claims.next_job()) is not None:
        slot.begin(digest(job.id, job.token))
        began = time.perf_counter()
        try:
            settlement = JobRun(app, job, session, max_bytes).execute()
        except Exception as error:  # a bug of ours: this job fails with it, the worker goes on
            log.exception("job %s (%s): internal error", job.id, job.name)
            session.discard()
            settlement = Settlement(job, "failed", None, 0, '{"failed_seqs":[],"error":' + describe(error) + "}")
        claims.done(job, settlement, time.perf_counter() - began)
        slot.end()


def served_queues(app: App, wanted: Sequence[str]) -> list[str]:
    """The queues to serve: all of the App, or the wanted ones. Configuration for one that the App does not have."""
    unknown = [queue for queue in wanted if queue not in app.queues]
    if unknown:
        raise Configuration(f"the App has no queue {', '.join(unknown)}: it has {', '.join(sorted(app.queues))}")
    return list(wanted) or list(app.queues)


def register(app: App, dsn: str, worker: str) -> int:
    """Introduce this worker to the database, however long that is away. The size limit of results in bytes."""
    tries = 0
    while True:
        try:
            with database.connect(dsn, f"pgqueue:{worker}:claims") as conn:
                database.check_schema(conn)
                database.run(conn, app.registration())
                return database.run(conn, protocol.register_worker(worker, Process.of(os.getpid())))
        except DatabaseUnreachable as error:
            tries += 1
            log.warning("%s", error)
            time.sleep(database.backoff(tries))
