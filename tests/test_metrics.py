"""What the metrics say of real sessions on the simulated network, their two formats, and adding up processes."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, replace
from math import inf
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.harness import OPEN_TIER, RELAY_ID, World
from tests.watching import ACCEPT_OPENMETRICS, Thing, Watched
from zrc_relay.config import SETTINGS
from zrc_relay.core.codes import DropCause, ErrorCode, Role, TerminationReason
from zrc_relay.core.counters import Counters, InputDrop, Limit
from zrc_relay.core.relay import Policy
from zrc_relay.core.tiers import Tier
from zrc_relay.metrics.catalogue import METRICS, PREFIX, RULES, SECTIONS, Kind, take, with_name
from zrc_relay.metrics.exposition import OPENMETRICS, TEXT, prefers_openmetrics
from zrc_relay.metrics.reference import with_tables
from zrc_relay.metrics.snapshot import Buckets, Merge, Snapshot, merge

PAGE = Path(__file__).resolve().parent.parent / "docs" / "metrics.md"


def with_quota(quota: int) -> World:
    """A scene whose devices have that quota."""
    return World(policy=Policy(relay_id=RELAY_ID, instance_id=bytes(8), default_tier=Tier("", None, quota, None)))


class MetricsCase(SynchronousTestCase):
    """A scene with one pair of clients, watched."""

    def setUp(self) -> None:
        self.world = World()
        self.watched = Watched(self.world)

    def assert_values(self, **expected: float) -> None:
        """Metrics without the prefix, ``__`` in front of the label's value."""
        values = self.watched.values()
        for name, value in expected.items():
            metric, _, label = name.partition("__")
            row = with_name(PREFIX + metric)
            key = f'{row.name}{{{row.label}="{label}"}}' if label else row.name
            self.assertEqual(values[key], value, key)

    @contextlib.contextmanager
    def adding(self, **expected: float) -> Iterator[None]:
        """What is done inside makes the metrics larger by that much."""
        before = self.watched.values()
        yield
        after = self.watched.values()
        for name, value in expected.items():
            metric, _, label = name.partition("__")
            row = with_name(PREFIX + metric)
            key = f'{row.name}{{{row.label}="{label}"}}' if label else row.name
            self.assertEqual(after[key] - before[key], value, key)


