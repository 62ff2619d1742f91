"""Metrics and health of several processes, told by one that forwards nothing."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families as parse_text
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.test.requesthelper import DummyRequest

from tests.harness import World
from tests.test_traffic_merged import report
from tests.test_worker_commands import Traffic as Canned
from tests.watching import Thing, Watched, samples
from zrc_relay.control.fleet import Fleet
from zrc_relay.control.fleet_watch import FleetWatch
from zrc_relay.control.health import Report
from zrc_relay.control.management import Clocks
from zrc_relay.control.merged import SCRAPE_PATIENCE, MergedTraffic
from zrc_relay.control.observe import Observe
from zrc_relay.control.reporting import Reporter
from zrc_relay.control.sums import NOTHING
from zrc_relay.control.watch import Sights
from zrc_relay.metrics.catalogue import COUNTERS, METRICS, PREFIX, RULES, Kind, take, take_front, with_name
from zrc_relay.metrics.process import Cost, cpu_seconds, resident_bytes
from zrc_relay.metrics.snapshot import Buckets, Merge, Snapshot
from zrc_relay.metrics.totals import Totals
from zrc_relay.workers.values import decode, encode

RULES_HERE = {"c": Merge.SUM, "g": Merge.SUM}


def counting(count: int) -> Snapshot:
    """A counter, a gauge and a histogram, all with that much in them."""
    return Snapshot(
        {"c": {"": count}, "g": {"": count}}, {"h": Buckets((1.0,), (count, 2 * count), float(count))}, {"f": {"v": "1"}}
    )


class TotalsTests(SynchronousTestCase):
    """Issue "all cores": merged counters never go back, whoever dies and is replaced; gauges are those of the living."""

    @given(st.lists(st.tuples(st.integers(0, 3), st.integers(-1, 20)), max_size=60))
    def test_nothing_goes_back_under_deaths_and_restarts(self, story: list[tuple[int, int]]) -> None:
        totals = Totals(RULES_HERE, {"c"})
        living: dict[int, int] = {}
        ever = 0
        before: list[float] = [0, 0, 0, 0]
        for who, more in story:
            if more < 0:
                living.pop(who, None)
                totals.gone(who)
            else:
                living[who] = living.get(who, 0) + more
                ever += more
                totals.seen(who, counting(living[who]))
            together = totals.together()
            buckets = together.histograms.get("h", Buckets((1.0,), (0, 0), 0.0))
            now = [together.values.get("c", {}).get("", 0), *buckets.counts, buckets.sum]
            self.assertTrue(all(one >= other for one, other in zip(now, before, strict=True)))
            self.assertEqual(now, [ever, ever, 2 * ever, ever])
            self.assertEqual(together.values.get("g", {}).get("", 0), sum(living.values()))
            before = now

    def test_one_that_was_never_seen_leaves_nothing(self) -> None:
        totals = Totals(RULES_HERE, {"c"})
        totals.gone(1)
        self.assertEqual(totals.together(counting(2)), counting(2))


class RuleTests(SynchronousTestCase):
    """Issue "all cores": what every process has is told once, what each has is added up."""

    def test_what_is_the_same_everywhere_is_not_added_up(self) -> None:
        largest = {name.removeprefix(PREFIX) for name, rule in RULES.items() if rule is Merge.LARGEST}
        self.assertEqual(largest, {
            "draining", "allocations_limit", "bandwidth_limit_bytes_per_second", "egress_wait_max_seconds", "sources",
            "access_entries", "external_last_success_timestamp_seconds", "event_loop_lag_max_seconds",
            "event_loop_lag_last_seconds", "gc_pause_max_seconds",
        })
        smallest = {name.removeprefix(PREFIX) for name, rule in RULES.items() if rule is Merge.SMALLEST}
        self.assertEqual(smallest, {"ready", "certificate_expiry_timestamp_seconds"})

    def test_every_counter_is_added_up_and_kept(self) -> None:
        self.assertEqual(COUNTERS, {metric.name for metric in METRICS if metric.name.endswith("_total")})
        self.assertEqual({RULES[name] for name in COUNTERS}, {Merge.SUM})

    def test_a_snapshot_travels(self) -> None:
        snapshot = take(Watched(World()).watch.local)
        again: Snapshot = decode(encode(snapshot, Snapshot), Snapshot)
        self.assertEqual(again, snapshot)


class FleetCase(SynchronousTestCase):
    """A watch over two workers, which a test speaks for."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.world = World()
        self.fleet = Fleet(2, self.clock.seconds)
        self.workers: dict[int, Canned] = {}
        self.is_ready, self.is_draining = True, False
        self.reloads, self.task, self.state = Thing("reloads"), Thing("chores"), Thing("state")
        sights = Sights(
            clocks=Clocks(self.clock.seconds, self.world.wall, self.clock), endpoint=None, tasks=(self.task,), logs=(),
            state=(self.state,), reloads=self.reloads,
            certificate=lambda: self.world.credentials.configuration.certificate, is_ready=lambda: self.is_ready,
        )
        self.watch = FleetWatch(
            sights, self.fleet, MergedTraffic(lambda: self.workers, self.fleet, self.clock),
            is_draining=lambda: self.is_draining, entries=lambda: 3,
        )

    def add(self, index: int, **counters: int) -> None:
        """A worker that runs, with these counts when it is asked; when it last reported it had none."""
        world, worker = World(), Canned()
        self.workers[index] = worker
        self.fleet.begun(index, 100 + index)
        self.fleet.reported(index, report(NOTHING, snapshot=take(Watched(world).watch.local)))
        for name, count in counters.items():
            setattr(world.relay.counters, name, count)
        worker.answer = take(Watched(world).watch.local)

    def scrape(self) -> dict[str, float]:
        text, _ = self.successResultOf(Deferred.fromCoroutine(self.watch.exposition.render("")))
        return dict(samples(parse_text(text.decode())))


