"""The way of a payload through an allocation: to whom, within which caps, counted how, dropped for which one cause."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.fakes import START, FakeEvents, FakeMember, make_token
from zrc_relay.core.allocation import MIN_STREAM_DELAY, Allocation
from zrc_relay.core.codes import DropCause, Role
from zrc_relay.core.counters import Counters
from zrc_relay.core.limiter import TokenBucket
from zrc_relay.core.tiers import Tier

BURST = 65_535


class Bench:
    """An allocation with both sides there, and what they got."""

    def __init__(
        self, *, bandwidth: int | None = None, quota: int | None = None, shared: TokenBucket | None = None,
        burst_seconds: float = 0.1,
    ) -> None:
        self.counters = Counters()
        self.events = FakeEvents()
        self.allocation = Allocation(
            make_token(), Tier("", bandwidth, quota, None),
            now=START, burst_seconds=burst_seconds, global_bucket=shared, counters=self.counters, events=self.events,
        )
        self.device, self.peer = FakeMember(Role.DEVICE), FakeMember(Role.PEER)
        self.allocation.bind(self.device, START)
        self.allocation.bind(self.peer, START)

    def send(self, size: int, after: float = 0.0, sender: FakeMember | None = None) -> bool:
        """Forward a payload of ``size`` bytes at ``after`` seconds; whether it arrived."""
        sender = sender or self.device
        receiver = self.peer if sender is self.device else self.device
        before = len(receiver.payloads)
        self.allocation.forward(sender, [bytes(size)], START + after)
        return len(receiver.payloads) > before

    def grant(self, wanted: int, after: float = 0.0) -> tuple[int, float]:
        """Ask for stream bytes at ``after`` seconds."""
        return self.allocation.grant_stream_bytes(wanted, START + after)

    def limit(self, *, bandwidth: int | None = None, quota: int | None = None, after: float = 0.0) -> None:
        """Put other limits in force."""
        self.allocation.set_limits(make_token(), Tier("", bandwidth, quota, None), START + after)

    @property
    def dropped(self) -> dict[DropCause, tuple[int, int]]:
        """Packets and bytes dropped, of the causes that occurred."""
        packets, sizes = self.counters.dropped_packets, self.counters.dropped_bytes
        return {cause: (packets[cause], sizes[cause]) for cause in DropCause if packets[cause]}


class ForwardTests(SynchronousTestCase):
    """Payloads go to the other side's current member, byte for byte and in order (R3.1, P5)."""

    def test_they_go_both_ways_and_nowhere_else(self) -> None:
        bench = Bench()
        bench.allocation.forward(bench.device, [b"to the peer"], START)
        bench.allocation.forward(bench.peer, [b"to the device"], START)
        self.assertEqual((bench.peer.payloads, bench.device.payloads), ([b"to the peer"], [b"to the device"]))

    def test_an_empty_one_is_forwarded_like_any_other(self) -> None:
        bench = Bench(bandwidth=1000, quota=1000)
        self.assertTrue(bench.send(0))
        self.assertEqual((bench.counters.packets_forwarded, bench.allocation.bytes_transferred), (1, 0))

    @given(st.lists(st.tuples(st.booleans(), st.binary(max_size=50)), max_size=30))
    def test_any_exchange_arrives_as_it_was_sent(self, exchange: list[tuple[bool, bytes]]) -> None:
        bench = Bench()
        for from_device, payload in exchange:
            bench.allocation.forward(bench.device if from_device else bench.peer, [payload], START)
        self.assertEqual(bench.peer.payloads, [payload for from_device, payload in exchange if from_device])
        self.assertEqual(bench.device.payloads, [payload for from_device, payload in exchange if not from_device])

    def test_only_the_current_one_of_several_gets_it(self) -> None:
        bench = Bench()
        newer = FakeMember(Role.PEER)
        bench.allocation.bind(newer, START)
        bench.allocation.forward(bench.device, [b"x"], START)
        self.assertEqual((bench.peer.payloads, newer.payloads), ([], [b"x"]))

    def test_it_is_accepted_from_one_that_is_not_current(self) -> None:
        bench = Bench()
        newer = FakeMember(Role.PEER)
        bench.allocation.bind(newer, START)
        bench.allocation.forward(bench.peer, [b"x"], START)
        bench.allocation.forward(newer, [b"y"], START)
        self.assertEqual(bench.device.payloads, [b"x", b"y"])

    def test_without_a_counterpart_it_is_dropped_and_neither_counted_nor_charged(self) -> None:
        bench = Bench(bandwidth=1000, quota=BURST + 10)
        bench.allocation.unbind(bench.peer, START)
        bench.allocation.forward(bench.device, [bytes(100)], START)
        self.assertEqual(bench.dropped, {DropCause.NO_COUNTERPART: (1, 100)})
        self.assertEqual(bench.device.drops, [(DropCause.NO_COUNTERPART, 100)])
        self.assertEqual((bench.allocation.bytes_transferred, bench.counters.bytes_forwarded), (0, 0))
        bench.allocation.bind(bench.peer, START)
        self.assertTrue(bench.send(BURST))


