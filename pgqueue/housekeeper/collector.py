"""Metrics in the two formats that Prometheus reads, made by ``prometheus_client`` from our own memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector, CollectorRegistry

from pgqueue.housekeeper.http import Answer
from pgqueue.metrics import Family, Values

Source = Callable[[], Values]


class Collected(Collector):
    """Asks several sources, each of which knows other metrics."""

    def __init__(self, sources: Iterable[Source]) -> None:
        self._sources = tuple(sources)

    def collect(self) -> Iterator[Metric]:
        families = {family.name: (family, values) for source in self._sources for family, values in source().items()}
        for name in sorted(families):
            yield _metric(*families[name])


def _metric(family: Family, values: Mapping[tuple[str, ...], list[float]]) -> Metric:
    if family.kind == "histogram":
        histogram = HistogramMetricFamily(family.name, family.help, labels=family.labels)
        bounds = [*map(str, family.buckets), "+Inf"]
        for labels, numbers in sorted(values.items()):
            histogram.add_metric(labels, list(zip(bounds, accumulate(numbers[:-1]), strict=True)), sum_value=numbers[-1])
        return histogram
    kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
    metric = kind(family.name, family.help, labels=family.labels)
    for labels, numbers in sorted(values.items()):
        metric.add_metric(labels, numbers[0])
    return metric


class MetricsPage:
    """The page ``/metrics``."""

    def __init__(self, *sources: Source) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(Collected(sources))

    def __call__(self, accept: str) -> Answer:
        encode, content_type = choose_encoder(accept)
        return Answer(200, encode(self._registry), content_type)
