"""The benchmarks' own arithmetic, order and words, without measuring anything (``make bench`` does that)."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar
from xml.etree import ElementTree as ET

from twisted.trial.unittest import SynchronousTestCase

from bench import flame, generator, plots, turn
from bench.budgets import BUDGETS, Budget, How
from bench.generator import MeasurementFailed, NotOffered
from bench.outcome import METRICS, WRONG, Figure, Outcome, Sample
from bench.report import Report, Verdict
from bench.run import Bench, Settings, choose
from bench.scenarios import MANY, QUICK_PAIRS, SCENARIOS, Kind, Load, Scenario, Subject, pairs_label
from bench.systems import (
    AIOQUIC,
    COTURN,
    GENERAL,
    OURS,
    QUIC_GO,
    QUINN,
    SOURCE,
    SYSTEMS,
    Running,
    System,
    Workshop,
    directory_of,
)

A, B = Subject("A", "A", Load()), Subject("B", "B", Load())
SCENARIO = Scenario("some", "Some title", Kind.DATAGRAMS, (A, B))
RATIO = Budget("A against B", "some", "A", "B", 2.0, 1.0)


def outcome(*rounds: tuple[float, float], scenario: Scenario = SCENARIO) -> Outcome:
    """What costs these two subjects had in each round."""
    samples = {"A": [Sample(cost=mine) for mine, _ in rounds], "B": [Sample(cost=theirs) for _, theirs in rounds]}
    return Outcome(scenario, samples)


class StatisticsTests(SynchronousTestCase):
    """PERFORMANCE "How to measure": the median and the spread; ratios come from one run, side by side."""

    def test_the_middle_and_the_ends(self) -> None:
        self.assertEqual(Figure.of([5.0, 1.0, 2.0]), Figure(2.0, 1.0, 5.0))
        self.assertRaises(ValueError, Figure.of, [])

    def test_a_ratio_is_made_within_each_round(self) -> None:
        # The machine was half as fast in the second round: the ratio of the medians would be 2.5.
        found = outcome((10, 5), (22, 10), (10, 4)).compare(RATIO)
        self.assertEqual(found, Figure(2.2, 2.0, 2.5))

    def test_a_difference_and_a_value(self) -> None:
        measured = outcome((10, 4), (12, 4))
        self.assertEqual(measured.compare(replace(RATIO, how=How.DIFFERENCE)), Figure(7.0, 6.0, 8.0))
        self.assertEqual(measured.compare(replace(RATIO, against=None, how=How.VALUE)), Figure(11.0, 10.0, 12.0))

    def test_what_was_not_measured_gives_no_ratio(self) -> None:
        measured = outcome((10, 5))
        self.assertIsNone(measured.compare(replace(RATIO, metric="p50")))
        self.assertIsNone(measured.compare(replace(RATIO, against="C")))
        self.assertIsNone(outcome((10, 0.0)).compare(RATIO))

    def test_remarks_are_added_up(self) -> None:
        measured = Outcome(SCENARIO, {"A": [Sample(remarks={"x": 2}), Sample(remarks={"x": 3, "y": 1})]})
        self.assertEqual(measured.remarks("A"), {"x": 5, "y": 1})


class TableTests(SynchronousTestCase):
    """Issue 4: each budget is read off a scenario that measures it."""

    def test_every_budget_has_its_scenario_and_subjects(self) -> None:
        scenarios = {scenario.name: scenario for scenario in SCENARIOS}
        for budget in BUDGETS:
            labels = {subject.label for subject in scenarios[budget.scenario].subjects}
            self.assertLessEqual({budget.of, budget.against} - {None}, labels, budget.what)
            self.assertIn(budget.metric, METRICS)
            self.assertEqual(budget.aim is None, budget.must is None)
            if budget.aim is not None and budget.must is not None:
                self.assertLess(budget.aim, budget.must)

    def test_each_row_of_the_sources_has_the_budget_of_the_row_of_what_is_installed(self) -> None:
        rows = {budget.what: budget for budget in BUDGETS}
        self.assertEqual(len(rows), len(BUDGETS))
        of_source = [budget for budget in BUDGETS if budget.is_of_source]
        for budget in of_source:
            self.assertEqual(replace(budget, of=OURS, what=budget.what.removesuffix(", not compiled")),
                             rows[budget.what.removesuffix(", not compiled")])
        self.assertLessEqual(
            {"saturation", "paced-20k", "channels", "channels-20k", "latency", "latency-core", "handshakes"},
            {budget.scenario for budget in of_source},
        )

    def test_the_long_way_has_no_budget_and_the_stock_relay_has(self) -> None:
        self.assertEqual({budget.must for budget in BUDGETS if budget.against == GENERAL}, {None})
        self.assertEqual([budget.must for budget in BUDGETS if (budget.of, budget.against) == (OURS, AIOQUIC)], [0.2, 0.2, 1.4])

    def test_growth_is_judged_in_as_many_rounds_as_are_asked_for_beside_the_others(self) -> None:
        [budget] = [budget for budget in BUDGETS if budget.most_loss is not None]
        [scenario] = [scenario for scenario in SCENARIOS if scenario.name == budget.scenario]
        self.assertEqual(scenario.rounds(7), 7)
        labels = {subject.label for subject in scenario.subjects}
        self.assertLessEqual({pairs_label(pairs, rival) for rival in ("", QUIC_GO, QUINN) for pairs in (1, MANY)}, labels)

    def test_handshakes_are_compared_with_what_was_measured_right_after_them_in_many_rounds(self) -> None:
        [scenario] = [scenario for scenario in SCENARIOS if scenario.name == "handshakes"]
        self.assertEqual([subject.label for subject in scenario.subjects][:2], [OURS, AIOQUIC])
        self.assertEqual({subject.load.pairs for subject in scenario.subjects}, {1000})
        self.assertEqual((scenario.rounds(2), scenario.rounds(9)), (5, 9))

    def test_only_what_decides_no_ratio_is_measured_in_fewer_rounds(self) -> None:
        ratios = {budget.scenario for budget in BUDGETS if budget.how is not How.VALUE}
        for scenario in SCENARIOS:
            self.assertGreaterEqual(scenario.rounds(5), 5 if scenario.name in ratios else 1, scenario.name)

    def test_growth_spreads_one_rate_over_pairs_of_the_same_client(self) -> None:
        growing = [scenario for scenario in SCENARIOS if scenario.name.startswith("growth-")]
        self.assertTrue(growing)
        for scenario in growing:
            loads = {replace(subject.load, pairs=1) for subject in scenario.subjects}
            self.assertEqual(len(loads), 1, scenario.name)
            [load] = loads
            self.assertEqual(load.train, 1)
            self.assertGreater(load.rate, 0)

    def test_names_and_labels_are_used_once_and_systems_exist(self) -> None:
        names = [scenario.name for scenario in SCENARIOS]
        self.assertEqual(len(names), len(set(names)))
        for scenario in SCENARIOS:
            labels = [subject.label for subject in scenario.subjects]
            self.assertEqual(len(labels), len(set(labels)), scenario.name)
            self.assertLessEqual({subject.system for subject in scenario.subjects}, set(SYSTEMS))

    def test_relays_of_ours_that_run_at_the_same_time_have_files_of_their_own(self) -> None:
        self.assertEqual(len({directory_of(system) for system in (OURS, SOURCE, GENERAL)}), 3)

    def test_a_quick_run_has_fewer_pairs(self) -> None:
        for scenario in choose([], [], quick=True):
            self.assertTrue(scenario.subjects)
            self.assertLessEqual(max(subject.load.pairs for subject in scenario.subjects), QUICK_PAIRS)
            self.assertEqual(scenario.rounds(1), 1)

    def test_scenarios_are_chosen_by_pattern_and_system(self) -> None:
        chosen = choose(["paced-*"], [OURS, QUINN], quick=False)
        self.assertEqual([scenario.name for scenario in chosen], ["paced-20k", "paced-5k", "paced-1k"])
        self.assertEqual({subject.system for scenario in chosen for subject in scenario.subjects}, {OURS, QUINN})
        self.assertRaises(ValueError, choose, ["no-such"], [], quick=False)
        self.assertRaises(ValueError, choose, [], ["no such"], quick=False)


class Stage:
    """Systems that note when they start and stop, and a measure that notes whom it measures."""

    def __init__(self, directory: Path) -> None:
        self.log: list[str] = []
        self.told: list[str] = []
        self.loads: list[Load] = []
        self.failing: dict[str, Exception] = {}
        self.lacking: dict[str, str] = {}
        self.systems = {name: System(name, self._starter(name), partial(self.lacking.get, name)) for name in "AB"}
        self._directory = directory

    def _starter(self, name: str) -> Any:
        @contextlib.contextmanager
        def start(_: Workshop) -> Iterator[Running]:
            self.log.append(f"+{name}")
            yield Running(None, 0, [name])
            self.log.append(f"-{name}")

        return start

    def measure(self, running: Running, load: Load, *, warm_up: float, seconds: float) -> Sample:
        """A measurement, whose cost says which it was."""
        del warm_up, seconds
        [name] = running.load_arguments
        self.log.append(name)
        self.loads.append(load)
        if name in self.failing:
            raise self.failing[name]
        return Sample(cost=len(self.log), rate=9001.0)

    def bench(self, rounds: int) -> Bench:
        """Who runs scenarios on this stage."""
        return Bench(
            Workshop(self._directory), Settings(rounds, 1, 1), systems=self.systems, measure=self.measure, measures={}, pause=0,
            tell=self.told.append, now=lambda: 10.0 * len(self.log),
        )


class OrderTests(SynchronousTestCase):
    """PERFORMANCE "How to measure": A, B, A, B; the first pair is dropped."""

    def setUp(self) -> None:
        self.stage = Stage(Path(self.mktemp()))

    def test_subjects_take_turns_and_the_first_round_is_dropped(self) -> None:
        found = self.stage.bench(2).run(SCENARIO)
        self.assertEqual("".join(self.stage.log), "+A+BABABAB-B-A")
        self.assertEqual({label: [sample.cost for sample in samples] for label, samples in found.samples.items()},
                         {"A": [5, 7], "B": [6, 8]})

    def test_a_single_round_is_kept(self) -> None:
        found = self.stage.bench(1).run(SCENARIO)
        self.assertEqual([len(samples) for samples in found.samples.values()], [1, 1])

    def test_a_scenario_may_want_more_rounds_or_fewer(self) -> None:
        for least, most, kept in ((3, None, 3), (1, 1, 1), (1, 5, 2)):
            found = self.stage.bench(2).run(replace(SCENARIO, least_rounds=least, most_rounds=most))
            self.assertEqual([len(samples) for samples in found.samples.values()], [kept, kept])
            self.assertEqual(found.rounds, kept)

    def test_how_long_it_took_is_told(self) -> None:
        found = self.stage.bench(1).run(SCENARIO)
        self.assertEqual(found.elapsed, 60.0)  # ten seconds for each of: start, start, measure, measure, stop, stop
        self.assertEqual(self.stage.told[-1], "  some: took 60 s")

    def test_a_fresh_relay_for_each_measurement(self) -> None:
        self.stage.bench(1).run(replace(SCENARIO, is_fresh=True))
        self.assertEqual("".join(self.stage.log), "+AA-A+BB-B")

    def test_what_fails_is_said_and_not_tried_again(self) -> None:
        self.stage.failing["A"] = MeasurementFailed("it broke")
        found = self.stage.bench(2).run(SCENARIO)
        self.assertEqual(found.failures, {"A": "it broke"})
        self.assertEqual(self.stage.log.count("A"), 1)
        self.assertEqual(len(found.samples["B"]), 2)

    def test_what_this_machine_lacks_is_left_out(self) -> None:
        self.stage.lacking["B"] = "it is not installed"
        bench = self.stage.bench(1)
        found = bench.run(SCENARIO)
        self.assertEqual((bench.unavailable, found.failures), ({"B": "it is not installed"}, {"B": "it is not installed"}))
        self.assertEqual("".join(self.stage.log), "+AA-A")

    def test_all_get_half_of_what_one_carries(self) -> None:
        found = self.stage.bench(1).run(replace(SCENARIO, half_of_capacity="B"))
        self.assertEqual("".join(self.stage.log), "+A+BBAB-B-A")
        self.assertEqual([load.rate for load in self.stage.loads], [0, 4500, 4500])
        self.assertEqual(found.rate, 4500)

    def test_without_a_capacity_nobody_is_measured_at_half_of_it(self) -> None:
        self.stage.failing["B"] = MeasurementFailed("it broke")
        found = self.stage.bench(1).run(replace(SCENARIO, half_of_capacity="B"))
        self.assertEqual((set(found.failures), found.samples), ({"A", "B"}, {}))


class ReadingTests(SynchronousTestCase):
    """PERFORMANCE "How to measure": what was delivered and verified counts, loss stands beside it."""

    FOUND: ClassVar[dict[str, Any]] = {
        "seconds": 2.0, "sent": 1100, "delivered": 1000, "lost": 100, "wrong": 0, "twice": 0, "skipped": 0, "silent": 0,
        "relay_cpu": 0.02, "relay_wakeups": 500, "memory_before": 10_000_000, "memory_after": 10_400_000, "load_cpu": 0.05,
        "received_train": 4.0, "latency_p50_us": 250.0, "latency_p90_us": 400.0, "latency_p99_us": 1000.0, "faults": 0,
        "ended": [], "notices": {},
    }

    def test_datagrams(self) -> None:
        sample = generator.datagrams(self.FOUND, Load())
        self.assertAlmostEqual(sample.cost or 0, 20.0)
        self.assertEqual((sample.rate, sample.loss, sample.per_wakeup, sample.p99), (500.0, 100 / 1100, 2.0, 1.0))
        self.assertEqual((sample.memory, sample.remarks), (None, {}))

    def test_memory_is_for_each_pair(self) -> None:
        self.assertEqual(generator.datagrams(self.FOUND, Load(kind=Kind.MEMORY, pairs=4)).memory, 100.0)

    def test_a_relay_that_hardly_sleeps_has_no_batch_size(self) -> None:
        self.assertIsNone(generator.datagrams({**self.FOUND, "relay_wakeups": 3}, Load()).per_wakeup)

    def test_what_should_not_be_is_remarked(self) -> None:
        sample = generator.datagrams({**self.FOUND, "wrong": 2, "ended": ["x"], "notices": {"cause 4": 7}}, Load())
        self.assertEqual(sum(sample.remarks.values()), 2 + 1 + 7)
        self.assertTrue(any(what.endswith(WRONG) for what in sample.remarks))

    def test_nothing_that_arrives_is_a_failure(self) -> None:
        with self.assertRaises(MeasurementFailed) as caught:
            generator.datagrams({**self.FOUND, "delivered": 0, "ended": ["closed with 0x3f"]}, Load())
        self.assertIn("closed with 0x3f", str(caught.exception))

    def test_streams_and_handshakes(self) -> None:
        streams = {"bytes": 4_000_000, "seconds": 2.0, "relay_cpu": 0.2, "load_cpu": 0.1, "wrong": 3}
        sample = generator.streams(streams, Load())
        self.assertEqual((sample.cost, sample.rate, sum(sample.remarks.values())), (50.0, 2000.0, 3))
        sample = generator.handshakes({"handshakes": 100, "seconds": 0.5, "relay_cpu": 0.25, "load_cpu": 0.1}, Load())
        self.assertEqual((sample.cost, sample.rate), (2500.0, 200.0))


class TurnTests(SynchronousTestCase):
    """Issue 4: coturn is a peer, measured under its own load."""

    def line(self, sent: int, arrived: int) -> str:
        return f"3: : start_mclient: msz=4, tot_send_msgs={sent}, tot_recv_msgs={arrived}, tot_send_bytes ~ 0\n"

    def read(self, lines: list[str]) -> Sample:
        """A line each second; the server takes 10 ms for the first lines, and 20 ms a second when it has work."""
        times = iter(range(100))
        used = iter([0.01 * step if step < 8 else 0.07 + 0.02 * (step - 7) for step in range(100)])
        return turn.read(lines, 2, cpu=lambda: next(used), now=lambda: float(next(times)))

    def test_what_comes_while_sessions_begin_is_not_counted(self) -> None:
        lines = ["0: : Total connect time is 1\n"] + [self.line(100 * n, 100 * n) for n in range(8)]
        lines += [self.line(1700, 1500), self.line(2700, 2300), self.line(9999, 9999)]
        sample = self.read(lines)
        # From the line after 7 s (700 messages) to that after 9 s: 2000 sent, 1600 arrived, each forwarded twice.
        self.assertAlmostEqual(sample.rate or 0, 1600.0)
        self.assertAlmostEqual(sample.cost or 0, 0.04 * 1e6 / 3200)
        self.assertAlmostEqual(sample.loss or 0, 0.2)

    def test_what_it_says_last_is_why_it_failed(self) -> None:
        for lines in (["0: : connect: refused\n", "\n"], [self.line(0, 0), "0: : connect: refused\n"]):
            with self.assertRaises(MeasurementFailed) as caught:
                self.read(lines)
            self.assertIn("refused", str(caught.exception))

    def test_nothing_that_arrives_is_a_failure(self) -> None:
        self.assertRaises(MeasurementFailed, self.read, [self.line(n, 0) for n in range(20)])

    def test_rates_are_made_of_pairs_of_sessions(self) -> None:
        for rate in (1_000, 5_000, 20_000, 80_000):
            sessions, interval = turn.sessions_for(rate)
            self.assertEqual(sessions % 2, 0)
            self.assertLessEqual(sessions, turn.MOST_SESSIONS)
            self.assertEqual(turn.FORWARDS * sessions * 1000 / interval, rate)


class ReportTests(SynchronousTestCase):
    """Issue 4: a table, JSON and plots; each ratio next to its budget; what cannot be measured is said."""

    BUDGET = next(budget for budget in BUDGETS if budget.against == QUINN)

    def report(self, *rounds: tuple[float, float], **changes: Any) -> Report:
        """Of one scenario, ours and quinn's costs in each round."""
        budget = self.BUDGET
        subjects = (Subject(OURS, OURS, Load()), Subject(QUINN, QUINN, Load()))
        found = Outcome(Scenario(budget.scenario, "Some title", Kind.DATAGRAMS, subjects), **changes)
        for mine, theirs in rounds:
            for label, cost in ((OURS, mine), (QUINN, theirs)):
                found.samples.setdefault(label, []).append(Sample(cost=cost, rate=1000.0, loss=0.0123))
        return Report([found], {"processor": "some", "load before": "0.1"}, {COTURN: "it is not installed"}, rounds=3, seconds=5)

    def verdict(self, report: Report) -> Verdict:
        [row] = [row for row in report.rows() if row.budget is self.BUDGET]
        return row.verdict

    def test_verdicts(self) -> None:
        must, aim = 2.5, 1.0
        self.assertEqual((self.BUDGET.must, self.BUDGET.aim), (must, aim))
        for ratio, verdict in (
            (aim, Verdict.AIM), (aim + 0.01, Verdict.MUST), (must, Verdict.MUST), (must + 0.01, Verdict.MISSED),
        ):
            self.assertIs(self.verdict(self.report((ratio, 1.0))), verdict)
        self.assertIs(self.verdict(self.report(failures={QUINN: "it broke"})), Verdict.UNKNOWN)

    def test_the_page_has_the_ratio_beside_its_budget_and_loss_beside_the_rate(self) -> None:
        page = self.report((20.0, 10.0), (30.0, 10.0), (25.0, 10.0)).markdown([])
        self.assertIn(f"| {self.BUDGET.what} | ≤ 2.5 x | ≤ 1 x | 2.5 x (2 to 3) | kept |", page)
        self.assertRegex(page, r"\| zrc-relay \| 25 \(20 to 30\) \| 1,000 \| 1\.23 % \|")
        self.assertIn("- coturn: it is not installed", page)

    def test_a_row_of_the_sources_stands_in_parentheses_and_one_without_a_budget_informs(self) -> None:
        scenario = next(scenario for scenario in SCENARIOS if scenario.name == self.BUDGET.scenario)
        costs = {OURS: 10.0, SOURCE: 30.0, QUINN: 10.0, GENERAL: 40.0}
        found = Outcome(scenario, {label: [Sample(cost=cost)] for label, cost in costs.items()})
        page = Report([found], {}, {}, rounds=1, seconds=1).markdown([])
        self.assertIn(f"| {self.BUDGET.what} | ≤ 2.5 x | ≤ 1 x | 1 x (1 to 1) | aim reached |", page)
        self.assertIn(f"| {self.BUDGET.what}, not compiled | (≤ 2.5 x) | (≤ 1 x) | 3 x (3 to 3) | (MISSED) |", page)
        self.assertIn("with fast_path = false, at saturation | - | - | 0.25 x (0.25 to 0.25) | for information |", page)

    def test_another_number_of_rounds_is_said(self) -> None:
        three = ((20.0, 10.0), (30.0, 10.0), (25.0, 10.0))
        self.assertNotIn("Rounds:", self.report(*three).markdown([]))
        self.assertIn("### Some title\n\nRounds: 2.\n\n|", self.report(*three[:2]).markdown([]))

    def test_nothing_is_compared_with_what_was_mostly_lost(self) -> None:
        budget = next(budget for budget in BUDGETS if budget.most_loss is not None)
        scenario = next(scenario for scenario in SCENARIOS if scenario.name == budget.scenario)
        for loss, verdict in ((0.0049, Verdict.AIM), (0.0051, Verdict.UNKNOWN)):
            samples = {str(budget.of): [Sample(cost=1.0, loss=loss)], str(budget.against): [Sample(cost=1.0, loss=0.0)]}
            made = Report([Outcome(scenario, samples)], {}, {}, rounds=1, seconds=1)
            [row] = [row for row in made.rows() if row.budget is budget]
            self.assertIs(row.verdict, verdict)
            self.assertEqual(budget.of in row.why, verdict is Verdict.UNKNOWN)

    def test_growth_is_drawn_for_each_system_and_its_note_stands_above_the_table(self) -> None:
        budget = next(budget for budget in BUDGETS if budget.most_loss is not None)
        scenario = next(scenario for scenario in SCENARIOS if scenario.name == budget.scenario)
        samples = {subject.label: [Sample(cost=9.0 + subject.load.pairs)] for subject in scenario.subjects}
        directory = Path(self.mktemp())
        directory.mkdir()
        Report([Outcome(scenario, samples)], {}, {}, rounds=1, seconds=1).write(directory)
        drawn = (directory / "performance" / "growth.svg").read_text()
        for system in {subject.system for subject in scenario.subjects}:
            self.assertIn(f">{system}<", drawn)
        page = (directory / "performance.md").read_text()
        self.assertLess(page.index(scenario.title), page.index(scenario.note))
        self.assertLess(page.index(scenario.note), page.index("| 1000 pairs |"))
        for system in {subject.system for subject in scenario.subjects}:
            self.assertIn(f"- {system}: 1000 pairs cost 101 (101 to 101) times what 1 cost\n", page)

    def test_a_budget_that_was_not_measured_says_why(self) -> None:
        page = self.report(failures={QUINN: "it\nbroke"}).markdown([])
        self.assertIn("not measured: it broke", page)

    def test_files_are_written_and_old_plots_go(self) -> None:
        directory = Path(self.mktemp())
        (directory / "performance").mkdir(parents=True)
        (directory / "performance" / "old.svg").touch()
        written = {path.name for path in self.report((20.0, 10.0)).write(directory)}
        self.assertLessEqual({"performance.md", "results.json"}, written)
        self.assertEqual(written, {path.name for path in directory.rglob("*") if path.is_file()})
        page = (directory / "performance.md").read_text()
        drawn = [name for name in written if name.endswith(".svg")]
        self.assertTrue(drawn)
        for name in drawn:
            self.assertIn(f"](performance/{name})", page)
        results = json.loads((directory / "performance" / "results.json").read_text())
        self.assertEqual(results["scenarios"][0]["subjects"][OURS]["median"]["cost"], 20.0)

    def test_a_run_is_sound_when_all_was_measured_that_could_be(self) -> None:
        self.assertTrue(self.report((20.0, 10.0)).is_sound)
        self.assertTrue(self.report((20.0, 10.0), failures={QUINN: "not offered: no channels"}).is_sound)
        self.assertFalse(self.report((20.0, 10.0), failures={QUINN: "it broke"}).is_sound)
        self.assertFalse(self.report().is_sound)
        wrong = {OURS: [Sample(cost=1.0, remarks={f"payloads that arrived {WRONG}": 1})]}
        self.assertFalse(self.report(samples=wrong).is_sound)

    def test_not_offered_is_said_so(self) -> None:
        stage = Stage(Path(self.mktemp()))
        stage.failing["A"] = NotOffered("the relay offers no channels")
        self.assertEqual(stage.bench(1).run(SCENARIO).failures, {"A": "not offered: the relay offers no channels"})


