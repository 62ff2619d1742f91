"""``python -m bench.run``: measures, and writes a page, plots and JSON.

Subjects of a scenario take turns, A, B, A, B ..., for as many rounds as are asked for and one before them that is not kept; some
scenarios want more of them, or fewer. Their relays run from the first round to the last, idle while another is
measured; where a scenario wants it, each measurement has a relay of its own.

What cannot be measured on this machine, because a program is missing or our relay does not offer it, is said and not fatal. The
exit status is 0 when something was measured and nothing failed that should have worked.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Final, Protocol

from bench import build, generator, machine, report, turn
from bench.build import BUILD, ROOT, Missing
from bench.generator import MeasurementFailed, NotOffered
from bench.outcome import METRICS, NOT_OFFERED, Outcome, Sample
from bench.scenarios import SCENARIOS, Kind, Load, Scenario, Subject
from bench.systems import COTURN, SYSTEMS, Running, System, Workshop
from zrc_relay.cli.processes import ChildFailed

ROUNDS: Final = 5
SECONDS: Final = 5.0
WARM_UP: Final = 1.0
QUICK_SECONDS: Final = 1.0
QUICK_WARM_UP: Final = 0.3
PAUSE: Final = 0.3
"""Seconds between two measurements, for what relay and kernel still have to do for the one before."""
CALIBRATION: Final = 2.0
"""Seconds at least for which capacity is measured before a half of it is asked for."""


def _tell(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


@dataclass(frozen=True, slots=True)
class Settings:
    """How to measure: rounds that are kept, if a scenario does not want another number of them, and times in seconds."""

    rounds: int
    seconds: float
    warm_up: float

    def all_rounds(self, scenario: Scenario) -> int:
        """With the round that is not kept; a single round is kept."""
        rounds = scenario.rounds(self.rounds)
        return rounds + 1 if rounds > 1 else 1


class Measure(Protocol):
    """Measures a relay under a load once; ``MeasurementFailed`` when that does not work. Times are in seconds."""

    def __call__(self, running: Running, load: Load, *, warm_up: float, seconds: float) -> Sample:
        """Measure."""
        ...


class Bench:
    """Runs scenarios. ``measures`` are the ways to measure systems other than by the load generator."""

    def __init__(
        self,
        workshop: Workshop,
        settings: Settings,
        *,
        systems: Mapping[str, System] = SYSTEMS,
        measure: Measure = generator.measure,
        measures: Mapping[str, Measure] = MappingProxyType({COTURN: turn.measure}),
        pause: float = PAUSE,
        tell: Callable[[str], None] = _tell,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._workshop = workshop
        self._settings = settings
        self._systems = systems
        self._measure_one = measure
        self._measures = measures
        self._pause = pause
        self._tell = tell
        self._now = now
        self.unavailable: dict[str, str] = {}
        """Systems that cannot be measured here, and why."""

    def run(self, scenario: Scenario) -> Outcome:
        """Measure all subjects of a scenario, and tell how long that took, which includes building what it needs."""
        began = self._now()
        outcome = Outcome(scenario)
        self._run(outcome)
        outcome.elapsed = self._now() - began
        self._tell(f"  {scenario.name}: took {outcome.elapsed:.0f} s")
        return outcome

    def _run(self, outcome: Outcome) -> None:
        scenario = outcome.scenario
        all_rounds = self._settings.all_rounds(scenario)
        subjects = [subject for subject in scenario.subjects if self._is_there(subject, outcome)]
        with contextlib.ExitStack() as relays:
            running: dict[str, Running] = {}
            if not scenario.is_fresh:
                for system in dict.fromkeys(subject.system for subject in subjects):
                    with self._noted(outcome, *[subject.label for subject in subjects if subject.system == system]):
                        running[system] = relays.enter_context(self._systems[system].start(self._workshop))
            if scenario.half_of_capacity is not None:
                subjects = self._at_half(scenario, subjects, running, outcome)
            for number in range(all_rounds):
                for subject in subjects:
                    if subject.label in outcome.failures:
                        continue
                    with self._noted(outcome, subject.label):
                        sample = self._measure(subject, running.get(subject.system))
                        self._say(scenario, subject, sample)
                        if number or all_rounds == 1:
                            outcome.samples.setdefault(subject.label, []).append(sample)
                    time.sleep(self._pause)

    def _is_there(self, subject: Subject, outcome: Outcome) -> bool:
        system = subject.system
        why = self.unavailable.get(system) or self._systems[system].why_not()
        if why is not None:
            if system not in self.unavailable:
                self._tell(f"{system}: {why}")
            self.unavailable[system] = outcome.failures[subject.label] = why
        return why is None

    def _measure(self, subject: Subject, running: Running | None) -> Sample:
        settings = self._settings
        measure = self._measures.get(subject.system, self._measure_one)
        with contextlib.ExitStack() as stack:
            relay = running or stack.enter_context(self._systems[subject.system].start(self._workshop))
            return measure(relay, subject.load, warm_up=settings.warm_up, seconds=settings.seconds)

    def _at_half(
        self, scenario: Scenario, subjects: list[Subject], running: dict[str, Running], outcome: Outcome
    ) -> list[Subject]:
        """The subjects at half of what one system carries, which is found out first."""
        for subject in subjects:
            if subject.system != scenario.half_of_capacity or subject.system not in running:
                continue
            with self._noted(outcome, *[each.label for each in subjects]):
                found = self._measure_one(
                    running[subject.system], replace(subject.load, kind=Kind.DATAGRAMS),
                    warm_up=self._settings.warm_up, seconds=max(CALIBRATION, self._settings.seconds),
                )
                outcome.rate = round((found.rate or 0) / 2)
        rate = outcome.rate
        for subject in subjects if not rate else ():
            outcome.failures.setdefault(subject.label, f"the capacity of {scenario.half_of_capacity} is not known")
        return [replace(each, load=replace(each.load, rate=rate)) for each in subjects] if rate else []

    @contextlib.contextmanager
    def _noted(self, outcome: Outcome, *labels: str) -> Iterator[None]:
        """Failures of what is measured become remarks on these subjects, which are not measured again."""
        try:
            yield
        except (MeasurementFailed, ChildFailed, Missing) as error:
            why = f"{error}\n{error.child.tail}" if isinstance(error, ChildFailed) else str(error)
            for label in labels:
                outcome.failures[label] = (NOT_OFFERED if isinstance(error, NotOffered) else "") + why
            self._tell(f"  {outcome.scenario.name}: {', '.join(labels)}: {why}")

    def _say(self, scenario: Scenario, subject: Subject, sample: Sample) -> None:
        numbers = [f"{metric} {value:.4g}" for metric in METRICS if (value := getattr(sample, metric)) is not None]
        numbers += [f"{what}: {count}" for what, count in sample.remarks.items()]
        self._tell(f"  {scenario.name}: {subject.label}: {', '.join(numbers)}")


def choose(names: Sequence[str], systems: Sequence[str], *, quick: bool) -> list[Scenario]:
    """The scenarios that are asked for, by patterns for their names, with those systems only.

    ``ValueError`` for names that nothing has.
    """
    unknown = [name for name in names if not any(fnmatch.fnmatch(each.name, name) for each in SCENARIOS)]
    unknown += [system for system in systems if system not in SYSTEMS]
    if unknown:
        msg = f"there is no {', '.join(unknown)}; there are {', '.join(each.name for each in SCENARIOS)}, of {', '.join(SYSTEMS)}"
        raise ValueError(msg)
    chosen = [each for each in SCENARIOS if any(fnmatch.fnmatch(each.name, name) for name in names)] if names else [
        each for each in SCENARIOS if each.is_quick or not quick
    ]
    if quick:
        chosen = [each.quick() for each in chosen]
    if systems:
        chosen = [
            replace(each, subjects=tuple(subject for subject in each.subjects if subject.system in systems)) for each in chosen
        ]
    return [each for each in chosen if each.subjects]


def main() -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.run", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a smoke test of two minutes: one short round, fewer pairs")
    parser.add_argument("--only", nargs="+", default=[], metavar="SCENARIO", help="these; patterns like 'paced-*' will do")
    parser.add_argument("--systems", nargs="+", default=[], metavar="SYSTEM", help="these systems")
    parser.add_argument("--rounds", type=int, help=f"rounds that are kept ({ROUNDS}; quick: 1)")
    parser.add_argument("--seconds", type=float, help=f"of each measurement ({SECONDS:g}; quick: {QUICK_SECONDS:g})")
    parser.add_argument("--output", type=Path, help="where performance.md and performance/ go (docs; quick: bench/.build/quick)")
    parser.add_argument("--list", action="store_true", help="say what there is to measure")
    arguments = parser.parse_args()
    try:
        scenarios = choose(arguments.only, arguments.systems, quick=arguments.quick)
    except ValueError as error:
        parser.error(str(error))
    if arguments.list:
        for scenario in scenarios:
            _tell(f"{scenario.name:14} {scenario.title}: {', '.join(subject.label for subject in scenario.subjects)}")
        return 0
    settings = Settings(
        rounds=arguments.rounds or (1 if arguments.quick else ROUNDS),
        seconds=arguments.seconds or (QUICK_SECONDS if arguments.quick else SECONDS),
        warm_up=QUICK_WARM_UP if arguments.quick else WARM_UP,
    )
    output = arguments.output or (BUILD / "quick" if arguments.quick else ROOT / "docs")
    try:
        build.load_generator()
    except Missing as missing:
        _tell(f"nothing can be measured without the load generator: {missing}")
        return 1
    outcomes = []
    described = machine.describe()
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        bench = Bench(Workshop(Path(directory)), settings)
        for scenario in scenarios:
            _tell(f"{scenario.name}: {scenario.title}")
            outcomes.append(bench.run(scenario))
    made = report.Report(outcomes, described, bench.unavailable, rounds=settings.rounds, seconds=settings.seconds)
    for path in made.write(output):
        _tell(f"wrote {path}")
    _tell(f"measured for {sum(outcome.elapsed for outcome in outcomes) / 60:.1f} minutes")
    _tell(made.summary())
    return 0 if made.is_sound else 1


if __name__ == "__main__":
    sys.exit(main())
