"""The page: budgets first, then every scenario with its table and plot; the same as JSON beside it.

``Report.write`` makes ``performance.md`` and ``performance/`` (``results.json`` and the plots) in a directory.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Final

from bench import plots
from bench.budgets import BUDGETS, MOST_LOSS, Budget, How
from bench.outcome import COST_UNITS, NOT_OFFERED, WRONG, Figure, Outcome
from bench.plots import Point, number
from bench.scenarios import GROWTH_RATE, HALF_A_CORE, RATES, SATURATION, Kind, Subject, growth, paced
from bench.systems import GENERAL, OURS, SETTINGS_OF_OURS, SOURCE
from zrc_relay.config import SETTINGS

INTRODUCTION: Final = """\
# What it costs

Written by `make bench` on {date}; do not edit. {rounds} rounds of {seconds:g} s each.

Every number is the median of the rounds, with the smallest and the largest behind it. Cost is the processor time of the
relay's process, user and system, for each datagram that was delivered and found to be right, byte by byte; what was lost stands
beside it. Relays that are compared were measured in the same run, in turns, under the same load; a ratio is the median of the
ratios within each round. A table with another number of rounds says so. Unless a heading says otherwise: 4 pairs of clients,
payloads of 1100 bytes in one direction, packets sent singly by a quic-go client, all over loopback.

The quic-go, quinn and stock aioquic relays are programs of some forty lines under `bench/peers/` that pair connections two by
two and pass their datagrams on: no tokens, no limits, no quotas. coturn forwards plain UDP under its own load generator and does
not encrypt; each of its messages passes the server twice and counts twice.

`{ours}` is this relay as `pip install .` installs it, with the modules that a packet goes through [compiled](compiled.md);
`{source}` is the same source without that; `{general}` is compiled as well and leaves every packet to aioquic. Each has its
default settings but for what its name says, a device in the tier `unlimited`, and {settings}.
"""
JUDGING: Final = """\
What must be kept is meant for the relay as it is installed. Rows that end in "not compiled" are about the same source without
a compiler: budget and verdict stand there in parentheses, to show how far Python alone gets.

The stock aioquic relay handles one event at a time in a Twisted DatagramProtocol. This relay with `fast_path = false` keeps its
batched I/O and so is cheaper than that: the rows against it have no budget, and say what the short way itself gains.
"""
READING: Final = """\
*per wake-up*: datagrams for each time that a thread of the relay had nothing to do and was woken, which is its batch size
while it has time to sleep. *train*: packets that arrived at the fast client with one receive call, which is how many the relay
sent with one. *load's cost*: processor time of the load generator for each datagram. At saturation coturn's client floods it, and
what is too much is lost; the others' clients have congestion control or wait for what they have sent.
"""
BUSY: Final = 0.5
"""A load of the machine before the start from which on the page says that something else was running."""


class Verdict(Enum):
    """How a budget was kept."""

    AIM = "aim reached"
    MUST = "kept"
    MISSED = "MISSED"
    UNKNOWN = "not measured"
    INFORMATION = "for information"


@dataclass(frozen=True, slots=True)
class Row:
    """A budget and what was found."""

    budget: Budget
    figure: Figure | None
    verdict: Verdict
    why: str = ""

    @property
    def cells(self) -> list[str]:
        """What is wanted, found and thought of it."""
        budget, figure = self.budget, self.figure
        found = "-" if figure is None else f"{amount(figure.middle, budget)} ({number(figure.low)} to {number(figure.high)})"
        verdict = self.verdict.value + (f": {self.why}" if self.why else "")
        wanted = ["-" if limit is None else f"≤ {amount(limit, budget)}" for limit in (budget.must, budget.aim)]
        if budget.is_of_source:
            wanted, verdict = [f"({each})" for each in wanted], f"({verdict})"
        return [budget.what, *wanted, found, verdict]


def amount(value: float, budget: Budget) -> str:
    """A number with the unit of its budget."""
    return f"{number(value)} x" if budget.how is How.RATIO else f"{number(value)} {budget.unit}"


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a scenario's table; it is there when a subject has the number."""

    head: str
    metric: str
    show: Callable[[Figure], str]