class PlotTests(SynchronousTestCase):
    """Issue 4: plots, written by ourselves."""

    def test_a_bar_is_as_long_as_its_value_and_names_are_escaped(self) -> None:
        drawn = ET.fromstring(plots.bars("A < B", "µs", {"a&b": Figure(5, 4, 10), "c": Figure(10, 10, 10)}))  # noqa: S314 - ours
        bars = [float(each.get("width", 0)) for each in drawn.iter("{http://www.w3.org/2000/svg}rect")][1:]
        self.assertEqual((bars[0], bars[1] > 100), (bars[1] / 2, True))
        self.assertIn("a&b", [each.text for each in drawn.iter("{http://www.w3.org/2000/svg}text")])

    def test_lines_stay_inside(self) -> None:
        series = {"a": [plots.Point(1_000, Figure.of([100.0])), plots.Point(85_000, Figure.of([6.2]))],
                  "b": [plots.Point(60_000, Figure.of([0.27]))]}
        drawn = ET.fromstring(plots.lines("title", "x", "y", series))  # noqa: S314 - ours
        for circle in drawn.iter("{http://www.w3.org/2000/svg}circle"):
            self.assertTrue(plots.LINES_LEFT <= float(circle.get("cx", 0)) <= plots.WIDTH - plots.LEGEND)
            self.assertTrue(plots.LINES_TOP <= float(circle.get("cy", 0)) <= plots.HEIGHT - plots.FOOT)

    def test_one_value_is_enough_for_an_axis(self) -> None:
        ET.fromstring(plots.lines("title", "x", "y", {"a": [plots.Point(1, Figure.of([1.0]))]}))  # noqa: S314 - ours

    def test_numbers_have_three_digits(self) -> None:
        shown = [plots.number(value) for value in (0, 0.01234, 0.5, 4.56, 12.34, 99.96, 123.4, 85_321, 1e6)]
        self.assertEqual(shown, ["0", "0.0123", "0.5", "4.56", "12.3", "100", "123", "85,300", "1,000,000"])


