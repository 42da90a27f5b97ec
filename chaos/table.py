"""The report on a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from chaos.faults import faults
from chaos.one_by_one import LATE
from chaos.results import RECOVERIES, Report, quantiles


def lines(report: Report) -> Iterator[str]:
    """Line by line."""
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    yield f"plan {report.plan}, seed {report.seed}, {report.seconds:.0f} s, {len(report.rounds)} rounds: {versions}"
    yield ""
    yield from _not_proven(report)
    yield from _faults(report)
    yield ""
    for name, value in report.totals().items():
        yield f"{name:<37} {value:>8,}"
    yield ""
    yield f"{'recovery, seconds':<37} {'count':>8} {'p50':>8} {'p99':>8} {'max':>8}  promised  a finding from"
    bounds = report.bounds()
    for kind, title in RECOVERIES.items():
        yield _figures(title, report.recoveries(kind)) + (
            f"  {bounds[kind]:>8g}  {LATE * bounds[kind]:g}" if kind in bounds else ""
        )
    yield _figures("everything done after faults stopped", sorted(r.drained for r in report.rounds if r.kind == "storm"))
    yield ""
    for name, verdict in report.verdicts().items():
        said = f"{len(verdict.wrong)} WRONG" if verdict.wrong else "-" if verdict.idle else "ok"
        seen = f"{verdict.seen:,} " if verdict.judged and verdict.note else ""
        most = f"; the most was {verdict.most}" if verdict.judged and verdict.most else ""
        yield f"oracle {name:<30} {said:>8}  {seen}{verdict.note}{most}".rstrip()
    for name, verdict in report.verdicts().items():
        for what in verdict.wrong[:20]:
            yield f"  {name}: {what}"


def _not_proven(report: Report) -> Iterator[str]:
    """What somebody has to know before he believes the figures."""
    if report.unproven is not None:
        yield f"NOTHING IS PROVED: {report.unproven}"
    for name, reason in report.skipped.items():
        yield f"DID NOT RUN: round {name}: {reason}"
    if missed := report.missed():
        yield f"DID NOT HAPPEN, although planned: {', '.join(missed)}"
    unread: dict[str, list[str]] = {}
    for name, verdict in report.verdicts().items():
        if verdict.needs:
            unread.setdefault(verdict.needs, []).append(name)
    for needs, names in unread.items():
        yield f"NOT JUDGED: {', '.join(names)}: {needs}"


def _faults(report: Report) -> Iterator[str]:
    """Of each fault how often it was injected, how often that was planned, and how often it found nothing to break."""
    injected, planned, empty = report.injected(), report.planned(), report.empty()
    yield f"{'fault':<37} {'injected':>8} {'planned':>8} {'empty':>8}"
    for number, fault in faults().items():
        if number in planned or number in injected:
            figures = (injected.get(number, 0), planned.get(number, 0), empty.get(number, 0))
            yield f"{number:<4} {fault.title:<32} " + " ".join(f"{figure:>8,}" for figure in figures)
    for reason in dict.fromkeys(report.left_out.values()):
        yield f"left out, because {reason}: {', '.join(n for n, why in report.left_out.items() if why == reason)}"


def _figures(title: str, values: list[float]) -> str:
    found = quantiles(values)
    if found is None:
        return f"{title:<37} {0:>8}"
    return f"{title:<37} {found['count']:>8,} {found['p50']:>8.3f} {found['p99']:>8.3f} {found['max']:>8.3f}"