class CountingTests(SynchronousTestCase):
    """Payload bytes, both directions and streams together, once, when accepted (R3.6, PROTOCOL §6)."""

    def test_both_directions_and_streams_add_up(self) -> None:
        bench = Bench()
        bench.send(100)
        bench.send(30, sender=bench.peer)
        self.assertEqual(bench.grant(7), (7, 0.0))
        self.assertEqual(bench.allocation.bytes_transferred, 137)
        self.assertEqual((bench.counters.bytes_forwarded, bench.counters.packets_forwarded), (137, 2))

    def test_what_is_dropped_later_is_not_refunded(self) -> None:
        bench = Bench()
        bench.send(100)
        bench.allocation.drop(bench.device, DropCause.EGRESS_QUEUE, 100, START)
        self.assertEqual(bench.allocation.bytes_transferred, 100)
        self.assertEqual(bench.dropped, {DropCause.EGRESS_QUEUE: (1, 100)})
        self.assertEqual(bench.device.drops, [(DropCause.EGRESS_QUEUE, 100)])

    def test_a_drop_is_counted_also_when_its_sender_is_gone(self) -> None:
        bench = Bench()
        bench.allocation.drop(None, DropCause.OVERSIZE, 9, START)
        self.assertEqual(bench.dropped, {DropCause.OVERSIZE: (1, 9)})

    def test_activity_is_remembered(self) -> None:
        bench = Bench()
        bench.send(1, after=3.0)
        self.assertEqual(bench.allocation.last_activity, START + 3.0)
        bench.grant(1, after=4.0)
        self.assertEqual(bench.allocation.last_activity, START + 4.0)