def _spread(figure: Figure) -> str:
    return f"{number(figure.middle)} ({number(figure.low)} to {number(figure.high)})"


def _middle(figure: Figure) -> str:
    return number(figure.middle)


def _percent(figure: Figure) -> str:
    return f"{number(100 * figure.middle)} %"


_COLUMNS: Final = (
    Column("CPU, µs a {unit}", "cost", _spread),
    Column("{unit}s a second", "rate", _middle),
    Column("lost", "loss", _percent),
    Column("per wake-up", "per_wakeup", _middle),
    Column("train", "train", _middle),
    Column("load's cost, µs", "load_cost", _middle),
)
_LATENCY: Final = (
    Column("p50, ms", "p50", _spread), Column("p90, ms", "p90", _middle), Column("p99, ms", "p99", _spread),
)
_MEMORY: Final = (Column("kB a pair", "memory", _spread),)


class Report:
    """What was found, in words."""

    def __init__(
        self,
        outcomes: Sequence[Outcome],
        machine: Mapping[str, str],
        unavailable: Mapping[str, str],
        *,
        rounds: int,
        seconds: float,
    ) -> None:
        self._outcomes = {outcome.scenario.name: outcome for outcome in outcomes}
        self._machine = machine
        self._unavailable = unavailable
        self._rounds = rounds
        self._seconds = seconds
        self._date = dt.datetime.now(dt.UTC).date()

    @property
    def is_sound(self) -> bool:
        """Whether something was measured, all that should have been was, and nothing arrived that was not sent."""
        outcomes = self._outcomes.values()
        failed = [
            why for outcome in outcomes for subject in outcome.scenario.subjects
            if (why := outcome.failures.get(subject.label)) and not self._is_excused(subject.system, why)
        ]
        wrong = any(what.endswith(WRONG) for outcome in outcomes for label in outcome.samples for what in outcome.remarks(label))
        return not failed and not wrong and any(outcome.samples for outcome in outcomes)

    def _is_excused(self, system: str, why: str) -> bool:
        """Whether ``system`` is missing for a reason that this machine has. What is measured here is never excused."""
        return (system in self._unavailable and system != OURS) or why.startswith(NOT_OFFERED)

    def rows(self) -> list[Row]:
        """The budgets."""
        return [self._row(budget) for budget in BUDGETS]

    def _row(self, budget: Budget) -> Row:
        outcome = self._outcomes.get(budget.scenario)
        if outcome is None:
            return Row(budget, None, Verdict.UNKNOWN, f"the scenario {budget.scenario} did not run")
        lossy = outcome.lossy(budget)
        if lossy:
            return Row(budget, None, Verdict.UNKNOWN, f"too much was lost by {' and '.join(lossy)}")
        figure = outcome.compare(budget)
        if figure is None:
            reasons = [outcome.failures.get(label, "") for label in (budget.of, budget.against) if label]
            return Row(budget, None, Verdict.UNKNOWN, " ".join(filter(None, reasons)) or "one of the two was left out")
        if budget.must is None or budget.aim is None:
            return Row(budget, figure, Verdict.INFORMATION)
        if figure.middle <= budget.aim:
            return Row(budget, figure, Verdict.AIM)
        return Row(budget, figure, Verdict.MUST if figure.middle <= budget.must else Verdict.MISSED)

    def summary(self) -> str:
        """The budgets, for a terminal."""
        rows = [row.cells for row in self.rows()]
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        return "\n".join(
            "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[4]]) for row in rows
        )

    def write(self, directory: Path) -> list[Path]:
        """Write page, plots and JSON; returns what was written. Plots of an earlier run go."""
        beside = directory / "performance"
        beside.mkdir(parents=True, exist_ok=True)
        for old in beside.glob("*.svg"):
            old.unlink()
        drawn = {f"{name}.svg": text for name, text in self._plots().items()}
        files = {
            directory / "performance.md": self.markdown(drawn),
            beside / "results.json": json.dumps(self.as_dict(), indent=1, ensure_ascii=False) + "\n",
            **{beside / name: text for name, text in drawn.items()},
        }
        for path, text in files.items():
            path.write_text(text, encoding="utf-8")
        return list(files)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "date": self._date.isoformat(),
            "rounds": self._rounds,
            "seconds": self._seconds,
            "machine": dict(self._machine),
            "unavailable": dict(self._unavailable),
            "budgets": [
                {
                    "what": row.budget.what, "must": row.budget.must, "aim": row.budget.aim, "unit": row.budget.unit,
                    "found": None if row.figure is None else [row.figure.middle, row.figure.low, row.figure.high],
                    "verdict": row.verdict.value, "why": row.why, "installed": not row.budget.is_of_source,
                }
                for row in self.rows()
            ],
            "scenarios": [outcome.as_dict() for outcome in self._outcomes.values()],
        }

    def markdown(self, drawn: Iterable[str]) -> str:
        """The page; ``drawn`` are the names of the plots that there are."""
        settings = ", ".join(f"`{name}` = {text}" for name, text in SETTINGS_OF_OURS.items() if name in SETTINGS)
        parts = [
            INTRODUCTION.format(
                date=self._date.isoformat(), rounds=self._rounds, seconds=self._seconds, settings=settings,
                ours=OURS, source=SOURCE, general=GENERAL,
            )
        ]
        parts += ["## Budgets\n", JUDGING, _table(["what", "must", "aim", "measured", ""], [row.cells for row in self.rows()])]
        if self._unavailable:
            parts += ["## What could not be measured here\n"]
            parts += [*(f"- {name}: {_one_line(why)}" for name, why in self._unavailable.items()), ""]
        names = set(drawn)
        parts += [_image(name) for name in ("rates.svg", "growth.svg") if name in names]
        parts += ["## Scenarios\n", READING]
        for outcome in self._outcomes.values():
            parts += self._section(outcome, names)
        parts += ["## The machine\n", _table(["", ""], [[name, value] for name, value in self._machine.items()])]
        if float(self._machine.get("load before", 0)) > BUSY:
            parts.append("Something else was running on the machine when this was measured.\n")
        return "\n".join(parts)

    def _section(self, outcome: Outcome, drawn: set[str]) -> list[str]:
        scenario = outcome.scenario
        unit = COST_UNITS[scenario.kind]
        columns = [*_COLUMNS]
        if scenario.kind is Kind.LATENCY:
            columns = [*_LATENCY, *_COLUMNS]
        elif scenario.kind is Kind.MEMORY:
            columns = [*_MEMORY, *_COLUMNS]
        labels = [subject.label for subject in scenario.subjects if subject.label in outcome.samples]
        columns = [each for each in columns if any(outcome.figure(label, each.metric) for label in labels)]
        rows = []
        for label in labels:
            figures = [outcome.figure(label, each.metric) for each in columns]
            shown = zip(columns, figures, strict=True)
            rows.append([label, *("-" if figure is None else column.show(figure) for column, figure in shown)])
        title = scenario.title + (f" ({outcome.rate:,.0f} datagrams a second)" if outcome.rate else "")
        parts = [f"### {title}\n", *([scenario.note + "\n"] if scenario.note else [])]
        if rows and outcome.rounds != self._rounds:
            parts.append(f"Rounds: {outcome.rounds}.\n")
        if rows:
            parts.append(_table(["", *(each.head.format(unit=unit) for each in columns)], rows))
        parts += _grown(outcome)
        parts += [f"- {label}: {_one_line(why)}" for label, why in outcome.failures.items()]
        parts += [f"- {label}: {count:,} {_one_line(what)}" for label in labels for what, count in outcome.remarks(label).items()]
        if f"{scenario.name}.svg" in drawn:
            parts += ["", _image(f"{scenario.name}.svg")]
        return [*parts, ""]

    def _plots(self) -> dict[str, str]:
        found = {}
        for name, (metric, unit) in _BARS.items():
            outcome = self._outcomes.get(name)
            values = _figures(outcome, metric) if outcome is not None else {}
            if outcome is not None and values:
                found[name] = plots.bars(outcome.scenario.title, unit, values)
        by_rate = self._by_rate()
        if by_rate:
            title = "Cost against the rate that is carried"
            found["rates"] = plots.lines(title, "datagrams a second", "µs of CPU a datagram", by_rate)
        judged = self._outcomes.get(growth(GROWTH_RATE))
        by_pairs = {} if judged is None else _by_pairs(judged)
        if judged is not None and by_pairs:
            found["growth"] = plots.lines(judged.scenario.title, "pairs", "µs of CPU a datagram", by_pairs)
        return found

    def _by_rate(self) -> dict[str, list[Point]]:
        lines: dict[str, list[Point]] = {}
        for name in [*(paced(rate) for rate in sorted(RATES)), SATURATION]:
            outcome = self._outcomes.get(name)
            for subject in outcome.scenario.subjects if outcome is not None else ():
                cost, rate = (outcome.figure(subject.label, metric) for metric in ("cost", "rate")) if outcome else (None, None)
                if cost is not None and rate is not None and cost.middle > 0:
                    lines.setdefault(subject.label, []).append(Point(rate.middle, cost))
        return {label: sorted(points, key=lambda point: point.x) for label, points in lines.items() if len(points) > 1}


