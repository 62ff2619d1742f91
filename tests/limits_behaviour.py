"""What limits do, whoever counts them: ``test_limits`` runs this for a relay of one process and for one of several."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import count
from typing import TypeVar

from twisted.trial.unittest import SynchronousTestCase

from tests.fakes import DEVICE, EPOCH, OPEN_TIER, START, FakeEvents, FakeMember, id_of, make_token, refusal_of
from zrc_relay.core.admission import REFUSALS, REFUSALS_PER_SECOND, TABLES, Admission, AdmissionSettings, Verdict
from zrc_relay.core.allocation import Allocation
from zrc_relay.core.authorisation import Refused
from zrc_relay.core.cidr import AccessLists
from zrc_relay.core.codes import DropCause, ErrorCode, Role, TerminationReason
from zrc_relay.core.counters import Counters
from zrc_relay.core.limits import Bucket, Lack, Limits, Places, Sources
from zrc_relay.core.sources import Rate, numeric
from zrc_relay.core.table import AllocationTable
from zrc_relay.core.tiers import Tier

WORKERS = 3
T = TypeVar("T")
ADDRESS = numeric("192.0.2.1")
A, B = (bytes((letter,)) * 32 for letter in b"ab")


class Turns:
    """The same things as several processes have them; each ``next`` is the next one's turn."""

    def __init__(self, limits: list[Limits]) -> None:
        self.limits = limits
        self._turn = count()

    def each(self, make: Callable[[Limits], T]) -> Callable[[], T]:
        """What ``make`` makes of each one's limits, given out in turn."""
        made = [make(limits) for limits in self.limits]
        return lambda: made[next(self._turn) % len(made)]

    def sources(self, rate: Rate | None, name: str = "stun") -> Callable[[], Sources]:
        """A table of sources."""
        return self.each(lambda limits: limits.sources(name, rate, START))

    def places(self) -> Callable[[], Places]:
        """The places."""
        return self.each(lambda limits: limits.places)

    def bucket(self, rate: float, burst: float) -> Callable[[], Bucket]:
        """A bucket."""
        return self.each(lambda limits: limits.bucket("all_refusals", rate, burst, START))


class Behaviour(SynchronousTestCase, ABC):
    """R4.1, R4.4, R6.1 on limits as they are counted; subclasses say where."""

    @abstractmethod
    def turns(self) -> Turns:
        """Limits of one relay, whose processes take turns."""


class SourcesBehaviour(Behaviour):
    """R6.1: each source has its rate, whichever process it comes to."""

    def test_a_source_may_do_all_of_it_at_once_and_then_go_on_at_the_rate(self) -> None:
        table = self.turns().sources(Rate(30, 60))
        self.assertEqual([table().take(1, START) for _ in range(40)], [True] * 30 + [False] * 10)
        self.assertEqual([table().take(1, START + later) for later in (1.9, 2.0, 3.9, 4.0)], [False, True, False, True])
        self.assertTrue(all(table().take(2, START) for _ in range(30)))

    def test_everybody_tells_the_same_wait_and_looking_counts_nothing(self) -> None:
        table = self.turns().sources(Rate(2, 60))
        self.assertEqual([table().wait(1, START) for _ in range(6)], [0] * 6)
        for _ in range(2):
            table().take(1, START)
        self.assertEqual([table().wait(1, START + 10) for _ in range(6)], [20] * 6)
        self.assertEqual([table().wait(1, START + 30) for _ in range(6)], [0] * 6)

    def test_a_source_is_remembered_once(self) -> None:
        table = self.turns().sources(Rate(30, 60))
        for source in (1, 2, 1 << 64, 1, 2, 1 << 64, 1):
            table().take(source, START)
        self.assertEqual([len(table()) for _ in range(3)], [3, 3, 3])

    def test_off_holds_nobody_and_keeps_nothing(self) -> None:
        table = self.turns().sources(None)
        self.assertTrue(all(table().take(1, START) for _ in range(100)))
        self.assertEqual((table().wait(1, START), len(table())), (0, 0))

    def test_tables_have_nothing_to_do_with_each_other(self) -> None:
        turns = self.turns()
        for name in TABLES:
            table = turns.sources(Rate(2, 60), name)
            self.assertEqual([table().take(1, START) for _ in range(3)], [True, True, False], name)

    def test_a_new_rate_is_put_in_force_once_however_many_say_so(self) -> None:
        table = self.turns().sources(Rate(10, 60))
        for _ in range(10):
            table().take(1, START)
        for _ in range(WORKERS):
            table().set_rate(Rate(30, 60), START)
        self.assertEqual([table().take(1, START) for _ in range(25)], [True] * 20 + [False] * 5)
        for _ in range(WORKERS):
            table().set_rate(Rate(2, 10), START)
        self.assertEqual([round(table().wait(1, START), 3) for _ in range(3)], [5.0] * 3, "one period's worth, of the new rate")

    def test_off_and_on_again_begins_anew(self) -> None:
        table = self.turns().sources(Rate(3, 60))
        for rate in (None, Rate(4, 60)):
            for _ in range(5):
                table().take(1, START)
            for _ in range(WORKERS):
                table().set_rate(rate, START)
        self.assertEqual(len(table()), 0)
        self.assertEqual([table().take(1, START) for _ in range(5)], [True] * 4 + [False])

    def test_who_has_nothing_outstanding_is_forgotten_when_the_rate_changes(self) -> None:
        table = self.turns().sources(Rate(3, 60))
        table().take(1, START)
        table().take(2, START + 15)
        for _ in range(WORKERS):
            table().set_rate(Rate(5, 60), START + 30)
        self.assertEqual(len(table()), 1)
        self.assertEqual([table().take(2, START + 30) for _ in range(6)], [True] * 4 + [False] * 2)