class AllocationMetricsTests(MetricsCase):
    """R7.3: active_allocations, total_allocations, allocation_duration, quota_usage."""

    def test_allocations_are_counted_by_state_from_creation_to_end(self) -> None:
        self.assert_values(active_allocations__active=0, active_allocations__waiting=0, allocations_total=0)
        device = self.world.client(Role.DEVICE)
        self.world.run(0.5)
        self.assert_values(active_allocations__active=0, active_allocations__waiting=1, allocations_total=1, joins_total=1)
        peer = self.world.client(Role.PEER)
        self.world.run(0.5)
        self.assert_values(active_allocations__active=1, active_allocations__waiting=0, joins_total=2)
        peer.close()
        self.world.run(0.5)
        self.assert_values(active_allocations__active=0, active_allocations__waiting=1)
        device.release()
        self.world.run(2)
        self.assert_values(
            active_allocations__active=0, active_allocations__waiting=0, allocations_total=1, allocations_ended_total__released=1,
            allocations_ended_total__idle=0, remembered_allocations=1,
        )

    def test_how_long_they_lived(self) -> None:
        device, _ = self.world.pair()
        self.world.run(20)
        device.release()
        self.world.run(1)
        buckets = take(self.watched.watch.local).histograms[f"{PREFIX}allocation_duration_seconds"]
        lived = dict(zip(buckets.bounds, buckets.counts, strict=False))
        self.assertEqual((lived[10.0], lived[60.0], sum(buckets.counts)), (0, 1, 1))
        self.assertTrue(20 < buckets.sum < 21, buckets.sum)

    def test_quotas_and_what_is_used_of_them(self) -> None:
        world = with_quota(1_000_000)
        watched = self.watched = Watched(world)
        device, peer = world.pair()
        self.assert_values(quota_bytes=1_000_000, quota_usage_bytes=0)
        device.send(bytes(1000))
        peer.send(bytes(500))
        world.run(0.1)
        self.assert_values(quota_bytes=1_000_000, quota_usage_bytes=1500, quota_warnings_total=0)
        self.assertEqual(watched.values()[f"{PREFIX}forwarded_bytes_total"], 1500)
        device.release()
        world.run(1)
        self.assert_values(quota_bytes=0, quota_usage_bytes=0)
        world.pair()  # goes on where it was
        self.assert_values(quota_bytes=1_000_000, quota_usage_bytes=1500)

    def test_quota_warnings(self) -> None:
        self.world = with_quota(10_000)
        self.watched = Watched(self.world)
        device, _ = self.world.pair()
        for _ in range(9):
            device.send(bytes(1000))
        self.world.run(0.1)
        self.assert_values(quota_warnings_total=1, quota_usage_bytes=9000)

    def test_limits_that_change_change_the_sum_of_quotas(self) -> None:
        device, _ = self.world.pair()
        self.assert_values(quota_bytes=0)
        device.send(bytes(700))
        self.world.run(0.1)
        (allocation,) = self.world.relay.table
        for quota, used in ((5000, 700), (900, 700), (0, 0)):
            tier = Tier("", None, quota, None) if quota else OPEN_TIER
            allocation.set_limits(allocation.token, tier, self.world.now())
            self.assert_values(quota_bytes=quota, quota_usage_bytes=used)

    def test_the_figures_agree_with_the_table_after_a_long_history(self) -> None:
        world = with_quota(1_000_000)
        watched = Watched(world)
        rng = world.rng
        clients = []
        for step in range(40):
            token = world.token(allocation_id=bytes((rng.randrange(4),)) * 16)
            clients.append(world.client(Role(step % 2), token))
            world.run(0.2)
            for client in clients:
                if client.allocated is not None and not client.is_closed:
                    client.send(bytes(rng.randrange(1, 900)))
            world.run(0.1)
            victim = rng.choice(clients)
            if not victim.is_closed and victim.allocated is not None:
                rng.choice((victim.close, victim.release))()
            world.run(rng.choice((0.1, 40.0)) if step % 10 == 9 else 0.1)
            values = watched.values()
            live = list(world.relay.table)
            active = sum(all(side.members for side in allocation.sides) for allocation in live)
            self.assertEqual(values[f'{PREFIX}active_allocations{{state="active"}}'], active)
            self.assertEqual(values[f'{PREFIX}active_allocations{{state="waiting"}}'], len(live) - active)
            self.assertEqual(values[f"{PREFIX}quota_bytes"], sum(allocation.quota or 0 for allocation in live))
            self.assertEqual(values[f"{PREFIX}quota_usage_bytes"], sum(allocation.bytes_transferred for allocation in live))
            ended = sum(value for name, value in values.items() if name.startswith(f"{PREFIX}allocations_ended_total"))
            self.assertEqual(values[f"{PREFIX}allocations_total"], ended + len(live))
            self.assertEqual(values[f"{PREFIX}allocation_duration_seconds_count"], ended)


