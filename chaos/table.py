"""The report on a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from chaos.faults import faults
from chaos.results import RECOVERIES, Report, quantiles


def lines(report: Report) -> Iterator[str]:
    """Line by line."""
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    yield f"plan {report.plan}, seed {report.seed}, {report.seconds:.0f} s, {len(report.rounds)} rounds: {versions}"
    yield ""
    known = faults()
    for number, times in report.injected().items():
        yield f"{number:<4} {known[number].title:<32} {times:>8,}" if number in known else f"{number:<37} {times:>8,}"
    for reason in dict.fromkeys(report.left_out.values()):
        yield f"left out, because {reason}: {', '.join(n for n, why in report.left_out.items() if why == reason)}"
    yield ""
    for name, value in report.totals().items():
        yield f"{name:<37} {value:>8,}"
    yield ""
    yield f"{'recovery, seconds':<37} {'count':>8} {'p50':>8} {'p99':>8} {'max':>8}  promised"
    bounds = report.bounds()
    for kind, title in RECOVERIES.items():
        yield _figures(title, report.recoveries(kind)) + (f"  {bounds[kind]:g}" if kind in bounds else "")
    yield _figures("everything done after faults stopped", sorted(r.drained for r in report.rounds if r.kind == "storm"))
    yield ""
    for name, verdict in report.verdicts().items():
        said = f"{len(verdict.wrong)} WRONG" if verdict.wrong else "ok" if verdict.judged else "-"
        seen = f"{verdict.seen:,} " if verdict.seen else ""
        yield f"oracle {name:<30} {said:>8}  {seen}{verdict.note}".rstrip()
    for name, verdict in report.verdicts().items():
        for what in verdict.wrong[:20]:
            yield f"  {name}: {what}"


def _figures(title: str, values: list[float]) -> str:
    found = quantiles(values)
    if found is None:
        return f"{title:<37} {0:>8}"
    return f"{title:<37} {found['count']:>8,} {found['p50']:>8.3f} {found['p99']:>8.3f} {found['max']:>8.3f}"
