"""Checks of the work: are there workers, can everything be claimed, does something hang, and what has no limit?"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator

from pgqueue import protocol
from pgqueue.app import App
from pgqueue.doctor import protocol as questions
from pgqueue.doctor.finding import Case, Finding, error, note, warning
from pgqueue.functions import Workflow
from pgqueue.schedules import dispute

DECLARED = protocol.SCHEDULE_COLUMNS.index("declared")
LONG_WAIT = 300.0  # seconds
LONG_RUN = 3600.0
FORGOTTEN = 300.0


def workers(case: Case) -> Iterator[Finding]:
    """A worker is alive when its beat goes on."""
    stats = [row for row in case.ask(protocol.stats()) if not row[1]]
    before = case.ask(questions.beats())
    ready = sum(row[2] for row in stats)
    if not before and ready:
        yield error("workers", f"{ready:,} jobs are ready, and there is no worker", "start some: pgqueue work MODULE:APP")
    if before and not _beating(case, before):
        yield error(
            "workers",
            f"none of the {len(before)} registered workers gives a sign of life",
            "look at their hosts; the first housekeeper that starts gives back what they held",
        )
    for worker, host, jobs in case.ask(questions.fenced_for(FORGOTTEN)):
        yield warning(
            "workers",
            f"worker {worker} of {host} has lost its lease, and nobody has given its {jobs} jobs back",
            "a housekeeper does that: is there a pgqueue work with a connection?",
        )
    for queue, _, amount, _, running, _, oldest in stats:
        if before and oldest is not None and oldest > LONG_WAIT:
            yield warning(
                "workers",
                f"queue {queue}: the oldest of {amount:,} ready jobs waits for {oldest / 60:.0f} minutes; {running} run",
                "does a worker serve it (-q)? If so: more workers, or a look at its limits with pgqueue queues",
            )
    for queue, paused, *_ in case.ask(protocol.stats()):
        if paused:
            yield note("workers", f"queue {queue} is paused", f"pgqueue resume {queue}")


def _beating(case: Case, before: dict[str, int]) -> bool:
    """Does any of them beat within two beats?"""
    deadline = time.monotonic() + 2 * case.setting("lease") / 3
    while time.monotonic() < deadline:
        if any(beat != before.get(worker) for worker, beat in case.ask(questions.beats()).items()):
            return True
        time.sleep(0.1)
    return False


def unclaimable(case: Case) -> Iterator[Finding]:
    """Jobs that no worker takes."""
    for name, jobs in case.ask(questions.unclaimable()):
        known = case.app is not None and name in case.app.functions
        yield error(
            "unclaimable",
            f"{jobs:,} jobs wait for a worker that knows {name!r}",
            "start workers with this App"
            if known
            else f"start workers whose App has it, give another function that name with aliases=[{name!r}], or cancel them",
        )


def hanging(case: Case) -> Iterator[Finding]:
    """Jobs that run for very long, without a limit."""
    for job, name, _, host, pid, seconds, limited in case.ask(questions.running_for(LONG_RUN)):
        if not limited:
            yield warning(
                "hanging",
                f"job {job} ({name}) runs for {seconds / 3600:.1f} h on {host} (pid {pid}), without a time limit",
                f"look: pgqueue show {job}; if it hangs: pgqueue cancel --hard {job}; then give it a timeout",
            )


def schedules(case: Case) -> Iterator[Finding]:
    """Ticks that cannot be enqueued, or that nobody enqueues; and schedules of the App that rest, or are not its own."""
    if case.app is not None:
        for name, other in case.ask(protocol.disputed_schedules(case.app.name, list(case.app.schedules))):
            yield error("schedules", *dispute(name, other))
        on = {row[0] for row in case.ask(protocol.schedule_rows()) if row[DECLARED]}
        for name in sorted(case.app.schedules.keys() - on):
            yield warning(
                "schedules",
                f"schedule {name}, which this App declares, is not registered (or another App had it, and has dropped it)",
                "register it: pgqueue migrate MODULE:APP",
            )
    for name, problem, late in case.ask(questions.schedules()):
        if problem:
            yield error("schedules", f"schedule {name} cannot be kept: {problem}", "mend what it says; then it goes on by itself")
        elif late is not None and late > LONG_WAIT:
            yield Finding(
                "schedules",
                "error",
                f"schedule {name} is due for {late / 60:.0f} minutes",
                "housekeepers do that: is there a pgqueue work?",
            )


def limits(case: Case) -> Iterator[Finding]:
    """What has none; and queues that are fair by something that functions of the App do not have."""
    if case.app is None:
        return
    yield from _unfair(case, case.app)
    endless = {f.name for f in case.app.functions.values() if not isinstance(f, Workflow) and f.definition.timeout is None}
    if endless:
        yield note(
            "limits",
            f"{len(endless)} steps and transactions have no time limit: {_some(endless)}",
            "one that hangs keeps its worker for ever: @app.step(timeout='5m')",
        )
    for name, why in (("max_memory", "a leak takes the whole host with it"), ("max_jobs", "a slow leak goes on for ever")):
        if name in case.settings and not case.setting(name):
            yield note("limits", f"{name} is not set: {why}", f"--{name.replace('_', '-')}, see docs/operations.md")


def _unfair(case: Case, app: App) -> Iterator[Finding]:
    """An operator may have chosen any parameter, and the App has seen only its own declaration."""
    for queue, _, in_force, *_ in case.ask(protocol.limits()):
        parameter = in_force.get("fair_by")
        lack = {f.name for f in app.functions.values() if f.definition.queue == queue and parameter not in f.signature.parameters}
        if parameter is not None and lack:
            yield warning(
                "limits",
                f"queue {queue} is shared fairly by {parameter!r}, which is no parameter of {_some(lack)}: their jobs all count"
                " as those of one",
                f"name another with pgqueue limit {queue} --fair-by, or give them that parameter",
            )


def _some(names: Collection[str]) -> str:
    return ", ".join(sorted(names)[:5]) + (", ..." if len(names) > 5 else "")