class ForwardingMetricsTests(MetricsCase):
    """R7.3-5: bytes and packets forwarded, bandwidth usage, drops by cause, egress waits, sockets."""

    def test_forwarded_and_dropped(self) -> None:
        device, peer = self.world.pair()
        with self.adding(forwarded_packets_total=2, forwarded_bytes_total=5, dropped_packets_total__no_counterpart=0):
            device.send(b"abc")
            peer.send(b"de")
            self.world.run(0.1)
        peer.close()
        self.world.run(1)
        with self.adding(
            dropped_packets_total__no_counterpart=1, dropped_bytes_total__no_counterpart=3, forwarded_packets_total=0
        ):
            device.send(b"abc")
            self.world.run(0.1)

    def test_bandwidth_is_that_of_the_last_second(self) -> None:
        self.watched.watch.startService()
        self.addCleanup(self.watched.watch.stopService)
        device, _ = self.world.pair()
        self.world.run(1)
        self.assert_values(bandwidth_usage_bytes_per_second=0, bandwidth_limit_bytes_per_second=inf)
        end = self.world.now() + 3
        while self.world.now() < end:
            device.send(bytes(1000))
            self.world.run(0.02)
        usage = self.watched.values()[f"{PREFIX}bandwidth_usage_bytes_per_second"]
        self.assertTrue(45_000 <= usage <= 55_000, usage)
        self.world.run(2.1)
        self.assert_values(bandwidth_usage_bytes_per_second=0)

    def test_waits_in_egress_queues(self) -> None:
        device, _ = self.world.pair()
        for _ in range(300):  # far more than a congestion window
            device.send(bytes(1000))
        self.world.run(0.05)
        buckets = take(self.watched.watch.local).histograms[f"{PREFIX}egress_wait_seconds"]
        worst = self.watched.values()[f"{PREFIX}egress_wait_max_seconds"]
        self.assertGreater(sum(buckets.counts), 0)
        self.assertTrue(0.001 <= worst <= 0.2, worst)
        self.world.run(31)
        self.assert_values(egress_wait_max_seconds=0)

    def test_sockets_add_up(self) -> None:
        first, second = Thing(), Thing()
        self.watched.ports[:] = [first, second]
        first.traffic.reads, second.traffic.reads = 3, 4
        first.traffic.bytes_received, second.traffic.bytes_sent = 10, 20
        for size in (1, 2, 3, 128, 172):
            first.traffic.batches.observe(size)
        second.traffic.trains.observe(64)
        second.traffic.singles = first.traffic.singles = 2
        self.assert_values(udp_reads_total=7, udp_received_bytes_total=10, udp_sent_bytes_total=20)
        values = self.watched.values()
        for bound, count in {"1.0": 1, "2.0": 2, "4.0": 3, "64.0": 3, "128.0": 4, "+Inf": 5}.items():
            self.assertEqual(values[f'{PREFIX}udp_batch_packets_bucket{{le="{bound}"}}'], count, bound)
        self.assertEqual(values[f"{PREFIX}udp_batch_packets_sum"], 306)
        for bound, count in {"1.0": 4, "32.0": 4, "64.0": 5, "+Inf": 5}.items():
            self.assertEqual(values[f'{PREFIX}udp_send_packets_bucket{{le="{bound}"}}'], count, bound)
        self.assertEqual(values[f"{PREFIX}udp_send_packets_sum"], 68)
        self.watched.ports.clear()
        self.assert_values(udp_reads_total=0)


class ConnectionMetricsTests(MetricsCase):
    """R7.3-5: connection_count, error_count, rate_limit_hits, refusals, handshakes, the token cache."""

    def test_connections_and_handshakes(self) -> None:
        self.world.client(Role.DEVICE)
        self.world.run(0.012)  # one way and a bit: the Initial is here, the answer on its way
        self.assert_values(connections__handshaking=1, connections__established=0, handshakes_started_total=1)
        self.world.run(1)
        self.assert_values(
            connections__handshaking=0, connections__established=1, handshakes_total__completed=1, handshakes_total__timed_out=0)

    def test_a_handshake_that_is_never_finished(self) -> None:
        self.world.network.filter = lambda data, source, to: data if to[1] == 4433 else None
        client = self.world.client(Role.DEVICE)
        self.world.run(6)
        client.close()
        self.assertGreater(self.watched.values()[f'{PREFIX}handshakes_total{{outcome="timed_out"}}'], 0)

    def test_refusals_by_code_and_the_token_cache(self) -> None:
        self.world.pair()
        self.assert_values(token_cache_misses_total=1, token_cache_hits_total=1)
        forged = replace(self.world.token(), quota_bytes=1)
        with self.adding(
            refused_total__token_bad_signature=1, connections_closed_total__token_bad_signature=1, token_cache_misses_total=1
        ):
            self.world.client(Role.DEVICE, forged)
            self.world.run(1)

    def test_errors_by_where_they_happened(self) -> None:
        watched = self.watched
        self.world.relay.counters.session_errors = 1
        watched.task.failures, watched.log.failures, watched.state.failures = 2, 3, 4
        self.assert_values(errors_total__session=1, errors_total__background=2, errors_total__log=3, errors_total__state=4)

    def test_limits(self) -> None:
        self.world.relay.limited(Limit.STUN_RATE, "192.0.2.9", 1, "silence")
        self.world.relay.counters.input_dropped[InputDrop.STUN] += 2
        self.assert_values(
            rate_limit_hits_total__stun_rate=1, rate_limit_hits_total__blocked=0, input_dropped_packets_total__stun=2)

    def test_systems_outside(self) -> None:
        watched = self.watched
        watched.webhook.queued, watched.webhook.dropped, watched.webhook.blocked = 1, 2, 3
        watched.webhook.failures, watched.webhook.last_success = 4, 1.8e9
        watched.bouncer.decisions, watched.bouncer.rejected = 5, 6
        self.assert_values(
            webhook_queued_events=1, webhook_dropped_events_total=2, webhook_blocks_total=3, external_failures_total__webhook=4,
            external_last_success_timestamp_seconds__webhook=1.8e9, external_last_success_timestamp_seconds__bouncer=0,
            bouncer_decisions=5, external_rejected_total__bouncer=6,
        )

    def test_state_of_the_service(self) -> None:
        watched = self.watched
        watched.reloads.done, watched.reloads.refused = 2, 1
        self.assert_values(ready=1, draining=0, reloads_total__done=2, reloads_total__refused=1)
        watched.is_ready = False
        self.world.relay.drain(0)
        self.assert_values(ready=0, draining=1)
        self.assertGreater(watched.values()[f"{PREFIX}certificate_expiry_timestamp_seconds"], self.world.wall())