class ScrapeTests(FleetCase):
    """Issue "all cores", R7.2: one scrape tells of all processes."""

    def test_workers_are_added_to_what_this_process_knows(self) -> None:
        self.add(0, allocations_created=5)
        self.add(1, allocations_created=4)
        self.reloads.done = 2
        values = self.scrape()
        self.assertEqual(values["zrc_relay_allocations_total"], 9)
        self.assertEqual(values["zrc_relay_workers"], 2)
        self.assertEqual(values['zrc_relay_reloads_total{outcome="done"}'], 2)
        self.assertEqual((values["zrc_relay_ready"], values["zrc_relay_access_entries"]), (1, 3))
        self.assertEqual(values["zrc_relay_allocations_limit"], World().policy.max_allocations)

    def test_replacements_are_counted(self) -> None:
        self.add(0)
        self.fleet.lost(0)
        self.add(0)
        values = self.scrape()
        self.assertEqual((values["zrc_relay_workers"], values["zrc_relay_worker_restarts_total"]), (1, 1))

    def test_every_metric_of_one_process_is_there_for_several(self) -> None:
        self.add(0)
        alone, several = Watched(World()).values(), self.scrape()
        self.assertEqual(
            {name for name in several if name.startswith(PREFIX)}, {name for name in alone if name.startswith(PREFIX)}
        )

    def test_one_that_does_not_answer_is_as_it_was_last_known(self) -> None:
        self.add(0)
        self.add(1)

        class Silent(Canned):
            """Answers nothing."""

            async def snapshot(self) -> Snapshot:
                return await Deferred[Snapshot]()

        self.workers[1] = Silent()
        asked = Deferred.fromCoroutine(self.watch.exposition.render(""))
        self.clock.advance(SCRAPE_PATIENCE - 0.1)
        self.assertFalse(asked.called)
        self.clock.advance(0.1)
        text, _ = self.successResultOf(asked)
        self.assertEqual(dict(samples(parse_text(text.decode())))["zrc_relay_workers"], 2)

    def test_what_a_dead_worker_had_counted_stays(self) -> None:
        self.add(0, bytes_forwarded=1000, allocations_active=2)
        self.add(1)
        self.assertEqual(self.scrape()['zrc_relay_active_allocations{state="active"}'], 2)
        del self.workers[0]
        self.fleet.lost(0)
        values = self.scrape()
        self.assertEqual((values["zrc_relay_forwarded_bytes_total"], values["zrc_relay_workers"]), (1000, 1))
        self.assertEqual(values['zrc_relay_active_allocations{state="active"}'], 0)

    def test_before_any_worker_has_answered_there_is_what_this_process_knows(self) -> None:
        values = self.scrape()
        self.assertEqual(values["zrc_relay_worker_restarts_total"], 0)
        self.assertNotIn("zrc_relay_allocations_total", values)

    def test_a_front_says_what_it_can_of_rows_that_are_there(self) -> None:
        found = take_front(self.watch.front)
        for name in found.values:
            metric = with_name(name)
            self.assertEqual(set(found.values[name]), set(metric.labels), name)
            self.assertNotEqual(metric.kind, Kind.HISTOGRAM)
        self.assertIn(f"{PREFIX}cpu_seconds_total", found.values)


