"""What a worker process does from its fork to its exit."""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import time
from collections.abc import Callable, Sequence

from pgqueue import database, protocol
from pgqueue.app import App, Hook
from pgqueue.config import Exit, Levels, WorkSettings, levels
from pgqueue.context import process
from pgqueue.errors import Configuration, DatabaseUnreachable
from pgqueue.failpoints import failpoint
from pgqueue.ids import Process
from pgqueue.loading import load_app
from pgqueue.logs import count_dropped, hide
from pgqueue.runtime.ground import Ground
from pgqueue.slots import Phase, Slot
from pgqueue.worker.claims import Claims
from pgqueue.worker.inbox import Inbox
from pgqueue.worker.runners import Loop, Threads
from pgqueue.worker.turns import Turns

log = logging.getLogger(__name__)


def work(
    settings: WorkSettings, worker: str, slot: Slot, wake: tuple[int, int], most_jobs: int, say: Callable[[str], None]
) -> int:
    """Run jobs until told to drain, or until there were so many (0: no end). The exit code. ``say``: why it cannot start."""
    process.is_worker, process.role, process.worker = True, "worker", worker
    slot.ticks.tick()
    try:
        app = load_app(settings.target)
        served = served_queues(app, settings.queues)
    except Configuration as error:
        log.error("%s", error)
        say(str(error))
        return Exit.CONFIG
    failpoint("dispatch.forked")
    if settings.dsn:  # beats what the App says, for what its jobs enqueue too
        app.dsn = settings.dsn
    dsn = app.dsn
    app.meter = slot.meter()
    hide(dsn, settings.listen_dsn)
    count_dropped(app.meter)
    for instrument in app.instruments.values():
        app.meter.declare(instrument.family)
    max_bytes = register(app, dsn, worker, slot)
    slot.set_registered()
    threads, loop = runners(app, settings, dsn, worker, max_bytes)
    try:
        call_hooks(app, "worker_start", loop)
    except Exception as error:
        log.exception("a worker_start hook failed: this worker ends")
        say(f"a worker_start hook failed with {type(error).__qualname__}: {database.brief(error)}")
        return Exit.FAILED
    slot.phase = Phase.BUSY
    serve(app, served, slot, worker, wake, threads, loop, most_jobs)
    slot.set_left()
    call_hooks(app, "worker_stop", loop)
    return Exit.OK


def runners(app: App, settings: WorkSettings, dsn: str, worker: str, max_bytes: int) -> tuple[Threads | None, Loop | None]:
    """What this App's functions need: threads, an event loop, or both."""
    colours = {function.is_async for function in app.functions.values()} or {False}
    threads = Threads(app, Ground(dsn, worker), settings.threads, max_bytes) if False in colours else None
    loop = Loop(app, dsn, worker, settings.concurrency, max_bytes) if True in colours else None
    if loop is not None:
        loop.start()
    return threads, loop


def serve(
    app: App, served: Levels, slot: Slot, worker: str, wake: tuple[int, int], threads: Threads | None, loop: Loop | None,
    most_jobs: int,
) -> None:  # fmt: skip
    """Claim, run and settle, until told to drain. The main thread is one of those that run jobs."""
    halves = {colour: runner for colour, runner in ((False, threads), (True, loop)) if runner is not None}
    inbox = Inbox(slot, {colour: runner.half for colour, runner in halves.items()}, lambda name: app.functions[name].is_async)
    for runner in halves.values():
        runner.watch(slot.limit)
    colours = colours_of(app, [queue for level in served for queue in level])
    claims = Claims(app.dsn, worker, colours, Turns(served), list(app.functions), slot, inbox, wake, app.meter, most_jobs)
    for runner in halves.values():
        runner.attach(inbox, claims.done)
    if threads is None:
        claims.start()
        claims.join()
        return
    claims.on_end(threads.stop)
    claims.start()
    threads.start()
    threads.work()
    claims.join(timeout=5)


def colours_of(app: App, queues: Sequence[str]) -> dict[str, frozenset[bool]]:
    """For each queue: are the functions that use it def, async def, or both? Where there are none: whatever the App has."""
    every = frozenset(function.is_async for function in app.functions.values()) or frozenset({False})
    used = {queue: frozenset(f.is_async for f in app.functions.values() if f.definition.queue == queue) for queue in queues}
    return {queue: colours or every for queue, colours in used.items()}


def call_hooks(app: App, event: Hook, loop: Loop | None) -> None:
    """Call what was registered for this event."""
    for hook in app.hooks[event]:
        if not inspect.iscoroutinefunction(hook):
            hook()
        elif loop is not None:
            loop.call(hook)
        else:
            asyncio.run(hook())


def served_queues(app: App, wanted: str) -> Levels:
    """The queues to serve, with their weights, level by level: all of the App, or the wanted ones. Configuration for one that the
    App does not have."""
    served = levels(wanted) or [dict.fromkeys(app.queues, 1)]
    unknown = [queue for level in served for queue in level if queue not in app.queues]
    if unknown:
        raise Configuration(f"the App has no queue {', '.join(unknown)}: it has {', '.join(sorted(app.queues))}")
    return served


def register(app: App, dsn: str, worker: str, slot: Slot) -> int:
    """Introduce this worker to the database, however long that is away. The size limit of results in bytes."""
    tries = 0
    slot.ticks.ask()
    while True:
        try:
            with database.connect(dsn, f"pgqueue:{worker}:claims") as conn:
                database.check_schema(conn)
                database.run(conn, app.registration())
                max_bytes = database.run(conn, protocol.register_worker(worker, Process.of(os.getpid())))
                slot.ticks.tick()
                return max_bytes
        except DatabaseUnreachable as error:
            tries += 1
            log.warning("%s", error)
            time.sleep(database.backoff(tries))