class BandwidthTests(SynchronousTestCase):
    """At most limit * t + burst over any t, both directions together; the rest is dropped with its cause (R4.1, R3.5, P2)."""

    def test_the_burst_passes_and_the_next_byte_is_dropped(self) -> None:
        bench = Bench(bandwidth=1000)
        self.assertTrue(bench.send(BURST))
        self.assertFalse(bench.send(1, sender=bench.peer))
        self.assertEqual(bench.dropped, {DropCause.BANDWIDTH: (1, 1)})
        self.assertEqual(bench.peer.drops, [(DropCause.BANDWIDTH, 1)])
        self.assertEqual(bench.allocation.bytes_transferred, BURST)

    def test_the_limit_passes_each_second_and_no_byte_more(self) -> None:
        bench = Bench(bandwidth=1000)
        bench.send(BURST)
        self.assertFalse(bench.send(1001, after=1.0))
        self.assertTrue(bench.send(1000, after=1.0))
        self.assertFalse(bench.send(501, after=1.5))
        self.assertTrue(bench.send(500, after=1.5))

    def test_the_burst_grows_with_the_limit(self) -> None:
        bench = Bench(bandwidth=10_000_000)
        for _ in range(20):
            self.assertTrue(bench.send(50_000))
        self.assertFalse(bench.send(1))

    def test_a_drop_charges_neither_bucket(self) -> None:
        shared = TokenBucket(1000, 100_000, START)
        bench = Bench(bandwidth=1000, shared=shared)
        bench.send(60_000)
        self.assertFalse(bench.send(10_000))
        self.assertEqual(shared.available(START), 40_000)
        self.assertTrue(bench.send(5535))

    def test_without_a_limit_nothing_is_dropped(self) -> None:
        bench = Bench()
        for _ in range(100):
            self.assertTrue(bench.send(65_535))
        self.assertEqual(bench.dropped, {})

    def test_a_limit_that_is_taken_away_or_given_holds_from_then_on(self) -> None:
        bench = Bench(bandwidth=1000)
        bench.send(BURST)
        bench.limit(bandwidth=None)
        self.assertTrue(bench.send(BURST))
        bench.limit(bandwidth=1000)
        self.assertTrue(bench.send(BURST))
        self.assertFalse(bench.send(1))

    def test_another_limit_is_no_new_burst(self) -> None:
        bench = Bench(bandwidth=1000)
        bench.send(BURST)
        bench.limit(bandwidth=2000)
        self.assertFalse(bench.send(1))
        self.assertTrue(bench.send(2000, after=1.0))
        self.assertFalse(bench.send(1, after=1.0))

    @given(
        limit=st.integers(1, 1 << 21),
        schedule=st.lists(
            st.tuples(st.integers(0, 2048), st.integers(0, 65_535), st.sampled_from(("device", "peer", "stream"))),
            min_size=10, max_size=60,
        ),
    )
    def test_no_interval_of_any_schedule_carries_more(self, limit: int, schedule: list[tuple[int, int, str]]) -> None:
        bench = Bench(bandwidth=limit, burst_seconds=0.125)
        burst = max(Fraction(limit, 8), Fraction(BURST))
        ticks = 0
        accepted: list[tuple[int, int]] = []
        for gap, size, what in schedule:
            ticks += gap
            before = bench.allocation.bytes_transferred
            if what == "stream":
                bench.grant(size, ticks / 1024)
            else:
                bench.send(size, ticks / 1024, bench.device if what == "device" else bench.peer)
            accepted.append((ticks, bench.allocation.bytes_transferred - before))
        for first, (begin, _) in enumerate(accepted):
            total = 0
            for end, size in accepted[first:]:
                total += size
                self.assertLessEqual(total, Fraction(limit * (end - begin), 1024) + burst)
        arrived = sum(map(len, bench.device.payloads + bench.peer.payloads))
        self.assertLessEqual(arrived, bench.allocation.bytes_transferred)


class GlobalBandwidthTests(SynchronousTestCase):
    """One bandwidth for all allocations together (R4.3)."""

    def setUp(self) -> None:
        self.shared = TokenBucket(1000, 100_000, START)

    def test_what_one_allocation_takes_the_other_has_not(self) -> None:
        one, other = Bench(shared=self.shared), Bench(shared=self.shared)
        self.assertTrue(one.send(60_000))
        self.assertTrue(other.send(40_000))
        self.assertFalse(one.send(1))
        self.assertFalse(other.send(2))
        self.assertEqual(one.dropped, {DropCause.GLOBAL_BANDWIDTH: (1, 1)})
        self.assertEqual(other.device.drops, [(DropCause.GLOBAL_BANDWIDTH, 2)])
        self.assertTrue(other.send(1000, after=1.0))
        self.assertFalse(one.send(1, after=1.0))

    def test_its_drop_does_not_charge_the_allocation(self) -> None:
        bench = Bench(bandwidth=1, shared=self.shared)
        Bench(shared=self.shared).grant(100_000)
        self.assertFalse(bench.send(50_000))
        self.assertTrue(bench.send(65_535, after=100.0))

    def test_the_own_cap_is_the_cause_when_both_are_reached(self) -> None:
        bench = Bench(bandwidth=1, shared=self.shared)
        bench.send(BURST)
        Bench(shared=self.shared).grant(100_000)
        self.assertFalse(bench.send(1000))
        self.assertEqual(bench.dropped, {DropCause.BANDWIDTH: (1, 1000)})

    def test_streams_take_from_it_too(self) -> None:
        one, other = Bench(shared=self.shared), Bench(shared=self.shared)
        self.assertEqual(one.grant(200_000), (100_000, 0.0))
        size, delay = other.grant(500)
        self.assertEqual((size, delay), (0, 0.5))
        self.assertEqual(other.grant(500, after=delay), (500, 0.0))


