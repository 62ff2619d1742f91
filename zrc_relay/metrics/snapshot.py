"""All numbers of one process at one moment, as plain data (R7.2).

Theory of operation
-------------------
A ``Snapshot`` holds nothing but strings and numbers, so it can travel between processes, and several add up to one: counters and
most gauges by addition, some gauges by their largest or smallest value. Which, the metric says (``Merge``). What a metric is
called, means and may be labelled with is in the ``catalogue`` and not in here.

The key of a value is the value of its metric's one label, empty for a metric without one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum, unique
from functools import reduce
from typing import Final

Values = Mapping[str, float]
"""The values of one metric, by its label's value."""


@unique
class Merge(Enum):
    """How the values of several processes become one."""

    SUM = "sum"
    LARGEST = "largest"
    SMALLEST = "smallest"


_FUNCTIONS: Final[Mapping[Merge, Callable[[float, float], float]]] = {
    Merge.SUM: lambda one, other: one + other, Merge.LARGEST: max, Merge.SMALLEST: min,
}


@dataclass(frozen=True, slots=True)
class Buckets:
    """A histogram: ``counts[i]`` values up to ``bounds[i]`` and above the bound before, the last above all; and their sum."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    sum: float

    def plus(self, other: Buckets) -> Buckets:
        """Both together; ``ValueError`` when their bounds differ."""
        if self.bounds != other.bounds:
            msg = "histograms with different bounds cannot be added"
            raise ValueError(msg)
        counts = tuple(one + another for one, another in zip(self.counts, other.counts, strict=True))
        return Buckets(self.bounds, counts, self.sum + other.sum)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The values of counters and gauges, the histograms, and facts in words, each by the name of the metric."""

    values: Mapping[str, Values] = field(default_factory=dict)
    histograms: Mapping[str, Buckets] = field(default_factory=dict)
    facts: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def merge(snapshots: Iterable[Snapshot], rules: Mapping[str, Merge]) -> Snapshot:
    """What several processes are together. ``rules`` says how each metric merges; facts are those of the first that has them.

    ``ValueError`` for histograms that do not go together.
    """
    return reduce(lambda one, other: _plus(one, other, rules), snapshots, Snapshot())


def _plus(one: Snapshot, other: Snapshot, rules: Mapping[str, Merge]) -> Snapshot:
    values = dict(one.values)
    for name, more in other.values.items():
        known = values.get(name, {})
        both = _FUNCTIONS[rules[name]]
        added = {label: both(known[label], value) if label in known else value for label, value in more.items()}
        values[name] = {**known, **added}
    histograms = dict(one.histograms)
    for name, buckets in other.histograms.items():
        before = histograms.get(name)
        histograms[name] = buckets if before is None else before.plus(buckets)
    return Snapshot(values, histograms, {**other.facts, **one.facts})