class FlameTests(SynchronousTestCase):
    """A flame graph shows each function as wide as its share of the samples, above who called it."""

    STACKS = (
        "run (app.py);relay (zrc_relay/a.py) 30", "run (app.py);relay (zrc_relay/a.py);<lambda> (zrc_relay/b.py) 60",
        "other (c.py) 10",
    )

    def boxes(self) -> dict[str, tuple[float, float, float]]:
        """For each function its share in percent, how wide it is drawn, and how far down."""
        root = ET.fromstring(flame.draw(flame.gather(self.STACKS), "at <rest>"))  # noqa: S314 - ours
        found = {}
        for group in root.findall("{*}g"):
            name, _, share = (group.findtext("{*}title") or "").rpartition(": ")
            box = next(group.iter("{http://www.w3.org/2000/svg}rect"))
            found[name] = (float(share.rstrip("%")), float(box.get("width", 0)), float(box.get("y", 0)))
        return found

    def test_widths_are_shares(self) -> None:
        boxes = self.boxes()
        self.assertEqual({name: share for name, (share, _, _) in boxes.items()}, {
            "run (app.py)": 90.0, "relay (zrc_relay/a.py)": 90.0, "<lambda> (zrc_relay/b.py)": 60.0, "other (c.py)": 10.0,
        })
        for share, width, _ in boxes.values():
            self.assertAlmostEqual(width / flame.WIDTH, share / 100)

    def test_who_is_called_stands_above_the_caller(self) -> None:
        boxes = self.boxes()
        heights = [boxes[name][2] for name in ("run (app.py)", "relay (zrc_relay/a.py)", "<lambda> (zrc_relay/b.py)")]
        self.assertEqual(heights, sorted(heights, reverse=True))
        self.assertEqual(boxes["other (c.py)"][2], heights[0])