_BARS: Final[Mapping[str, tuple[str, str]]] = {
    SATURATION: ("cost", "µs of CPU a datagram"),
    paced(20_000): ("cost", "µs of CPU a datagram"),
    "capacity": ("rate", "datagrams a second"),
    "latency": ("p99", "ms, p99"),
    HALF_A_CORE: ("p99", "ms, p99"),
    "channels-44": ("cost", "µs of CPU a datagram"),
    "handshakes": ("cost", "µs of CPU a handshake"),
    "memory": ("memory", "kB a pair"),
}
"""Scenarios that are drawn as bars: which number, and what it is in."""


def _by_pairs(outcome: Outcome) -> dict[str, list[Point]]:
    lines: dict[str, list[Point]] = {}
    for subject in outcome.scenario.subjects:
        figure = outcome.figure(subject.label, "cost")
        if figure is not None:
            lines.setdefault(subject.system, []).append(Point(subject.load.pairs, figure))
    return {system: points for system, points in lines.items() if len(points) > 1}


def _grown(outcome: Outcome) -> list[str]:
    """What the most pairs cost against the fewest, for each system that was measured with several numbers of them."""
    systems: dict[str, list[Subject]] = {}
    for subject in outcome.scenario.subjects:
        systems.setdefault(subject.system, []).append(subject)
    lines = []
    for system, subjects in systems.items():
        few, many = (pick(subjects, key=lambda each: each.load.pairs) for pick in (min, max))
        growth_of = Budget("", outcome.scenario.name, many.label, few.label, None, None, most_loss=MOST_LOSS)
        if few.load.pairs == many.load.pairs or outcome.lossy(growth_of) or (figure := outcome.compare(growth_of)) is None:
            continue
        lines.append(f"- {system}: {many.load.pairs} pairs cost {_spread(figure)} times what {few.load.pairs} cost")
    return lines


def _figures(outcome: Outcome, metric: str) -> dict[str, Figure]:
    return {
        subject.label: figure for subject in outcome.scenario.subjects
        if (figure := outcome.figure(subject.label, metric)) is not None
    }


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_one_line(cell).replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _image(name: str) -> str:
    return f"![{name.removesuffix('.svg')}](performance/{name})\n"
