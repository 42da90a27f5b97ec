"""The report as one HTML file, which loads nothing: throughput and faults of each storm, and how long recoveries took."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Iterator, Sequence

from chaos.faults import faults
from chaos.results import RECOVERIES, Report, Result
from chaos.table import lines

WIDTH, HEIGHT, LEFT = 960, 120, 60
ROW = 12
BUCKETS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)  # seconds
MOST = 40  # rounds with a picture of their own: what broke first, then the newest

STYLE = """
body { font: 14px/1.5 system-ui, sans-serif; max-width: 1040px; margin: 2em auto; padding: 0 1em; color: #222; }
pre { background: #f5f5f5; padding: 1em; overflow-x: auto; } h2 { margin-top: 2em; }
svg { display: block; margin: 1em 0; } svg text { font: 11px system-ui, sans-serif; fill: #555; }
.bad { color: #b00020; } .good { color: #1b6e3c; }
"""


def page(report: Report) -> str:
    """The whole file."""
    said = "no broken promise was found" if report.good else "PROMISES WERE BROKEN" if report.broken else "NOTHING IS PROVED"
    parts = [
        f"<!doctype html><meta charset='utf-8'><title>pgqueue chaos, seed {report.seed}</title><style>{STYLE}</style>",
        f"<h1>pgqueue chaos: <span class='{'good' if report.good else 'bad'}'>{said}</span></h1>",
        f"<pre>{html.escape(chr(10).join(lines(report)))}</pre>",
        "<h2>Recovery</h2><p>Jobs that a process held when it was broken: how long until another one had claimed them.</p>",
        *(_histogram(title, report.recoveries(kind)) for kind, title in RECOVERIES.items()),
        "<h2>Rounds</h2><p>Step commits per second above, and each fault below, over the seconds of the round.</p>",
        *_rounds(report),
        "<h2>What each fault is</h2>",
        *_explanations(report),
    ]
    return "\n".join(parts) + "\n"


def _rounds(report: Report) -> Iterator[str]:
    numbered = list(enumerate(report.rounds))
    shown = [(n, r) for n, r in numbered if r.wrong] + [(n, r) for n, r in numbered if not r.wrong][-MOST:]
    for number, result in sorted(shown[:MOST], key=lambda pair: pair[0]):
        yield f"<h3>Round {number}: {html.escape(result.name)}, seed {html.escape(result.seed)}</h3>"
        yield from (f"<p class='bad'>{html.escape(what)}</p>" for what in result.wrong[:10])
        if result.throughput:
            yield _timeline(result)
        if result.cases:
            yield f"<p>{', '.join(f'{kind}: {count}' for kind, count in result.cases.items())}</p>"


def _timeline(result: Result) -> str:
    kinds = sorted({fault for _, fault, _ in result.events}, key=lambda fault: int(fault[1:]))
    end = max([second for second, _ in result.throughput] + [int(at) for at, _, _ in result.events] + [1]) + 1
    top = max(count for _, count in result.throughput)
    scale = (WIDTH - LEFT) / end
    height = HEIGHT + ROW * len(kinds) + 30
    tall = (HEIGHT - 15) / top
    bars = [
        _bar(LEFT + second * scale, count * tall, max(scale - 0.5, 0.5), f"second {second}: {count}")
        for second, count in result.throughput
        if second >= 0
    ]
    rows = [f"<text x='0' y='{HEIGHT + ROW * row + 20}'>{kind}</text>" for row, kind in enumerate(kinds)]
    marks = [
        f"<circle cx='{LEFT + at * scale:.1f}' cy='{HEIGHT + ROW * kinds.index(fault) + 16}' r='3' fill='#c0392b'>"
        f"<title>{at:.1f} s: {html.escape(what)}</title></circle>"
        for at, fault, what in result.events
    ]
    axis = [f"<text x='0' y='12'>{top}/s</text>", f"<text x='{LEFT}' y='{height - 2}'>0 s</text>"]
    axis.append(f"<text x='{WIDTH - 30}' y='{height - 2}'>{end} s</text>")
    axis.append(f"<line x1='{LEFT}' x2='{WIDTH}' y1='{HEIGHT}' y2='{HEIGHT}' stroke='#999'/>")
    return f"<svg width='{WIDTH}' height='{height}' role='img'>{''.join(bars + rows + marks + axis)}</svg>"


def _bar(x: float, height: float, width: float, title: str) -> str:
    place = f"x='{x:.1f}' y='{HEIGHT - height:.1f}' width='{width:.1f}' height='{height:.1f}'"
    return f"<rect {place} fill='#7aa6d6'><title>{title}</title></rect>"


def _histogram(title: str, values: Sequence[float]) -> str:
    if not values:
        return ""
    counts = Counter(sum(value > limit for limit in BUCKETS) for value in values)
    top = max(counts.values())
    width = (WIDTH - LEFT) / (len(BUCKETS) + 1)
    parts = [f"<text x='0' y='12'>{html.escape(title)}, {len(values)} jobs</text>"]
    for bucket in range(len(BUCKETS) + 1):
        height = counts[bucket] / top * (HEIGHT - 40)
        label = f"≤ {BUCKETS[bucket]:g} s" if bucket < len(BUCKETS) else f"> {BUCKETS[-1]:g} s"
        x = LEFT + bucket * width
        parts.append(_bar(x, height, width - 4, f"{counts[bucket]} jobs {label}"))
        parts.append(f"<text x='{x:.0f}' y='{HEIGHT + 14}'>{label}</text>")
        parts.append(f"<text x='{x:.0f}' y='{HEIGHT - height - 4:.0f}'>{counts[bucket]}</text>")
    return f"<svg width='{WIDTH}' height='{HEIGHT + 20}' role='img'>{''.join(parts)}</svg>"


def _explanations(report: Report) -> Iterator[str]:
    known = faults()
    for number in report.injected():
        if number in known:
            title, broken, expected = map(html.escape, (known[number].title, known[number].broken, known[number].expected))
            yield f"<p><b>{number}, {title}</b>: {broken} <i>{expected}</i></p>"