class BucketBehaviour(Behaviour):
    """R6.9: what all sources share is shared by all processes."""

    def test_tokens_are_taken_from_one_bucket(self) -> None:
        bucket = self.turns().bucket(10, 5)
        self.assertEqual([bucket().take(1, START) for _ in range(7)], [True] * 5 + [False] * 2)
        self.assertEqual([bucket().take(2, START + 0.3) for _ in range(2)], [True, False])
        self.assertEqual([bucket().take(amount, START + 0.3) for amount in (1, 1)], [True, False])

    def test_waiting_is_for_the_tokens_that_all_have(self) -> None:
        bucket = self.turns().bucket(10, 5)
        self.assertEqual(bucket().wait(5, START), 0)
        bucket().take(5, START)
        self.assertEqual([bucket().wait(5, START + 0.25) for _ in range(3)], [0.25] * 3)

    def test_time_that_stands_still_or_goes_back_gains_nothing(self) -> None:
        bucket = self.turns().bucket(10, 5)
        bucket().take(5, START + 1)
        self.assertEqual([bucket().take(1, START + later) for later in (0.5, 1.0, 1.05, 1.1, 1.1)], [False] * 3 + [True, False])

    def test_what_is_taken_by_a_clock_that_is_behind_gains_nothing_for_the_others(self) -> None:
        bucket = self.turns().bucket(10, 5)
        self.assertEqual([bucket().take(4, START + 1), bucket().take(1, START + 0.5)], [True, True])
        self.assertEqual([bucket().take(1, START + 1), bucket().take(1, START + 1.125)], [False, True])

    def test_a_new_rate_keeps_what_was_gained_and_is_put_in_force_once(self) -> None:
        bucket = self.turns().bucket(10, 100)
        bucket().take(100, START)
        for _ in range(WORKERS):
            bucket().set_rate(20, 200, START + 4)
        self.assertEqual([bucket().take(amount, START + 4) for amount in (41, 40, 1)], [False, True, False])
        self.assertEqual([bucket().take(amount, START + 5) for amount in (20, 1)], [True, False])
        for _ in range(WORKERS):
            bucket().set_rate(20, 10, START + 100)
        self.assertEqual([bucket().take(amount, START + 100) for amount in (11, 10, 1)], [False, True, False])


