"""What was found: samples, their medians and spreads, and ratios between subjects.

Each round measures every subject once, so the samples of one round belong together: a ratio is made of the two samples of a
round, and what is reported is the median of these ratios. The first round is for warming up and is not kept, if there are more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from statistics import median
from typing import Any, Final

from bench.budgets import Budget, How
from bench.scenarios import Kind, Scenario

NOT_OFFERED: Final = "not offered: "
"""How the reason begins that a subject was not measured, when its relay does not do what was to be measured."""
WRONG: Final = "and are not what was sent"
"""In a remark: a relay that does this is broken, whatever it costs."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement; None is what was not measured or makes no sense here.

    ``cost`` is the relay's processor time in microseconds, user and system: for each datagram delivered and verified, for each
    kilobyte of a stream, for each handshake. ``rate`` counts the same things in a second.
    """

    cost: float | None = None
    rate: float | None = None
    loss: float | None = None
    """Of what was sent, the part that did not arrive."""
    per_wakeup: float | None = None
    """Datagrams delivered for each time that a thread of the relay had nothing to do and was woken."""
    train: float | None = None
    """Packets that one receive call of the fast client brought: how the relay sends."""
    load_cost: float | None = None
    """Processor time of the load generator, as ``cost``."""
    p50: float | None = None
    """Latency in milliseconds, as are the next two."""
    p90: float | None = None
    p99: float | None = None
    memory: float | None = None
    """Kilobytes that each pair added to the relay's resident memory."""
    remarks: Mapping[str, int] = field(default_factory=dict)
    """What was not as it should be, and how often: wrong payloads, connections that ended, what the relay says it dropped."""


METRICS: Final[tuple[str, ...]] = tuple(each.name for each in fields(Sample) if each.name != "remarks")


@dataclass(frozen=True, slots=True)
class Figure:
    """The median of some samples, and the smallest and the largest of them."""

    middle: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Figure:
        """``ValueError`` when there are none."""
        if not values:
            msg = "nothing was measured"
            raise ValueError(msg)
        return cls(median(values), min(values), max(values))


@dataclass(slots=True)
class Outcome:
    """What one scenario found. ``failures`` says for a subject why it has no samples, or no more."""

    scenario: Scenario
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    rate: float | None = None
    """Payloads a second for all, where that was found out first (half of capacity)."""
    elapsed: float = 0.0
    """Seconds that it took to find all this."""

    def figure(self, label: str, metric: str) -> Figure | None:
        """Of one subject; None when it has no such number."""
        values = [value for sample in self.samples.get(label, ()) if (value := getattr(sample, metric)) is not None]
        return Figure.of(values) if values else None

    @property
    def rounds(self) -> int:
        """How many rounds were kept, of the subject that had the most."""
        return max(map(len, self.samples.values()), default=0)

    def remarks(self, label: str) -> Counter[str]:
        """All that was remarked about a subject, over all rounds."""
        total: Counter[str] = Counter()
        for sample in self.samples.get(label, ()):
            total.update(sample.remarks)
        return total

    def compare(self, budget: Budget) -> Figure | None:
        """What ``budget`` asks for; None when one of its subjects was not measured."""
        if budget.against is None:
            return self.figure(budget.of, budget.metric)
        pairs = zip(self.samples.get(budget.of, ()), self.samples.get(budget.against, ()), strict=False)
        values = [(getattr(mine, budget.metric), getattr(theirs, budget.metric)) for mine, theirs in pairs]
        combine = _COMBINE[budget.how]
        found = [combine(mine, theirs) for mine, theirs in values if mine is not None and theirs]
        return Figure.of(found) if found else None

    def lossy(self, budget: Budget) -> list[str]:
        """The subjects of ``budget`` that lost too much for it."""
        losses = {label: self.figure(label, "loss") for label in (budget.of, budget.against) if label}
        return [
            label for label, loss in losses.items()
            if loss is not None and budget.most_loss is not None and loss.middle >= budget.most_loss
        ]

    def as_dict(self) -> dict[str, Any]:
        """For JSON: every sample, and the medians."""
        return {
            "name": self.scenario.name,
            "title": self.scenario.title,
            "kind": self.scenario.kind.value,
            "rate": self.rate,
            "elapsed": round(self.elapsed, 1),
            "subjects": {
                subject.label: {
                    "system": subject.system,
                    "pairs": subject.load.pairs,
                    "size": subject.load.size,
                    "rate": self.rate or subject.load.rate,
                    "train": subject.load.train,
                    "both": subject.load.both,
                    "client": subject.load.engine.value,
                    "failure": self.failures.get(subject.label),
                    "median": {
                        metric: figure.middle for metric in METRICS if (figure := self.figure(subject.label, metric)) is not None
                    },
                    "samples": [_as_dict(sample) for sample in self.samples.get(subject.label, ())],
                }
                for subject in self.scenario.subjects
            },
        }


_COMBINE: Final[dict[How, Callable[[float, float], float]]] = {
    How.RATIO: lambda mine, theirs: mine / theirs,
    How.DIFFERENCE: lambda mine, theirs: mine - theirs,
}


def _as_dict(sample: Sample) -> dict[str, Any]:
    found = {metric: value for metric in METRICS if (value := getattr(sample, metric)) is not None}
    return {**found, "remarks": dict(sample.remarks)} if sample.remarks else found


COST_UNITS: Final = {
    Kind.DATAGRAMS: "datagram", Kind.CHANNELS: "datagram", Kind.LATENCY: "datagram", Kind.MEMORY: "datagram",
    Kind.STREAMS: "kB", Kind.HANDSHAKES: "handshake",
}
"""What ``cost`` is for each of."""
