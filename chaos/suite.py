"""Runs a plan: one server, one master seed, one round after the other. ``pgqueue chaos`` calls it."""

from __future__ import annotations

import itertools
import json
import os
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from chaos import plan
from chaos.case_round import Cases
from chaos.faults import faults
from chaos.guardian import Guardian
from chaos.leftovers import clean
from chaos.results import SUITE, Report, Result
from chaos.server import CannotRun, GivenServer, OwnServer, Server
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
    """All rounds of the plan; storms again and again until the minutes are over. ``say`` is told how far it is. CannotRun where
    there is nothing to do."""
    began = time.time()
    chosen = plan.read(request.plan)
    with ExitStack() as stack:
        server: Server = GivenServer(request.dsn) if request.dsn else OwnServer(request.version)
        left_out = _left_out(request.faults, chosen, server)
        stack.enter_context(server)
        _demand_something(request, left_out)
        if request.dsn:
            _clean(request.dsn, say)
        stack.enter_context(Guardian(server.name, request.dsn, server.directory))
        stack.enter_context(template(server))
        report = Report.begun(request.plan, request.seed, server, left_out, began)
        for number, seconds in _times(chosen, request.minutes, report):
            report.add(_round(request, chosen.rounds[number % len(chosen.rounds)], server, number, seconds, say))
            _write(request.directory, report)
    report.seconds = time.time() - began
    _write(request.directory, report)
    return report


def _clean(dsn: str, say: Callable[[str], None]) -> None:
    """What runs have left that were killed, and whose guardians were too."""
    cleaned = clean(dsn)
    for name in cleaned.dropped:
        say(f"dropped the database {name} of a run that is no more")


def _left_out(wanted: Sequence[str], chosen: plan.Plan, server: Server) -> dict[str, str]:
    """The faults that are not injected here, and why."""
    planned = frozenset[str]().union(*(entry.faults for entry in chosen.rounds))
    return {
        number: reason
        for number, fault in faults().items()
        if (
            reason := fault.left_out(server)
            or ("it was not asked for" if wanted and number not in wanted else None)
            or ("no round of this plan has it" if number not in planned else None)
        )
    }


def _demand_something(request: Request, left_out: dict[str, str]) -> None:
    if set(request.faults) and set(request.faults) <= left_out.keys():
        reasons = "; ".join(f"{number}: {left_out[number]}" for number in request.faults)
        raise CannotRun(f"none of the faults that were asked for can be injected by the plan {request.plan}: {reasons}")


def _times(chosen: plan.Plan, minutes: float | None, report: Report) -> Iterator[tuple[int, float]]:
    """Which rounds, and how many seconds each: all that can be once, then storms again while there is time.

    How long a round is follows from the plan and the minutes alone, so that a seed means the same timetable on every machine. The
    clock decides only how many rounds there are: none begins that would be over by more than half of it.
    """
    minutes = chosen.minutes if minutes is None else minutes
    possible = {number for number in faults() if number not in report.left_out}
    concerned = [bool(entry.faults & possible) for entry in chosen.rounds]
    for number in itertools.count():
        entry = chosen.rounds[number % len(chosen.rounds)]
        again = number >= len(chosen.rounds)
        seconds = max(5.0, min(entry.seconds, minutes * 60)) if minutes else entry.seconds
        no_time = bool(minutes) and time.time() + seconds / 2 > report.began + minutes * 60
        if again and (not minutes or no_time or not any(map(_storms, chosen.rounds, concerned))):
            return
        if not concerned[number % len(concerned)]:
            report.skipped[entry.name] = "none of its faults was asked for, or can be injected here"
        elif no_time and report.rounds:
            report.skipped[entry.name] = f"the {minutes:g} minutes were nearly over"
        elif not again or entry.kind == "storm":
            yield number, seconds


def _storms(entry: plan.Round, concerned: bool) -> bool:
    return concerned and entry.kind == "storm"


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
    except Exception as error:  # noqa: BLE001 -- whatever it was
        wrong = [f"the round did not end: {error!r}\n{traceback.format_exc()}"]
        return Result(entry.kind, entry.name, seed, verdicts={SUITE: Verdict(wrong)})


KINDS: dict[str, type[Storm] | type[Cases] | type[Cuts]] = {"storm": Storm, "one by one": Storm, "cases": Cases, "cuts": Cuts}


def _write(directory: Path, report: Report) -> None:
    """After each round: a run that is interrupted has left what it knew."""
    new = directory / "report.json.new"
    new.write_text(json.dumps(report.as_json(everything=True), default=str))
    os.replace(new, directory / "report.json")
