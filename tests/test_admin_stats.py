"""Statistics of the whole relay, and what administrators do with its process, on a simulated network."""

from __future__ import annotations

from dataclasses import replace

from tests.operations_support import MAX_ALLOCATIONS, OperationsCase, Report
from zrc_relay.client import errors
from zrc_relay.control.operations import Conflict
from zrc_relay.control.sampler import INTERVAL
from zrc_relay.core.codes import Role


class StatsTests(OperationsCase):
    """R10.4: current, peak, average, drops, and who is busy."""

    def test_counts_and_traffic(self) -> None:
        device, peer = self.world.pair(self.token(1))
        self.world.client(Role.DEVICE, self.token(2))
        self.world.run(0.5)
        for _ in range(10):
            device.send(bytes(1000))
        self.world.run(3.0)
        stats = self.do(self.operations.stats())
        self.assertEqual((stats.allocations.current, stats.allocations.active, stats.allocations.waiting), (2, 1, 1))
        self.assertEqual((stats.allocations.peak, stats.allocations.created, stats.allocations.maximum), (2, 2, MAX_ALLOCATIONS))
        self.assertEqual((stats.connections.current, stats.connections.peak), (3, 3))
        self.assertEqual((stats.traffic.bytes, stats.traffic.packets), (10_000, 10))
        self.assertEqual(stats.traffic.bytes_per_second, 0.0)
        self.assertAlmostEqual(stats.traffic.peak_bytes_per_second, 10_000, delta=100)
        self.assertAlmostEqual(stats.traffic.average_bytes_per_second, 10_000 / stats.uptime_seconds, delta=10)
        self.assertEqual(len(peer.got), 10)

    def test_peaks_stay_when_allocations_go(self) -> None:
        self.world.pair(self.token(1))
        self.world.run(INTERVAL + 0.1)
        self.do(self.operations.terminate(self.name_of(self.token(1)), "x"))
        self.world.run(2.0)
        stats = self.do(self.operations.stats())
        self.assertEqual((stats.allocations.current, stats.allocations.peak, stats.connections.peak), (0, 1, 2))
        self.assertEqual(stats.allocations.ended, {"administrator": 1})

    def test_the_busiest_first(self) -> None:
        pairs = {number: self.world.pair(self.token(number))[0] for number in (1, 2, 3)}
        self.world.run(1.0)
        for _ in range(40):
            for number, device in pairs.items():
                if number != 1:
                    device.send(bytes(100 * number))
            self.world.run(0.1)
        stats = self.do(self.operations.stats())
        self.assertEqual([talker.id[-2:] for talker in stats.top_talkers], ["03", "02"])
        self.assertAlmostEqual(stats.top_talkers[0].bytes_per_second, 3000, delta=400)
        rates = {item.allocation_id[:2]: item.bytes_per_second for item in self.listed().items}
        self.assertEqual((rates["01"], rates["03"]), (0.0, stats.top_talkers[0].bytes_per_second))
        self.world.run(2.5)
        self.assertEqual(self.do(self.operations.stats()).top_talkers, ())

    def test_drops_and_refusals_by_cause(self) -> None:
        device = self.world.client(Role.DEVICE)
        self.world.run(0.5)
        device.send(b"to nobody")
        refused = self.world.client(Role.DEVICE, replace(self.world.token(), quota_bytes=7))
        self.world.run(0.5)
        self.assertIsNotNone(refused.error)
        stats = self.do(self.operations.stats())
        self.assertEqual((stats.dropped.packets["no_counterpart"], stats.dropped.bytes["no_counterpart"]), (1, 9))
        self.assertEqual(stats.refused, {"TOKEN_BAD_SIGNATURE": 1})

    def test_who_it_is_and_how_it_is(self) -> None:
        stats = self.do(self.operations.stats())
        self.assertEqual((stats.relay_id, stats.state), (self.world.policy.relay_id.hex(), "ready"))
        self.world.run(10)
        self.assertAlmostEqual(self.do(self.operations.stats()).uptime_seconds, 10, delta=0.1)
        self.host.ready = False
        self.assertEqual(self.do(self.operations.stats()).state, "starting")
        self.do(self.operations.drain())
        self.assertEqual(self.do(self.operations.stats()).state, "draining")


class ProcessTests(OperationsCase):
    """R9.4, R8: draining and reloading by an administrator."""

    def test_draining_takes_nobody_new_and_tells_those_who_are_there(self) -> None:
        device, _ = self.world.pair()
        state = self.do(self.operations.drain())
        self.assertEqual((state.state, state.allocations, state.connections), ("draining", 1, 2))
        self.assertEqual(state.deadline, "2027-01-15T08:00:30.500Z")
        self.world.run(0.2)
        self.assertEqual([type(notice).__name__ for notice in device.notices][-1], "RelayDraining")
        refused = self.world.client(Role.DEVICE, self.token(2))
        self.world.run(0.5)
        self.assertIsInstance(refused.error, errors.Draining)

    def test_a_reload_says_what_has_changed(self) -> None:
        self.host.report = Report(("idle_timeout",), ("listen_port",), (), 3)
        result = self.do(self.operations.reload())
        self.assertEqual((result.changed, result.not_reloadable, result.ended), (("idle_timeout",), ("listen_port",), 3))

    def test_a_reload_that_changes_nothing_says_why(self) -> None:
        self.host.report = Report(problems=("idle_timeout: soon", "max_allocations: many"))
        self.assertEqual(self.fails(Conflict, self.operations.reload()).problems, self.host.report.problems)
