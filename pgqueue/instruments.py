"""Metrics of an application's own: made with ``app.counter``, ``app.gauge`` and ``app.histogram``, counted in the memory that the
processes of a supervisor share (see meter.py), and shown by it beside pgqueue's own."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pgqueue.metrics import NAME, Family

if TYPE_CHECKING:
    from pgqueue.app import App

MOST_LABELS, MOST_BUCKETS = 8, 64


class Instrument:
    """One metric. Outside of a worker it counts for nobody."""

    def __init__(self, app: App, family: Family) -> None:
        self._app = app
        self.family = family

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.family.name!r})"

    def _labels(self, given: dict[str, object]) -> tuple[str, ...]:
        try:
            labels = tuple([str(given[name]) for name in self.family.labels])
        except KeyError:
            labels = ()
        if len(labels) != len(given) or len(labels) != len(self.family.labels):
            wanted = ", ".join(self.family.labels) or "none"
            raise ValueError(f"{self.family.name} has the labels {wanted}: give exactly these, not {', '.join(given) or 'none'}")
        return labels

    def _number(self, value: float) -> float:
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ValueError(f"{self.family.name}: {value!r} is no number that can be counted")
        return float(value)


class Counter(Instrument):
    """A number that only grows."""

    def inc(self, amount: float = 1, /, **labels: object) -> None:
        """Count so many more. ValueError for less than 0, and for other labels than those declared."""
        if self._number(amount) < 0:
            raise ValueError(f"{self.family.name} is a counter and cannot go down: use app.gauge()")
        self._app.meter.add(self.family, self._labels(labels), amount)


class Gauge(Instrument):
    """A number that goes up and down."""

    def set(self, value: float, /, **labels: object) -> None:
        """Its value in this process from now on."""
        self._app.meter.set(self.family, self._labels(labels), self._number(value))

    def inc(self, amount: float = 1, /, **labels: object) -> None:
        """So much more than before, in this process. Less, where it is negative."""
        self._app.meter.set(self.family, self._labels(labels), self._number(amount), add=True)


class Histogram(Instrument):
    """How many values fell into which range."""

    def observe(self, value: float, /, **labels: object) -> None:
        """One more value."""
        self._app.meter.observe(self.family, self._labels(labels), self._number(value))


def check(family: Family) -> Family:
    """ValueError for what Prometheus would refuse."""
    for text, what in ((family.name, "a metric"), *((label, "a label") for label in family.labels)):
        if not isinstance(text, str) or not NAME.fullmatch(text) or text.startswith("__"):
            raise ValueError(f"{text!r} cannot be the name of {what}: letters, digits and _, up to 128, no digit first")
    if family.name.startswith("pgqueue_"):
        raise ValueError(f"{family.name}: names that begin with pgqueue_ are pgqueue's own")
    if len(set(family.labels)) != len(family.labels) or len(family.labels) > MOST_LABELS or "le" in family.labels:
        raise ValueError(f"{family.name}: up to {MOST_LABELS} labels with different names, none of them 'le'")
    if (family.kind == "counter") != family.name.endswith("_total"):
        raise ValueError(f"{family.name}: the name of a counter ends with _total, and no other one does")
    if not isinstance(family.help, str) or not family.help or len(family.help) > 500:
        raise ValueError(f"{family.name}: say in a sentence what it is")
    if family.combine not in ("sum", "max", "min", "latest"):
        raise ValueError(f"{family.name}: combine={family.combine!r}: sum, max, min or latest")
    rising = all(math.isfinite(b) for b in family.buckets) and list(family.buckets) == sorted(set(family.buckets))
    if family.kind == "histogram" and not (rising and 1 <= len(family.buckets) <= MOST_BUCKETS):
        raise ValueError(f"{family.name}: buckets={family.buckets!r}: 1 to {MOST_BUCKETS} rising numbers")
    return family
