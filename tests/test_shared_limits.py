"""Limits in shared memory: equal to those of one process whoever comes when, and sound after any of them was killed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.fakes import DEVICE, OPEN_TIER, START, FakeEvents, Scene, make_token, public
from tests.limits_support import KEY, Killed, Memory, mortal
from zrc_relay.core.admission import BUCKETS, TABLES
from zrc_relay.core.allocation import MIN_STREAM_DELAY, Allocation
from zrc_relay.core.codes import Role
from zrc_relay.core.counters import Counters
from zrc_relay.core.keys import Device, DeviceKeys
from zrc_relay.core.limiter import TokenBucket, bandwidth_burst
from zrc_relay.core.limits import Lack, LocalPlaces
from zrc_relay.core.relay import Policy, Relay
from zrc_relay.core.routing import Share
from zrc_relay.core.shared import BANDWIDTH, RESERVED, Layout, SharedLimits
from zrc_relay.core.sharedbuckets import BUCKET_SIZE, MIN_LEASE, LeasedBucket, lease_of
from zrc_relay.core.sharedplaces import BIN
from zrc_relay.core.sharing import View, name_of
from zrc_relay.core.sources import MAX_SOURCES, Rate, SourceLimiter

EXAMPLES = 200
TICKS = 1024
"""Ticks a second: such times are exact as floats."""
_workers = st.integers(0, 2)
_rates = st.one_of(st.none(), st.builds(Rate, st.integers(1, 8), st.integers(1, 100)))


def numbered(number: int) -> bytes:
    """A device id."""
    return number.to_bytes(32, "big")


class SourcesTests(SynchronousTestCase):
    """R6.1: whatever comes to whom and when, it is as if it had come to one."""

    @settings(max_examples=EXAMPLES)
    @given(_rates, st.lists(
        st.tuples(_workers, st.floats(0, 40), st.sampled_from(("take", "wait", "rate")), st.integers(0, 4), _rates),
        min_size=10, max_size=80,
    ))
    def test_three_are_as_one(
        self, rate: Rate | None, steps: list[tuple[int, float, str, int, Rate | None]]
    ) -> None:
        memory = Memory(3)
        tables = [limits.sources("stun", rate, START) for limits in memory.limits]
        model, now = SourceLimiter(rate), START
        for worker, pause, what, source, changed in steps:
            now += pause
            table = tables[worker]
            if what == "take":
                self.assertEqual(table.take(source, now), model.take(source, now))
            elif what == "wait":
                self.assertEqual(table.wait(source, now), model.wait(source, now))
            else:
                model.set_rate(changed, now)
                for each in (table, *tables):
                    each.set_rate(changed, now)
            self.assertEqual({len(each) for each in tables}, {len(model)})

    def test_who_is_new_finds_what_the_others_know(self) -> None:
        memory = Memory(3)
        first = memory.limits[0].sources("stun", Rate(3, 60), START)
        self.assertEqual([first.take(1, START) for _ in range(2)], [True] * 2)
        second = memory.limits[1].sources("stun", Rate(3, 60), START + 1)
        self.assertEqual([second.take(1, START + 1) for _ in range(2)], [True, False])
        again = memory.limits[0].sources("stun", Rate(3, 60), START + 1)
        self.assertFalse(again.take(1, START + 1))
        self.assertEqual(len(again), 1)

    def test_nobody_is_let_off_by_clocks_that_are_read_at_different_times(self) -> None:
        tables = [limits.sources("stun", Rate(10, 60), START) for limits in Memory(3).limits]
        granted = sum(tables[number % 3].take(1, START - 0.005 * (number % 3)) for number in range(60))
        self.assertEqual(granted, 10)

    def test_a_huge_rate_is_one_that_nobody_reaches(self) -> None:
        table = Memory(1).limits[0].sources("stun", Rate(10**15, 1), START)
        self.assertTrue(all(table.take(1, START) for _ in range(1000)))

    def test_what_is_unknown_or_off_costs_no_guard(self) -> None:
        memory = Memory(2)
        table = memory.limits[0].sources("stun", Rate(10, 60), START)
        off = memory.limits[0].sources("rejoins", None, START)
        before = memory.guards
        for source in range(100):
            self.assertEqual((table.wait(source, START), off.wait(source, START), off.take(source, START)), (0, 0, True))
        self.assertEqual(memory.guards, before)


class BoundTests(SynchronousTestCase):
    """R6.9: a table has its size, and forgets those who have the least left to wait for."""

    def test_as_many_as_are_to_be_remembered_nearly_all_are(self) -> None:
        limits = Memory(1, source_slots=2 * MAX_SOURCES).limits[0]
        table = limits.sources("stun", Rate(1, 3600), START)
        for source in range(MAX_SOURCES):
            table.take(source, START)
        self.assertTrue(0.999 * MAX_SOURCES <= len(table) <= MAX_SOURCES, len(table))

    def test_it_never_holds_more_than_its_slots(self) -> None:
        table = Memory(2, source_slots=64).limits[0].sources("stun", Rate(5, 3600), START)
        for source in range(5000):
            self.assertTrue(table.take(source, START))
        self.assertEqual(len(table), 64)

    def test_who_goes_on_is_not_forgotten_for_a_flood_of_others(self) -> None:
        table = Memory(1, source_slots=64).limits[0].sources("stun", Rate(5, 3600), START)
        for _ in range(2):
            table.take(1, START)
        for number in range(5000):
            table.take(1000 + number, START + number / 100)
        self.assertEqual([table.take(1, START + 50) for _ in range(4)], [True] * 3 + [False])
        self.assertFalse(table.take(1, START + 50), "a refusal is not forgotten either")

    def test_whose_time_is_over_goes_before_all_others(self) -> None:
        table = Memory(1, source_slots=64).limits[0].sources("stun", Rate(1, 10), START)
        for source in range(16):
            table.take(source, START)
        for source in range(100, 116):
            table.take(source, START + 11)
        self.assertTrue(all(table.wait(source, START + 11) for source in range(100, 116)))

    def test_who_competes_with_whom_hangs_on_the_key(self) -> None:
        self.assertNotEqual(name_of(b"x", KEY), name_of(b"x", bytes(16)))
        self.assertEqual(name_of(b"x", KEY), name_of(b"x", KEY))
        together = [source for source in range(2000) if name_of(source.to_bytes(9, "little"), KEY) % 4 == 0][:40]
        for key, remembered in ((KEY, 16), (b"another key of 16"[:16], 30)):
            table = Memory(1, source_slots=64, key=key).limits[0].sources("stun", Rate(5, 3600), START)
            for source in together:
                table.take(source, START)
            self.assertGreaterEqual(len(table), remembered)
            self.assertEqual(len(table) == 16, key is KEY)


class BandwidthTests(SynchronousTestCase):
    """R4.1: over any interval all workers together take at most limit * t + burst, and one alone gets all of that."""

    @settings(max_examples=EXAMPLES)
    @given(
        holders=st.sampled_from((1, 2, 4)), rate=st.integers(1, 1 << 20), burst=st.integers(65_535, 1 << 20),
        schedule=st.lists(
            st.tuples(
                st.integers(0, 3), st.integers(0, 4096), st.integers(0, 70_000),
                st.sampled_from(("take", "take", "part", "look", "rest")),
            ),
            min_size=10, max_size=60,
        ),
    )
    def test_no_interval_of_any_schedule_takes_more(
        self, holders: int, rate: int, burst: int, schedule: list[tuple[int, int, int, str]]
    ) -> None:
        buckets = self.buckets(holders, rate, burst)
        ticks = 0
        taken: list[tuple[int, int]] = []
        for who, gap, amount, what in schedule:
            ticks += gap
            bucket, now = buckets[who % holders], ticks / TICKS
            if what == "rest":
                bucket.rest(now)
                continue
            size = min(amount, int(bucket.available(now, amount)))
            if what == "part":
                size //= 3
            elif what == "look":
                size = 0
            bucket.tokens -= size
            bucket.trim(now)
            taken.append((ticks, size))
            self.assertLessEqual(bucket.tokens, lease_of(rate, burst, holders))
        for first, (begin, _) in enumerate(taken):
            total = 0
            for end, amount in taken[first:]:
                total += amount
                self.assertLessEqual(total, Fraction(rate * (end - begin), TICKS) + burst)

    @settings(max_examples=EXAMPLES)
    @given(
        rate=st.integers(1, 1 << 20), burst=st.integers(0, 65_535),
        schedule=st.lists(st.tuples(_workers, st.integers(0, 4096), st.integers(0, 70_000)), min_size=10, max_size=60),
    )
    def test_a_bucket_of_which_nothing_is_leased_is_as_one_of_one_process(
        self, rate: int, burst: int, schedule: list[tuple[int, int, int]]
    ) -> None:
        buckets, model, ticks = self.buckets(3, rate, burst), TokenBucket(rate, burst, 0.0), 0
        for who, gap, amount in schedule:
            ticks += gap
            bucket, now = buckets[who], ticks / TICKS
            self.assertEqual(bucket.wait(amount, now), model.wait(amount, now))
            self.assertEqual(bucket.take(amount, now), model.take(amount, now))
            self.assertEqual(bucket.tokens, 0)

    def buckets(self, holders: int, rate: float, burst: float) -> list[LeasedBucket]:
        """How each of ``holders`` has a bucket with a burst that is exact to the byte."""
        memory = Memory(holders)
        views = [View(memoryview(memory.content), memory.guard, Share(index, holders), KEY) for index in range(holders)]
        return [LeasedBucket(view, RESERVED, rate, burst, 0.0, holders=holders) for view in views]

    def test_one_alone_gets_the_limit_when_the_others_have_become_idle(self) -> None:
        for limit in (100_000, 1_250_000, 125_000_000):
            memory = Memory(4)
            buckets = [limits.bandwidth(limit, 0.1, START) for limits in memory.limits]
            for bucket in buckets:
                bucket.take(1, START)
            taken, now = 0, START
            for tick in range(4000):
                now = START + tick / 2000
                if tick % 500 == 0:
                    for limits in memory.limits:
                        limits.rest(now)
                wanted = int(limit / 2000 * 1.5)
                size = min(wanted, int(buckets[0].available(now, wanted)))
                buckets[0].tokens -= size
                buckets[0].trim(now)
                taken += size
            self.assertLessEqual(taken, limit * (now - START) + bandwidth_burst(limit, 0.1))
            self.assertGreaterEqual(taken, 0.97 * limit * (now - START))

    def test_what_is_not_used_goes_back_when_it_is_idle_and_not_before(self) -> None:
        memory = Memory(2)
        one, two = (limits.bandwidth(10_000_000, 0.1, START) for limits in memory.limits)
        whole = two.available(START, 1 << 40)
        two.trim(START)
        memory.limits[1].rest(START)
        memory.limits[1].rest(START)
        self.assertEqual(two.tokens, 0)
        self.assertTrue(one.take(1000, START))
        for _ in range(3):
            memory.limits[0].rest(START)
            self.assertGreater(one.tokens, 0)
            one.tokens -= 1000
        memory.limits[0].rest(START)
        memory.limits[0].rest(START)
        self.assertEqual(one.tokens, 0)
        self.assertEqual(two.available(START, 1 << 40), whole - 4000)

    def test_of_what_a_stream_was_granted_not_even_a_fraction_is_kept(self) -> None:
        bucket = Memory(2).limits[0].bandwidth(1000, 0.1, START)
        allocation = Allocation(
            make_token(), OPEN_TIER, now=START, burst_seconds=0.1, global_bucket=bucket, counters=Counters(), events=FakeEvents(),
        )
        self.assertEqual(allocation.grant_stream_bytes(100_000, START), (65_535, 0.0))
        self.assertEqual(allocation.grant_stream_bytes(100_000, START + 0.0625), (62, 0.0))
        self.assertEqual(bucket.tokens, 0)
        self.assertEqual(allocation.grant_stream_bytes(1, START + 0.0625), (0, MIN_STREAM_DELAY))
        self.assertEqual(bucket.tokens, 0)

    def test_packets_are_paid_from_the_lease(self) -> None:
        memory = Memory(4)
        buckets = [limits.bandwidth(125_000_000, 0.1, START) for limits in memory.limits]
        before = memory.guards
        taken = sum(buckets[tick % 2].take(1200, START + tick / 100_000) for tick in range(100_000))
        self.assertEqual(taken, 100_000)
        self.assertLessEqual(memory.guards - before, 700, "500 leases a second, and some")

    def test_the_longest_payload_fits_and_leases_are_no_more_than_half_of_the_burst(self) -> None:
        for holders in (1, 2, 7, 64):
            for limit in (1000, 655_350, 700_000, 10_000_000, 10**9, 10**13):
                burst = bandwidth_burst(limit, 0.1)
                lease = lease_of(limit, burst, holders)
                self.assertGreaterEqual(burst - holders * lease, max(65_535, burst / 2))
                self.assertLessEqual(lease, max(MIN_LEASE, limit * 0.002))
                self.assertTrue(Memory(holders).limits[0].bandwidth(limit, 0.1, START).take(65_535, START))


class PlacesTests(SynchronousTestCase):
    """R4.4: whoever takes and leaves, there are as many places as there may be, and the dead hold none."""

    @settings(max_examples=EXAMPLES)
    @given(st.lists(
        st.tuples(_workers, st.sampled_from(("take", "take", "take", "leave", "forget")), st.integers(0, 3), st.integers(1, 6)),
        min_size=10, max_size=80,
    ))
    def test_three_are_as_one(self, steps: list[tuple[int, str, int, int]]) -> None:
        memory = Memory(3)
        model = LocalPlaces()
        held: list[Counter[bytes]] = [Counter(), Counter(), Counter()]
        for worker, what, number, maximum in steps:
            places, name = memory.limits[worker].places, numbered(number)
            if what == "take":
                lack = model.lack(name, 9, maximum)
                self.assertEqual(places.lack(name, 9, maximum), lack)
                self.assertEqual((places.take(name, 9, maximum), model.take(name, 9, maximum)), (lack, lack))
                held[worker][name] += lack is None
            elif what == "leave" and held[worker][name]:
                places.leave(name)
                model.leave(name)
                held[worker][name] -= 1
            elif what == "leave":
                self.assertRaises(KeyError, places.leave, name)
            else:
                memory.limits[(worker + 1) % 3].forget(worker)
                for each in held[worker].elements():
                    model.leave(each)
                held[worker].clear()
            self.assertEqual({len(limits.places) for limits in memory.limits}, {len(model)})
            for limits, mine in zip(memory.limits, held, strict=True):
                self.assertEqual([limits.places.holds(numbered(n)) for n in range(4)], [mine[numbered(n)] > 0 for n in range(4)])

    def test_slots_are_free_again_however_many_devices_come_and_go(self) -> None:
        memory = Memory(2, device_slots=BIN)
        one, two = (limits.places for limits in memory.limits)
        for number in range(1000):
            self.assertIsNone(one.take(numbered(number), 1000, 1))
            self.assertIsNone(two.take(numbered(number), 1000, 2))
            one.leave(numbered(number))
            two.leave(numbered(number))
        self.assert_empty(memory)

    def test_a_device_for_which_there_is_no_slot_gets_no_place(self) -> None:
        one, two = (limits.places for limits in Memory(2, device_slots=BIN).limits)
        self.assertEqual([one.take(numbered(number), 1000, None) for number in range(BIN)], [None] * BIN)
        self.assertEqual(two.take(numbered(BIN), 1000, None), Lack(is_of_device=False, held=BIN))
        self.assertIsNone(two.take(numbered(0), 1000, None), "who has a slot has one")
        one.leave(numbered(7))
        self.assertIsNone(two.take(numbered(BIN), 1000, None))

    def test_a_quarter_of_all_slots_is_always_there(self) -> None:
        places = Memory(1, device_slots=4096).limits[0].places
        self.assertEqual({places.take(numbered(number), 10_000, 1) for number in range(1024)}, {None})

    def test_who_forgets_lets_others_have_their_turn(self) -> None:
        memory = Memory(2, device_slots=4 * 8192)
        for number in range(100):
            memory.limits[0].places.take(numbered(number), 1000, None)
        before = memory.guards
        memory.limits[1].forget(0)
        self.assertEqual(memory.guards - before, 5)
        self.assert_empty(memory)

    def assert_empty(self, memory: Memory) -> None:
        """Nothing is left of any place."""
        self.assertEqual(set(memory.content[memory.layout.places :]), {0})


class KilledTests(SynchronousTestCase):
    """R5.6: a worker that is killed while it writes, after whichever word, leaves limits that hold, and blocks nobody."""

    def kill(self, do: Callable[[], object]) -> bool:
        """Whether it dies on the way."""
        try:
            do()
        except Killed:
            return True
        return False

    def test_while_it_counts_a_source(self) -> None:
        for known in (False, True):
            for stores in range(1, 6):
                memory = Memory(2, source_slots=64)
                victim, other = (limits.sources("stun", Rate(3, 60), START) for limits in memory.limits)
                for source in range(200):
                    other.take(source, START + source / 100)
                if known:
                    other.take(999, START + 2)
                before = {source: other.wait(source, START + 2) for source in range(200)}
                remembered = len(other)
                mortal(victim, "_words", "_times").stores = stores
                died = self.kill(partial(victim.take, 999, START + 2))
                self.assertEqual(died, stores <= (1 if known else 3))
                lost = [source for source in range(200) if other.wait(source, START + 2) != before[source]]
                self.assertEqual(lost, [], "nobody waits longer or shorter for it")
                self.assertIn(sum(other.take(999, START + 2) for _ in range(5)), (1, 2) if known else (2, 3))
                self.assertIn(len(other), (remembered, remembered - 1, remembered + 1))

    def test_while_it_changes_a_rate(self) -> None:
        after = Rate(6, 10)
        stores = 0
        died = True
        while died:
            stores += 1
            memory = Memory(2, source_slots=64)
            victim, other = (limits.sources("stun", Rate(3, 60), START) for limits in memory.limits)
            for source in range(12):
                for _ in range(source % 4):
                    other.take(source, START + 5 * source)
            mortal(victim, "_words", "_times").stores = stores
            died = self.kill(partial(victim.set_rate, after, START + 60))
            other.set_rate(after, START + 60)
            for source in range(12):
                self.assertLessEqual(other.wait(source, START + 60), 10)
                self.assertLessEqual(sum(other.take(source, START + 60) for _ in range(9)), 6)
                self.assertEqual(sum(other.take(source, START + 80) for _ in range(9)), 6)
        self.assertGreater(stores, 10)

    def test_while_it_takes_or_brings_back_tokens(self) -> None:
        for what in ("take", "trim", "set_rate"):
            for stores in range(1, 7):
                victim, other = (limits.bandwidth(1_000_000, 0.1, START) for limits in Memory(2).limits)
                other.take(30_000, START)
                victim.available(START + 0.001, 20_000)
                life = mortal(victim, "_cells")
                life.stores = stores
                if what == "take":
                    self.kill(partial(victim.take, 40_000, START + 0.01))
                elif what == "trim":
                    self.kill(partial(victim.trim, START + 0.01))
                else:
                    self.kill(partial(victim.set_rate, 500_000, 65_535, START + 0.01))
                    other.set_rate(500_000, 65_535, START + 0.01)
                got = other.available(START + 0.01, 1 << 40)
                self.assertLessEqual(got, 100_000 - 30_000 + 10_000)
                other.tokens = 0.0
                gained = other.available(START + 0.02, 1 << 40)
                self.assertLess(abs(gained - (5_000 if what == "set_rate" else 10_000)), 0.1, what)

    def test_between_the_time_and_the_tokens_of_a_bucket(self) -> None:
        for stores in (1, 2):
            victim, other = (limits.bucket("all_refusals", 10, 100, START) for limits in Memory(2).limits)
            other.take(100, START)
            mortal(victim, "_cells").stores = stores
            self.assertTrue(self.kill(partial(victim.take, 10, START + 5)))
            self.assertLessEqual(other.available(START + 5, 1000), 50, "what was gained is not gained once more")

    def test_while_it_makes_the_bucket(self) -> None:
        for stores in range(1, 6):
            memory = Memory(2)
            victim = memory.limits[0].bucket("all_refusals", 5, 5, START)
            memory.content[:] = bytes(len(memory.content))
            mortal(victim, "_cells").stores = stores
            self.assertTrue(self.kill(partial(victim.set_rate, 10, 5, START)))
            other = memory.limits[1].bucket("all_refusals", 10, 5, START + 1)
            self.assertEqual([other.take(1, START + 1) for _ in range(7)], [True] * 5 + [False] * 2)
            self.assertEqual([other.take(1, START + 1.25) for _ in range(3)], [True] * 2 + [False])

    def test_while_it_takes_or_leaves_a_place(self) -> None:
        for what in ("take", "take another", "leave", "leave one of two"):
            for stores in range(1, 4):
                memory = Memory(2, device_slots=BIN)
                victim, other = (limits.places for limits in memory.limits)
                other.take(numbered(1), 4, 2)
                for name in {"take": (), "take another": (0,), "leave": (0,), "leave one of two": (0, 0)}[what]:
                    victim.take(numbered(name), 4, None)
                mortal(victim, "_names", "_mine", "_held").stores = stores
                if what.startswith("take"):
                    self.kill(partial(victim.take, numbered(0), 4, None))
                else:
                    self.kill(partial(victim.leave, numbered(0)))
                memory.limits[1].forget(0)
                self.assertEqual((len(other), other.holds(numbered(1))), (1, True))
                full = Lack(is_of_device=True, held=2)
                self.assertEqual([other.take(numbered(0), 4, 2) for _ in range(3)], [None, None, full])
                self.assertEqual([other.take(numbered(2), 4, 2) for _ in range(2)], [None, Lack(is_of_device=False, held=4)])
                for number in (0, 0, 1, 2):
                    other.leave(numbered(number))
                self.assertEqual(set(memory.content[memory.layout.places :]), {0})


class RelayTests(SynchronousTestCase):
    """R4.1, R4.4: relays that are given limits use them."""

    def scene(self, limits: SharedLimits) -> Scene:
        """One of the relays."""
        scene = Scene()
        old = scene.relay.policy
        policy = Policy(
            old.relay_id, old.instance_id, old.default_tier, max_allocations=1, global_bandwidth_limit=10_000_000,
        )
        scene.relay = Relay(policy, DeviceKeys([Device(public(DEVICE))]), scene.observer, now=scene.now, limits=limits)
        return scene

    def test_what_one_of_them_does_the_others_know(self) -> None:
        memory = Memory(2)
        one, two = (self.scene(limits) for limits in memory.limits)
        one.bind(Role.DEVICE)
        self.assertEqual([scene.relay.table.load for scene in (one, two)], [100, 100])
        self.assertRaisesRegex(AssertionError, "the relay is full", two.bind, Role.DEVICE)
        one.advance(100_000)
        two.bind(Role.DEVICE)

    def test_an_idle_relay_keeps_nothing_of_the_bandwidth(self) -> None:
        memory = Memory(2)
        one = self.scene(memory.limits[0])
        one.pair()
        self.assertTrue(one.allocation().admit_all(1000, 1, one.now))
        other = memory.limits[1].bandwidth(10_000_000, 0.1, one.now)
        whole = other.burst
        self.assertLess(other.available(one.now, 1 << 40), whole)
        other.trim(one.now)
        other.rest(one.now)
        other.rest(one.now)
        for _ in range(2):
            one.relay.sweep(one.now, one.wall)
        self.assertEqual(other.available(one.now, 1 << 40), whole - 1000)

    def test_a_limit_that_changes_is_changed_for_all(self) -> None:
        memory = Memory(2)
        one = self.scene(memory.limits[0])
        device, _ = one.pair()
        keys = DeviceKeys([Device(public(DEVICE))])
        old = one.relay.policy
        for limit in (None, 655_350):
            one.relay.reconfigure(
                Policy(old.relay_id, old.instance_id, old.default_tier, global_bandwidth_limit=limit), keys, one.now, one.wall)
            passed = one.allocation().admit(device.session, [bytes(70_000)], 0, one.now)
            self.assertEqual(len(passed), limit is None)
        other = memory.limits[1].bandwidth(655_350, 0.1, one.now)
        self.assertTrue(other.take(65_535, one.now))
        self.assertFalse(one.allocation().admit_all(1, 1, one.now))


class LayoutTests(SynchronousTestCase):
    """Every part of the memory has bytes of its own."""

    def test_parts_follow_each_other_and_begin_at_lines(self) -> None:
        for workers in (1, 3, 8, 64):
            layout = Layout(workers, 128, 64)
            starts = [layout.bucket(name) for name in (BANDWIDTH, *BUCKETS)]
            starts += [layout.sources(name) for name in TABLES]
            starts += [layout.places, layout.size]
            self.assertEqual(starts[0], RESERVED)
            self.assertEqual({start % 64 for start in starts}, {0})
            self.assertEqual({late - early for early, late in pairwise(starts[:4])}, {BUCKET_SIZE})
            sizes = {late - early for early, late in pairwise(starts[3:11])}
            self.assertEqual(len(sizes), 1)
            self.assertGreaterEqual(sizes.pop(), 128 * 16 + (1 + workers) * 8)
            self.assertEqual(layout.size - layout.places, -(-workers * 8 // 64) * 64 + 64 * (8 + 4 * workers))

    def test_what_there_is_not_is_refused(self) -> None:
        layout = Layout(2, 128, 64)
        self.assertRaises(ValueError, layout.bucket, "x")
        self.assertRaises(ValueError, layout.sources, "x")
        for slots in ((100, 64), (128, 65), (0, 64), (128, 0)):
            self.assertRaises(ValueError, Layout, 2, *slots)
        memory = memoryview(bytearray(layout.size))
        self.assertRaises(ValueError, SharedLimits, memory, Memory(2).guard, Share(0, 3), key=KEY, layout=layout)