class ObserveTests(FleetCase):
    """R7.2: the observe endpoint waits for numbers that come from elsewhere."""

    def ask(self) -> tuple[DummyRequest, Deferred[bytes]]:
        request = DummyRequest([b"metrics"])
        observe = Observe(self.watch.checks, self.watch.exposition)
        return request, Deferred.fromCoroutine(observe.metrics(request))

    def test_it_answers_when_the_workers_have(self) -> None:
        self.add(0)
        answer: Deferred[Snapshot] = Deferred()

        async def snapshot() -> Snapshot:
            return await answer

        self.patch(self.workers[0], "snapshot", snapshot)
        request, asked = self.ask()
        self.assertNoResult(asked)
        answer.callback(self.workers[0].answer)
        self.assertIn(b"zrc_relay_workers 1.0", self.successResultOf(asked))
        self.assertEqual(request.responseCode, 200)


class HealthTests(FleetCase):
    """Issue "all cores", R7.1, R9.5: /health and /ready answer for all."""

    def test_complaints_of_workers_have_their_names_and_are_said_once(self) -> None:
        self.task.is_failing = True
        self.reloads.is_failing = True
        own = self.watch.checks.report()
        self.assertEqual(len(own.failures), 1)
        self.fleet.reported(0, report(NOTHING, failures=(*own.failures, "no UDP socket is open"), warnings=("it is late",)))
        self.fleet.reported(1, report(NOTHING, warnings=own.warnings))
        found = self.watch.checks.report()
        self.assertEqual(found.failures, (*own.failures, "worker 0: no UDP socket is open"))
        self.assertEqual(found.warnings, (*own.warnings, "worker 0: it is late"))
        self.assertFalse(found.is_healthy)

    def test_one_of_two_is_enough_and_none_is_not(self) -> None:
        self.add(0)
        self.add(1)
        self.assertTrue(self.watch.checks.report().is_ready)
        self.fleet.lost(1)
        found = self.watch.checks.report()
        self.assertEqual((found.is_healthy, found.is_ready, found.warnings), (True, True, ("worker 1 is down",)))
        self.fleet.lost(0)
        found = self.watch.checks.report()
        self.assertEqual((found.is_healthy, found.is_ready, found.failures), (False, False, ("no worker runs",)))

    def test_state_that_cannot_be_kept_is_a_warning(self) -> None:
        self.state.problem = "device keys cannot be kept: no space"
        self.assertEqual(self.watch.checks.report().warnings, ("device keys cannot be kept: no space",))

    def test_what_drains_or_has_not_started_is_not_ready(self) -> None:
        self.is_ready = False
        self.assertEqual(self.watch.checks.report().unready, ("the relay has not started",))
        self.is_draining = True
        self.assertEqual(self.watch.checks.report().unready, ("the relay drains",))
        self.assertTrue(self.watch.checks.report().is_healthy)


class ReportTests(SynchronousTestCase):
    """Issue "all cores": what a worker says of itself once a second."""

    def test_processor_time_is_since_the_last_report(self) -> None:
        clock, used = Clock(), [1.0]
        reporter = Reporter(
            numbers=lambda: NOTHING, metrics=Snapshot, health=lambda: Report(("a",), ("b",), ("c",)), state=lambda: "ready",
            lag=lambda: 0.003, now=clock.seconds, cpu=lambda: used[0],
        )
        self.assertEqual(reporter.report().cpu_share, 0.0)
        clock.advance(2)
        used[0] += 0.5
        found = reporter.report()
        self.assertEqual((found.cpu_share, found.uptime_seconds), (0.25, 2.0))
        self.assertEqual((found.loop_lag_seconds, found.state), (0.003, "ready"))
        self.assertEqual((found.failures, found.warnings), (("a",), ("b",)))
        clock.advance(1)
        self.assertEqual(reporter.report().cpu_share, 0.0)

    def test_what_a_process_costs(self) -> None:
        before = cpu_seconds()
        self.assertGreater(sum(range(200_000)), 0)
        self.assertGreater(cpu_seconds(), before)
        self.assertGreater(resident_bytes(), 1_000_000)
        figures: list[Any] = [1.0, 2.0, 10, 20]
        cost = Cost(lambda: figures[0], lambda: figures[2])
        figures[0], figures[2] = 2.0, 20
        self.assertEqual((cost.cpu, cost.resident), (1.0, 10))
        cost.tick()
        self.assertEqual((cost.cpu, cost.resident), (2.0, 20))