class StreamGrantTests(SynchronousTestCase):
    """Streams are delayed by the caps, never dropped, and clamped to the quota (R3.5, R3.7)."""

    def test_as_much_as_the_caps_allow_is_granted(self) -> None:
        bench = Bench(bandwidth=1000)
        self.assertEqual(bench.grant(60_000), (60_000, 0.0))
        self.assertEqual(bench.grant(60_000), (5535, 0.0))

    def test_then_it_waits_as_long_as_the_limit_says(self) -> None:
        bench = Bench(bandwidth=1000)
        bench.grant(BURST)
        self.assertEqual(bench.grant(250), (0, 0.25))
        self.assertEqual(bench.grant(250, after=0.25), (250, 0.0))

    def test_a_long_wait_is_cut_at_a_quarter_of_the_burst(self) -> None:
        bench = Bench(bandwidth=1000)
        bench.grant(BURST)
        size, delay = bench.grant(1_000_000)
        self.assertEqual((size, delay), (0, BURST / 4 / 1000))
        self.assertEqual(bench.grant(1_000_000, after=delay), (BURST // 4, 0.0))

    def test_a_wait_is_never_shorter_than_a_timer_is_worth(self) -> None:
        bench = Bench(bandwidth=100_000_000)
        bench.grant(100_000_000)
        self.assertEqual(bench.grant(1), (0, MIN_STREAM_DELAY))

    def test_only_whole_bytes_are_granted(self) -> None:
        bench = Bench(bandwidth=1000)
        bench.grant(BURST)
        self.assertEqual(bench.grant(100, after=0.0155), (15, 0.0))
        self.assertEqual(bench.grant(1, after=0.0158), (0, MIN_STREAM_DELAY))
        self.assertEqual(bench.grant(1, after=0.0168), (1, 0.0))

    def test_whoever_waits_as_told_gets_every_byte(self) -> None:
        bench = Bench(bandwidth=100_000)
        left, after = 300_000, 0.0
        while left:
            size, delay = bench.grant(min(left, 50_000), after)
            self.assertTrue(size or delay)
            left -= size
            after += delay
        self.assertEqual(bench.allocation.bytes_transferred, 300_000)
        self.assertAlmostEqual(after, (300_000 - BURST) / 100_000, delta=0.002)
        self.assertEqual(bench.dropped, {})

    def test_without_caps_everything_is_granted_at_once(self) -> None:
        self.assertEqual(Bench().grant(10**9), (10**9, 0.0))

    def test_the_quota_is_used_up_to_its_last_byte_and_not_beyond(self) -> None:
        bench = Bench(quota=1000)
        self.assertEqual(bench.grant(600), (600, 0.0))
        self.assertEqual(bench.grant(399), (399, 0.0))
        self.assertEqual(bench.grant(600), (1, 0.0))
        self.assertEqual((bench.allocation.bytes_transferred, bench.events.exceeded), (1000, 0))
        self.assertEqual(bench.grant(1), (0, 0.0))
        self.assertEqual((bench.allocation.bytes_transferred, bench.events.exceeded), (1000, 1))


class QuotaTests(SynchronousTestCase):
    """bytes_transferred never passes the quota, and 90 % of it is told once (R3.7, R4.2, R4.6, P3)."""

    def test_the_last_byte_passes_and_the_next_does_not(self) -> None:
        bench = Bench(quota=1000)
        self.assertTrue(bench.send(999))
        self.assertTrue(bench.send(1, sender=bench.peer))
        self.assertEqual(bench.events.exceeded, 0)
        self.assertFalse(bench.send(1))
        self.assertEqual((bench.events.exceeded, bench.allocation.bytes_transferred), (1, 1000))

    def test_a_payload_that_would_cross_it_passes_not_even_in_part(self) -> None:
        bench = Bench(quota=1000)
        self.assertFalse(bench.send(1001))
        self.assertEqual((bench.events.exceeded, bench.allocation.bytes_transferred), (1, 0))
        self.assertEqual((bench.counters.bytes_forwarded, bench.counters.packets_forwarded), (0, 0))

    def test_the_warning_comes_at_ninety_percent_and_not_a_byte_before(self) -> None:
        bench = Bench(quota=1000)
        bench.send(899)
        self.assertEqual(bench.events.warnings, [])
        bench.send(1)
        self.assertEqual(bench.events.warnings, [900])

    def test_the_warning_comes_once(self) -> None:
        bench = Bench(quota=1000)
        for _ in range(10):
            bench.send(100)
        self.assertEqual(bench.events.warnings, [900])

    def test_streams_are_warned_of_too(self) -> None:
        bench = Bench(quota=1000)
        bench.grant(950)
        self.assertEqual(bench.events.warnings, [950])

    def test_there_is_no_warning_without_a_quota(self) -> None:
        bench = Bench()
        bench.send(60_000)
        bench.grant(10**12)
        self.assertEqual((bench.events.warnings, bench.events.exceeded), ([], 0))

    def test_it_comes_again_when_the_quota_was_raised(self) -> None:
        bench = Bench(quota=1000)
        bench.send(900)
        bench.limit(quota=2000)
        bench.send(899)
        self.assertEqual(bench.events.warnings, [900])
        bench.send(1)
        self.assertEqual(bench.events.warnings, [900, 1800])

    def test_it_does_not_come_again_when_the_quota_was_not_raised(self) -> None:
        for quota in (1000, 950):
            bench = Bench(quota=1000)
            bench.send(900)
            bench.limit(quota=quota)
            bench.send(10)
            self.assertEqual(bench.events.warnings, [900])

    def test_it_comes_when_a_lower_quota_is_nearly_used(self) -> None:
        bench = Bench(quota=1000)
        bench.send(500)
        bench.limit(quota=550)
        bench.send(1)
        self.assertEqual(bench.events.warnings, [501])

    def test_it_comes_at_ninety_percent_of_odd_quotas(self) -> None:
        for quota in range(1, 200):
            bench = Bench(quota=quota)
            for _ in range(quota):
                bench.send(1)
            self.assertEqual(bench.events.warnings, [-(-9 * quota // 10)], quota)

    @given(
        quota=st.integers(1, 5000),
        steps=st.lists(st.tuples(st.sampled_from(("device", "peer", "stream")), st.integers(0, 1500)), min_size=5, max_size=40),
    )
    def test_no_traffic_passes_it(self, quota: int, steps: list[tuple[str, int]]) -> None:
        bench = Bench(quota=quota)
        granted = 0
        for what, size in steps:
            before, exceeded = bench.allocation.bytes_transferred, bench.events.exceeded
            if what == "stream":
                granted += bench.grant(size)[0]
            else:
                sent = bench.send(size, sender=bench.device if what == "device" else bench.peer)
                self.assertEqual(sent, before + size <= quota)
                self.assertEqual(bench.events.exceeded - exceeded, not sent)
        arrived = sum(map(len, bench.device.payloads + bench.peer.payloads))
        self.assertEqual(bench.allocation.bytes_transferred, arrived + granted)
        self.assertLessEqual(bench.allocation.bytes_transferred, quota)
        self.assertEqual(len(bench.events.warnings), bench.allocation.bytes_transferred * 10 >= quota * 9)