class PlacesBehaviour(Behaviour):
    """R4.4: places in all, and for each device."""

    def test_there_are_so_many_and_no_more(self) -> None:
        places = self.turns().places()
        self.assertEqual([places().take(bytes((n,)) * 32, 5, None) for n in range(5)], [None] * 5)
        self.assertEqual([places().take(A, 5, None) for _ in range(3)], [Lack(is_of_device=False, held=5)] * 3)
        self.assertEqual([len(places()) for _ in range(3)], [5] * 3)

    def test_each_device_has_so_many_and_no_more(self) -> None:
        places = self.turns().places()
        self.assertEqual([places().take(A, 100, 4) for _ in range(6)], [None] * 4 + [Lack(is_of_device=True, held=4)] * 2)
        self.assertEqual([places().take(B, 100, 4) for _ in range(6)], [None] * 4 + [Lack(is_of_device=True, held=4)] * 2)
        self.assertEqual(places().take(A, 100, 5), None)
        self.assertEqual(places().take(A, 100, None), None)
        self.assertEqual(len(places()), 10)

    def test_looking_takes_nothing_and_says_what_taking_would(self) -> None:
        places = self.turns().places()
        self.assertEqual([places().lack(A, 1, 1) for _ in range(3)], [None] * 3)
        places().take(A, 2, 1)
        self.assertEqual(places().lack(A, 2, 1), Lack(is_of_device=True, held=1))
        self.assertEqual(places().lack(A, 1, 1), Lack(is_of_device=False, held=1))
        self.assertEqual([places().lack(B, 2, 1) for _ in range(3)], [None] * 3)

    def test_what_is_left_is_there_again(self) -> None:
        for limits in self.turns().limits:
            one = limits.places
            for _ in range(300):
                self.assertEqual([one.take(A, 3, 2), one.take(A, 3, 2), one.take(B, 3, 2)], [None] * 3)
                for device in (A, B, A):
                    one.leave(device)
            self.assertEqual((len(one), one.holds(A), one.holds(B)), (0, False, False))

    def test_a_place_that_is_not_held_cannot_be_left(self) -> None:
        one = self.turns().places()()
        self.assertRaises(KeyError, one.leave, A)
        one.take(A, 3, 2)
        self.assertRaises(KeyError, one.leave, B)
        one.leave(A)
        self.assertRaises(KeyError, one.leave, A)
        self.assertEqual(len(one), 0)


class BandwidthBehaviour(Behaviour):
    """R4.1: the limit of all allocations together."""

    LIMIT = 1_000_000
    BURST = 100_000

    def setUp(self) -> None:
        self.buckets = self.turns().each(lambda limits: limits.bandwidth(self.LIMIT, 0.1, START))

    def taken(self, ticks: int, seconds: float = 0.0) -> int:
        """Bytes that they get in turn who ask for 1000 in each of so many ticks."""
        return sum(1000 for tick in range(ticks) if self.buckets().take(1000, START + seconds * tick / ticks))

    def test_all_together_get_the_burst_and_then_the_limit(self) -> None:
        burst = self.taken(300)
        self.assertTrue(0.8 * self.BURST <= burst <= self.BURST, burst)
        later = self.taken(5000, 1.0)
        self.assertTrue(0.97 * self.LIMIT <= later <= self.LIMIT + self.BURST - burst, later)

    def test_the_longest_payload_fits_a_bucket_that_is_full(self) -> None:
        self.assertTrue(self.buckets().take(65_535, START))

    def test_a_new_limit_is_put_in_force_once(self) -> None:
        self.taken(300)
        for _ in range(WORKERS):
            self.buckets().set_rate(2 * self.LIMIT, 65_535, START)
        later = self.taken(5000, 1.0)
        self.assertTrue(0.97 * 2 * self.LIMIT <= later <= 2 * self.LIMIT + WORKERS * 1000, later)