class FormatTests(MetricsCase):
    """R7.2: Prometheus' text and OpenMetrics say the same, and prometheus-client reads both."""

    def test_both_formats_hold_the_same_samples(self) -> None:
        self.world.pair()

        def ours(accept: str) -> dict[str, float]:
            return {
                (sample.name + json.dumps(sample.labels)): sample.value
                for family in self.watched.families(accept) for sample in family.samples if sample.name.startswith(PREFIX)
            }

        text, openmetrics = ours(""), ours(ACCEPT_OPENMETRICS)
        self.assertEqual(text, openmetrics)
        self.assertGreater(len(text), 200)

    def test_openmetrics_ends_as_it_must_and_text_says_what_each_is(self) -> None:
        self.assertTrue(self.watched.text(ACCEPT_OPENMETRICS).endswith("\n# EOF\n"))
        text = self.watched.text()
        for metric in METRICS:
            kind = "gauge" if metric.kind is Kind.INFO else metric.kind.value
            self.assertIn(f"# TYPE {metric.name} {kind}\n", text)
            self.assertIn(f"# HELP {metric.name} {metric.help}\n", text)

    def test_the_format_is_the_one_that_is_asked_for(self) -> None:
        prometheus = (
            "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,"
            "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
        )
        for accept, expected in {
            prometheus: True, ACCEPT_OPENMETRICS: True, "Application/OpenMetrics-Text": True,
            'application/openmetrics-text; version="1.0.0"; charset=utf-8': True,
            "": False, "*/*": False, "text/plain": False, "application/json": False, "text/plain;version=0.0.4": False,
            "application/openmetrics-text;version=2.0.0": False, "application/openmetrics-text;q=0": False,
            "application/openmetrics-text;q=0.1,text/plain;q=0.9": False, "application/openmetrics-text;q=nan": False,
            "application/openmetrics-text;q=x": False, ";,;=,": False, "," * 5000 + "application/openmetrics-text": False,
        }.items():
            self.assertEqual(prefers_openmetrics(accept), expected, accept[:100])
        self.assertEqual(self.watched.watch.exposition.render(prometheus)[1], OPENMETRICS)
        self.assertEqual(self.watched.watch.exposition.render("")[1], TEXT)

    def test_two_relays_in_one_process_do_not_know_of_each_other(self) -> None:
        other = Watched(World())
        self.world.pair()
        self.assert_values(allocations_total=1)
        self.assertEqual(other.values()[f"{PREFIX}allocations_total"], 0)


