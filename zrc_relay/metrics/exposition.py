"""The text that scrapers read: Prometheus' format and OpenMetrics, whichever they ask for (R7.2).

Theory of operation
-------------------
``Exposition`` has a registry of its own, with a collector that asks for a ``Snapshot`` when it is scraped, and with
prometheus-client's collectors for the process and its garbage collector. Nothing is registered anywhere else, so that several
relays in one process do not know of each other. Where the snapshot comes from is not known here: of this process, or of several
that were added up, which ``MergedExposition`` asks first. A metric of which the snapshot says nothing is not there: nothing that
forwards has ever answered.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import Final

from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector
from prometheus_client.exposition import generate_latest as generate_text
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from zrc_relay.metrics.catalogue import METRICS, RULES, Kind, Metric
from zrc_relay.metrics.snapshot import Buckets, Snapshot, merge

TEXT: Final = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"
_OPENMETRICS_VERSIONS: Final = ("1.0.0", "0.0.1", "")
"""Those that the same text is right for; 0.0.1 is what Prometheus called it before it had a number."""
MAX_ACCEPT: Final = 32
"""Entries of an Accept header that are looked at; scrapers send five."""


class Exposition:
    """Renders what ``snapshot`` gives. Each instance is on its own."""

    def __init__(self, snapshot: Callable[[], Snapshot]) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(_Collector(snapshot))
        ProcessCollector(registry=self.registry)
        GCCollector(registry=self.registry)

    def render(self, accept: str) -> tuple[bytes, str]:
        """The text in the format that the header ``accept`` prefers, and its content type."""
        if prefers_openmetrics(accept):
            return generate_openmetrics(self.registry), OPENMETRICS
        return generate_text(self.registry), TEXT


class MergedExposition:
    """Renders what ``front`` tells of this process and ``workers`` of those that forward."""

    def __init__(self, front: Callable[[], Snapshot], workers: Callable[[], Awaitable[Snapshot]]) -> None:
        self._front = front
        self._workers = workers
        self._together = Snapshot()
        self._exposition = Exposition(lambda: self._together)

    async def render(self, accept: str) -> tuple[bytes, str]:
        """See ``Exposition``; the workers are asked first."""
        workers = await self._workers()
        self._together = merge((self._front(), workers), RULES)
        return self._exposition.render(accept)


def prefers_openmetrics(accept: str) -> bool:
    """Whether an Accept header (RFC 9110 §12.5.1) would rather have OpenMetrics 1.0 than Prometheus' text.

    Without a word about either, and for whatever is not understood, text: everything reads that.
    """
    openmetrics = text = 0.0
    for entry in accept.split(",")[:MAX_ACCEPT]:
        media_type, *parameters = (part.strip() for part in entry.split(";"))
        given = dict(_pair(parameter) for parameter in parameters)
        quality = _quality(given.get("q", "1"))
        match media_type.lower():
            case "application/openmetrics-text" if given.get("version", "") in _OPENMETRICS_VERSIONS:
                openmetrics = max(openmetrics, quality)
            case "text/plain" if given.get("version", "0.0.4") == "0.0.4":
                text = max(text, quality)
    return openmetrics > 0 and openmetrics >= text


def _pair(parameter: str) -> tuple[str, str]:
    name, _, value = parameter.partition("=")
    return name.strip().lower(), value.strip().strip('"')


def _quality(text: str) -> float:
    try:
        quality = float(text)
    except ValueError:
        return 0.0
    return quality if 0 <= quality <= 1 else 0.0


class _Collector(Collector):
    def __init__(self, snapshot: Callable[[], Snapshot]) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Family]:
        snapshot = self._snapshot()
        for metric in METRICS:
            if metric.name in snapshot.values or metric.name in snapshot.histograms or metric.name in snapshot.facts:
                yield _family(metric, snapshot)


def _family(metric: Metric, snapshot: Snapshot) -> Family:
    name, about = metric.name, metric.help
    if metric.kind is Kind.INFO:
        return InfoMetricFamily(name.removesuffix("_info"), about, value=dict(snapshot.facts[name]))
    if metric.kind is Kind.HISTOGRAM:
        buckets = snapshot.histograms[name]
        return HistogramMetricFamily(name, about, buckets=_cumulative(buckets), sum_value=buckets.sum)
    make = CounterMetricFamily if metric.kind is Kind.COUNTER else GaugeMetricFamily
    family = make(name, about, labels=[metric.label] if metric.label else [])
    for label, value in snapshot.values[name].items():
        family.add_metric([label] if metric.label else [], value)
    return family


def _cumulative(buckets: Buckets) -> list[tuple[str, float]]:
    """The way the formats have it: each bucket holds all that is below its bound."""
    total = 0
    found: list[tuple[str, float]] = []
    for bound, count in zip((*buckets.bounds, float("inf")), buckets.counts, strict=True):
        total += count
        found.append((floatToGoString(bound), total))
    return found