class AdmissionBehaviour(Behaviour):
    """R6.1, R6.2: every rate of ``Admission`` is counted over all processes."""

    SETTINGS = AdmissionSettings(Rate(4, 60), Rate(4, 60), Rate(4, 60), Rate(4, 60), 10, 600.0)

    def admission(self, settings: AdmissionSettings = SETTINGS) -> Callable[[], Admission]:
        return self.turns().each(lambda limits: Admission(settings, AccessLists(), now=START, limits=limits))

    def granted(self, call: Callable[[], object]) -> int:
        """How often of 20 times it is not refused."""
        done = 0
        for _ in range(20):
            try:
                done += call() is not False
            except Refused as refusal:
                self.assertIs(refusal.code, ErrorCode.RATE_LIMITED)
        return done

    def test_rates_are_of_all_together(self) -> None:
        turn = self.admission()
        for call in (
            lambda: turn().validated(ADDRESS, START), lambda: turn().allocating(ADDRESS, START),
            lambda: turn().joining(ADDRESS, START), lambda: turn().answers_stun(ADDRESS, START),
        ):
            self.assertEqual(self.granted(call), 4)
        known = {name for name, size in turn().tables if size == 1}
        self.assertEqual(known, {"connections", "allocations", "rejoins", "stun"})

    def test_attempts_of_a_source_are_counted_together(self) -> None:
        turn = self.admission(replace(self.SETTINGS, handshake_pressure=1000))
        verdicts = [
            turn().decide(ADDRESS, validated=False, open_handshakes=0, now=START, wall=EPOCH).verdict for _ in range(9)
        ]
        self.assertEqual(verdicts, [Verdict.ADMIT] * 4 + [Verdict.RETRY] * 5)

    def test_refusals_of_a_source_are_counted_together(self) -> None:
        turn = self.admission()
        self.assertEqual(sum(turn().may_refuse(ADDRESS, START) for _ in range(30)), REFUSALS.events)

    def test_refusals_of_all_sources_have_one_bucket(self) -> None:
        turn = self.admission()
        answers = sum(turn().may_refuse((32, host), START) for host in range(1, 300))
        self.assertEqual(answers, REFUSALS_PER_SECOND)

    def test_attempts_that_are_no_pressure_are_counted_together(self) -> None:
        turn = self.admission()

        def verdicts(attempts: int, after: float, open_handshakes: int = 0) -> set[Verdict]:
            return {
                turn().decide((32, host), validated=False, open_handshakes=open_handshakes, now=START + after, wall=EPOCH).verdict
                for host in range(attempts)
            }

        self.assertEqual(verdicts(WORKERS, 0.0, open_handshakes=10), {Verdict.RETRY}, "from here on the rate decides")
        self.assertEqual(verdicts(20, 0.5), {Verdict.RETRY}, "more than the 12 that are usual until now")
        self.assertEqual(verdicts(WORKERS, 1.2), {Verdict.RETRY}, "so pressure goes on")
        self.assertEqual(verdicts(WORKERS, 2.3), {Verdict.ADMIT}, "and ends when it has become quiet")

    def test_a_pattern_is_seen_across_processes(self) -> None:
        turn = self.admission()
        self.assertEqual([turn().abandoned(ADDRESS, START) for _ in range(7)], [False] * 5 + [True, False])
        verdicts = {
            turn().decide(ADDRESS, validated=False, open_handshakes=0, now=START, wall=EPOCH).verdict for _ in range(WORKERS)
        }
        self.assertEqual(verdicts, {Verdict.RETRY})

    def test_what_is_known_survives_that_all_of_them_are_reconfigured(self) -> None:
        turn = self.admission()
        self.assertEqual(self.granted(lambda: turn().joining(ADDRESS, START)), 4)
        for _ in range(WORKERS):
            turn().reconfigure(AdmissionSettings(rejoin_rate=Rate(6, 60)), START)
        self.assertEqual(self.granted(lambda: turn().joining(ADDRESS, START)), 2)