class NamingTests(SynchronousTestCase):
    """R7: Prometheus' rules for names; no label takes a value that a client chooses; everything is there from the start."""

    def test_names_and_units(self) -> None:
        names = [metric.name for metric in METRICS]
        self.assertEqual(len(names), len(set(names)))
        for metric in METRICS:
            self.assertRegex(metric.name, r"^zrc_relay_[a-z]+(_[a-z]+)*$")
            self.assertEqual(metric.name.endswith("_total"), metric.kind is Kind.COUNTER, metric.name)
            self.assertNotRegex(metric.name, r"_(ms|millis|kb|mb|bits|minutes|hours|percent|count|created)(_|$)")
            self.assertTrue(metric.help[0].isupper() or metric.help[0].isdigit(), metric.help)
            self.assertTrue(metric.help.endswith("."), metric.help)

    def test_every_value_of_every_label_is_there_from_the_start_and_no_other_comes(self) -> None:
        world = World()
        watched = Watched(world)
        before = {name for name in watched.values() if name.startswith(PREFIX)}
        for metric in METRICS:
            if metric.label:
                for label in metric.labels:
                    self.assertIn(f'{metric.name}{{{metric.label}="{label}"}}', before)
        device, peer = world.pair()
        device.send(b"x")
        world.run(1)
        world.client(Role.DEVICE, replace(world.token(), quota_bytes=1))
        peer.close()
        world.run(90)
        self.assertEqual({name for name in watched.values() if name.startswith(PREFIX)}, before)

    def test_the_label_values_are_those_of_the_program(self) -> None:
        for metric, kind in (
            ("dropped_packets_total", DropCause), ("dropped_bytes_total", DropCause), ("refused_total", ErrorCode),
            ("connections_closed_total", ErrorCode), ("allocations_ended_total", TerminationReason),
            ("rate_limit_hits_total", Limit), ("input_dropped_packets_total", InputDrop),
        ):
            self.assertEqual(set(with_name(PREFIX + metric).labels), {member.name.lower() for member in kind})

    def test_every_counter_of_the_relay_is_exported(self) -> None:
        source = Path(__file__).resolve().parent.parent / "zrc_relay" / "metrics" / "catalogue.py"
        read = set(re.findall(r"counters\.([a-z_]+)", source.read_text(encoding="utf-8")))
        self.assertEqual(set(vars(Counters())) - read, set())


class SnapshotTests(MetricsCase):
    """R7.2, look-ahead: the numbers are plain data, and those of several processes add up."""

    def test_a_snapshot_is_plain_data(self) -> None:
        self.world.pair()
        snapshot = take(self.watched.watch.local)
        document = json.loads(json.dumps(
            {"values": {name: dict(values) for name, values in snapshot.values.items()},
             "histograms": {name: asdict(buckets) for name, buckets in snapshot.histograms.items()},
             "facts": {name: dict(facts) for name, facts in snapshot.facts.items()}},
        ))
        histograms = {
            name: Buckets(tuple(one["bounds"]), tuple(one["counts"]), one["sum"]) for name, one in document["histograms"].items()
        }
        self.assertEqual(Snapshot(document["values"], histograms, document["facts"]), snapshot)

    def test_processes_add_up(self) -> None:
        other_world = World()
        other = Watched(other_world)
        device, _ = other_world.pair()
        self.world.pair()
        device.send(b"abc")
        other_world.run(40)
        device.release()
        other_world.run(1)
        other.is_ready = False
        both = merge([take(self.watched.watch.local), take(other.watch.local)], RULES)

        def value(name: str, label: str = "") -> float:
            return both.values[PREFIX + name][label]

        self.assertEqual(value("allocations_total"), 2)
        self.assertEqual(value("active_allocations", "active"), 1)
        self.assertEqual(value("forwarded_bytes_total"), 3)
        self.assertEqual(value("ready"), 0)
        self.assertEqual(value("allocations_limit"), self.world.relay.policy.max_allocations)
        self.assertEqual(sum(both.histograms[f"{PREFIX}allocation_duration_seconds"].counts), 1)
        self.assertEqual(both.facts, take(other.watch.local).facts)

    def test_rules(self) -> None:
        rules = {"sum": Merge.SUM, "most": Merge.LARGEST, "least": Merge.SMALLEST}
        one = Snapshot({name: {"": 3.0, "a": 1.0} for name in rules})
        other = Snapshot({name: {"": 5.0, "b": 2.0} for name in rules})
        both = merge([one, other], rules)
        for name, expected in {"sum": 8.0, "most": 5.0, "least": 3.0}.items():
            self.assertEqual(both.values[name], {"": expected, "a": 1.0, "b": 2.0})
        self.assertEqual(merge([], rules), Snapshot())

    @given(st.lists(st.lists(st.integers(0, 1000), min_size=3, max_size=3), min_size=1, max_size=5))
    def test_histograms_add_up(self, counts: list[list[int]]) -> None:
        parts = [Snapshot(histograms={"h": Buckets((1.0, 2.0), tuple(one), float(sum(one)))}) for one in counts]
        both = merge(parts, {}).histograms["h"]
        self.assertEqual(both.counts, tuple(map(sum, zip(*counts, strict=True))))
        self.assertEqual(both.sum, sum(map(sum, counts)))

    def test_histograms_of_different_bounds_do_not(self) -> None:
        parts = [Snapshot(histograms={"h": Buckets(bounds, (0, 0), 0.0)}) for bounds in ((1.0,), (2.0,))]
        self.assertRaises(ValueError, merge, parts, {})


