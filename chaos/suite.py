"""Runs a plan: one server, one master seed, one round after the other. ``pgqueue chaos`` calls it."""

from __future__ import annotations

import json
import os
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from chaos import plan
from chaos.case_round import Cases
from chaos.faults import faults
from chaos.results import Report, Result
from chaos.server import GivenServer, OwnServer, Server
from chaos.storm import Storm, template
from chaos.verdicts import Verdict
from chaos.wire_cuts import Cuts


@dataclass
class Request:
    """What somebody wants to have run."""

    plan: str
    seed: int
    directory: Path
    minutes: float | None = None
    faults: Sequence[str] = ()
    dsn: str | None = None
    version: int | None = None


def run(request: Request, say: Callable[[str], None]) -> Report:
    """All rounds of the plan; storms again and again until the minutes are over. ``say`` is told how far it is."""
    chosen = plan.read(request.plan)
    minutes = chosen.minutes if request.minutes is None else request.minutes
    with ExitStack() as stack:
        server: Server = GivenServer(request.dsn) if request.dsn else OwnServer(request.version)
        stack.enter_context(server)
        stack.enter_context(template(server))
        report = Report.begun(request.plan, request.seed, server, _left_out(request.faults, server))
        deadline = time.monotonic() + minutes * 60
        number = 0
        while number < len(chosen.rounds) or time.monotonic() < deadline:
            entry = chosen.rounds[number % len(chosen.rounds)]
            if minutes and time.monotonic() > deadline:
                break
            if entry.kind == "storm" or number < len(chosen.rounds):
                seconds = min(entry.seconds, deadline - time.monotonic()) if minutes else entry.seconds
                report.add(_round(request, entry, server, number, max(5.0, seconds), say))
                _write(request.directory, report)
            number += 1
        report.seconds = time.time() - report.began
        _write(request.directory, report)
        return report


def _left_out(wanted: Sequence[str], server: Server) -> dict[str, str]:
    """The faults that are not injected here, and why."""
    return {
        number: reason
        for number, fault in faults().items()
        if (reason := fault.left_out(server) or ("it was not asked for" if wanted and number not in wanted else None))
    }


def _round(
    request: Request, entry: plan.Round, server: Server, number: int, seconds: float, say: Callable[[str], None]
) -> Result:
    """One round. What the suite itself cannot do is a finding too, and ends nothing."""
    seed = f"{request.seed}/{number}"
    directory = request.directory / f"round-{number}"
    directory.mkdir(parents=True)
    every = {fault: mean for fault, mean in entry.every.items() if not request.faults or fault in request.faults}
    times = {fault: count for fault, count in entry.times.items() if not request.faults or fault in request.faults}
    entry = plan.Round(**{**vars(entry), "every": every, "times": times})
    try:
        return KINDS[entry.kind](entry, server, directory, seed, say).run(seconds)
    except Exception:  # noqa: BLE001 -- whatever it was
        trace = traceback.format_exc()
        return Result(entry.kind, entry.name, seed, verdicts={"suite": Verdict([f"the round did not end: {trace}"])})


KINDS: dict[str, type[Storm] | type[Cases] | type[Cuts]] = {"storm": Storm, "one by one": Storm, "cases": Cases, "cuts": Cuts}


def _write(directory: Path, report: Report) -> None:
    """After each round: a run that is interrupted has left what it knew."""
    new = directory / "report.json.new"
    new.write_text(json.dumps(report.as_json(everything=True), default=str))
    os.replace(new, directory / "report.json")