class TableBehaviour(Behaviour):
    """R4.4: tables of allocations share their places."""

    def setUp(self) -> None:
        self.tables = [
            AllocationTable(
                max_allocations=8, allocation_timeout=3600.0, wait_timeout=60.0, idle_timeout=30.0, bandwidth_burst=0.1,
                global_bucket=None, counters=Counters(), events=FakeEvents(), places=limits.places,
            )
            for limits in self.turns().limits
        ]

    def create(self, number: int, tier: Tier = OPEN_TIER) -> tuple[AllocationTable, Allocation]:
        table = self.tables[number % len(self.tables)]
        return table, table.create(make_token(allocation_id=b"allocation%6d" % number), tier, now=START, wall=EPOCH)

    def test_max_allocations_is_for_all_and_what_ends_makes_room(self) -> None:
        made = [self.create(number) for number in range(8)]
        self.assertEqual({table.load for table in self.tables}, {100})
        for number in range(8, 11):
            self.assertIs(refusal_of(partial(self.create, number)).code, ErrorCode.CAPACITY)
        table, allocation = made[4]
        table.remove(allocation, TerminationReason.IDLE, EPOCH)
        self.create(8)
        self.assertIs(refusal_of(lambda: self.create(9)).code, ErrorCode.CAPACITY)
        self.assertEqual(sum(map(len, self.tables)), 8)

    def test_a_device_has_its_maximum_in_all_of_them(self) -> None:
        tier = Tier("small", None, None, 4)
        for number in range(4):
            self.create(number, tier)
        refusal = refusal_of(lambda: self.create(5, tier))
        self.assertIs(refusal.code, ErrorCode.CAPACITY)
        self.assertEqual(refusal.reason, "retry_after=5;the device holds 4 allocations already")

    def test_a_creation_that_fails_takes_no_place(self) -> None:
        tier = Tier("small", None, 1000, None)
        table, allocation = self.create(0, tier)
        allocation.bytes_transferred = 1000
        table.remove(allocation, TerminationReason.IDLE, EPOCH)
        for _ in range(20):
            refusal = refusal_of(lambda: self.create(0, Tier("small", None, 10, None)))
            self.assertIs(refusal.code, ErrorCode.QUOTA_EXCEEDED)
        self.assertEqual(({table.load for table in self.tables}, table.holds(id_of(DEVICE))), ({0}, False))
        for number in range(8):
            self.create(number, tier)


class ForwardingBehaviour(Behaviour):
    """R4.1, R4.3: what all allocations of all processes forward is held to the global limit, and the rest dropped for it."""

    LIMIT = 1_000_000
    BURST = 100_000

    def setUp(self) -> None:
        self.counters = Counters()
        self.ends: list[tuple[Allocation, FakeMember]] = []
        for limits in self.turns().limits:
            allocation = Allocation(
                make_token(), OPEN_TIER, now=START, burst_seconds=0.1, global_bucket=limits.bandwidth(self.LIMIT, 0.1, START),
                counters=self.counters, events=FakeEvents(),
            )
            device = FakeMember(Role.DEVICE)
            allocation.bind(device, START)
            allocation.bind(FakeMember(Role.PEER), START)
            self.ends.append((allocation, device))

    def datagrams(self, number: int, size: int, after: float) -> None:
        """One of the processes forwards a batch."""
        allocation, device = self.ends[number % len(self.ends)]
        allocation.forward(device, [bytes(size)] * 10, START + after)

    def test_datagrams(self) -> None:
        for number in range(300):
            self.datagrams(number, 1200, number / 300)
        passed = self.counters.bytes_forwarded
        self.assertLessEqual(passed, self.BURST + self.LIMIT)
        self.assertGreaterEqual(passed, 0.95 * self.LIMIT)
        dropped = {cause: size for cause, size in self.counters.dropped_bytes.items() if size}
        self.assertEqual(dropped, {DropCause.GLOBAL_BANDWIDTH: 300 * 10 * 1200 - passed})

    def test_one_alone_has_all_of_it(self) -> None:
        for number in range(len(self.ends)):
            self.datagrams(number, 10, 0.0)
        for tick in range(1000):
            self.datagrams(0, 1200, tick / 1000)
        self.assertTrue(0.97 * self.LIMIT <= self.counters.bytes_forwarded <= self.BURST + self.LIMIT)

    def test_streams_are_held_back_and_told_when_to_come_again(self) -> None:
        granted, now = 0, 0.0
        for number in range(1000):
            allocation, _ = self.ends[number % len(self.ends)]
            size, delay = allocation.grant_stream_bytes(16_000, START + now)
            granted += size
            self.assertTrue(bool(size) != bool(delay))
            self.assertLess(delay, 0.05)
            now += delay
        self.assertGreater(now, 1.0)
        self.assertLessEqual(granted, self.BURST + self.LIMIT * now + 1)
        self.assertGreaterEqual(granted, 0.95 * self.LIMIT * now)