class PageTests(SynchronousTestCase):
    """Issue "must show": every metric is documented in docs/metrics.md and every documented metric is exported."""

    def setUp(self) -> None:
        self.text = PAGE.read_text(encoding="utf-8")

    def rows(self) -> dict[str, tuple[str, str, str]]:
        """Kind, label with its values, and meaning of each metric on the page, by name."""
        found = re.findall(r"^\| `([a-z_]+)` \| ([a-z]+) \| (.*?) \| (.*) \|$", self.text, re.MULTILINE)
        self.assertEqual(len(found), len({name for name, *_ in found}), "a metric is there twice")
        return {name: (kind, labels, meaning) for name, kind, labels, meaning in found}

    def test_the_tables_are_those_of_the_program(self) -> None:
        rows = self.rows()
        for metric in METRICS:
            labels = f"`{metric.label}`: {', '.join(metric.labels)}" if metric.label else ""
            if metric.kind is Kind.INFO:
                labels = "`version`, `python`, `twisted`, `aioquic`, `form`"
            self.assertEqual(rows.pop(metric.name, None), (metric.kind.value, labels, metric.help), metric.name)
        standard = {name for name in rows if name.startswith(("process_", "python_gc_"))}
        self.assertEqual(rows.keys() - standard, set())

    def test_the_page_is_what_is_generated(self) -> None:
        self.assertEqual(with_tables(self.text), self.text, "run make docs")
        self.assertEqual(with_tables(self.text.replace("| `zrc_relay_allocations_total` | counter |", "| nonsense |")), self.text)

    def test_they_stand_in_their_sections(self) -> None:
        for title, metrics in SECTIONS.items():
            section = self.text.partition(f"\n### {title}\n")[2].partition("\n### ")[0]
            for metric in metrics:
                self.assertIn(f"| `{metric.name}` |", section, title)

    def test_what_is_exported_of_the_process_is_there_and_nothing_else(self) -> None:
        names = {sample.name for family in Watched(World()).families() for sample in family.samples}
        exported = {name for name in names if not name.startswith(PREFIX)}
        documented = {name for name in self.rows() if not name.startswith(PREFIX)}
        self.assertEqual(documented, exported)

    def test_the_names_in_its_prose_exist(self) -> None:
        known = {metric.name for metric in METRICS} | set(self.rows())
        known |= {f"{m.name}{suffix}" for m in METRICS if m.kind is Kind.HISTOGRAM for suffix in ("_bucket", "_sum", "_count")}
        mentioned = set(re.findall(r"zrc_relay_[a-z_]+", self.text))
        self.assertEqual(mentioned - known, set())

    def test_the_settings_in_its_prose_exist(self) -> None:
        self.assertIn("`observe_endpoint`", self.text)
        self.assertIn("observe_endpoint", SETTINGS)
