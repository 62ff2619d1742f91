"""Sources of packets, and how fast each may go."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from zrc_relay.core.sources import MAX_SOURCES, Rate, SourceLimiter, numeric, source_of

HOUR = 3600.0
START = 1_000_000.0


class SourceTests(SynchronousTestCase):
    """R6.2: IPv4 per address, IPv6 per /64, IPv4-mapped as IPv4."""

    def source(self, host: str) -> int:
        return source_of(numeric(host))

    def test_each_ipv4_address_is_a_source(self) -> None:
        self.assertEqual(len({self.source(f"192.0.{a}.{b}") for a in range(3) for b in range(5)}), 15)

    def test_a_64_of_ipv6_is_one_source_and_the_next_another(self) -> None:
        first = self.source("2001:db8:0:1::1")
        self.assertEqual(self.source("2001:db8:0:1:ffff:ffff:ffff:ffff"), first)
        self.assertNotEqual(self.source("2001:db8:0:2::1"), first)

    def test_mapped_ipv4_is_ipv4(self) -> None:
        self.assertEqual(self.source("::ffff:192.0.2.1"), self.source("192.0.2.1"))
        self.assertEqual(numeric("::ffff:c000:201"), numeric("192.0.2.1"))

    def test_a_scope_is_passed_over(self) -> None:
        self.assertEqual(numeric("fe80::1%eth0"), numeric("fe80::1"))

    def test_low_ipv6_networks_are_not_low_ipv4_addresses(self) -> None:
        self.assertNotEqual(self.source("::1"), self.source("0.0.0.0"))
        self.assertNotEqual(self.source("0:0:0:1::"), self.source("0.0.0.1"))

    def test_what_is_no_address_is_refused(self) -> None:
        for text in ("", "192.0.2", "192.0.2.256", "x", "1:2", "::1::", "192.0.2.1:80"):
            self.assertRaises(ValueError, numeric, text)

    @given(st.ip_addresses(v=4), st.ip_addresses(v=6))
    def test_any_address(self, four: IPv4Address, six: IPv6Address) -> None:
        self.assertEqual(numeric(str(four)), (32, int(four)))
        if six.ipv4_mapped is None:
            self.assertEqual(numeric(str(six)), (128, int(six)))
        else:
            self.assertEqual(numeric(str(six)), numeric(str(six.ipv4_mapped)))


class LimiterTests(SynchronousTestCase):
    """R6.1: each source has its rate, and nobody spends another's."""

    def setUp(self) -> None:
        self.limiter = SourceLimiter(Rate(30, 60))

    def test_a_source_may_do_all_of_it_at_once_and_then_go_on_at_the_rate(self) -> None:
        granted = [self.limiter.take(1, START) for _ in range(40)]
        self.assertEqual(granted, [True] * 30 + [False] * 10)
        self.assertEqual([self.limiter.take(1, START + seconds) for seconds in (1.9, 2.0, 3.9, 4.0)], [False, True, False, True])

    def test_others_are_not_concerned(self) -> None:
        for _ in range(40):
            self.limiter.take(1, START)
        self.assertTrue(all(self.limiter.take(2, START) for _ in range(30)))

    def test_what_is_refused_is_not_counted(self) -> None:
        for _ in range(1000):
            self.limiter.take(1, START)
        self.assertTrue(self.limiter.take(1, START + 2))

    def test_who_waits_as_long_as_it_is_told_is_in_time(self) -> None:
        for events, seconds in ((30, 60), (10, 60), (7, 1), (3, 3600), (1, 1)):
            limiter = SourceLimiter(Rate(events, seconds))
            now = START
            for _ in range(3 * events):
                wait = limiter.wait(1, now)
                self.assertFalse(wait > 0 and limiter.take(1, now))
                now += wait
                self.assertTrue(limiter.take(1, now), (events, seconds))

    def test_looking_counts_nothing(self) -> None:
        for _ in range(100):
            self.assertEqual(self.limiter.wait(1, START), 0)
        self.assertEqual(len(self.limiter), 0)

    def test_after_a_period_all_is_as_at_the_beginning(self) -> None:
        for _ in range(40):
            self.limiter.take(1, START)
        self.assertEqual([self.limiter.take(1, START + 60) for _ in range(31)], [True] * 30 + [False])

    def test_off_holds_nobody_and_keeps_nothing(self) -> None:
        limiter = SourceLimiter(None)
        self.assertTrue(all(limiter.take(1, START) for _ in range(1000)))
        self.assertEqual((limiter.wait(1, START), len(limiter)), (0, 0))

    @given(
        st.integers(1, 20), st.integers(1, 100),
        st.lists(st.tuples(st.integers(0, 2), st.floats(0, 30)), min_size=20, max_size=100),
    )
    def test_never_more_than_the_rate_and_its_burst_over_any_interval(
        self, events: int, seconds: int, attempts: list[tuple[int, float]]
    ) -> None:
        limiter = SourceLimiter(Rate(events, seconds))
        granted: dict[int, list[float]] = {0: [], 1: [], 2: []}
        now = START
        for source, pause in attempts:
            now += pause
            if limiter.take(source, now):
                granted[source].append(now)
        for times in granted.values():
            for first, begin in enumerate(times):
                for last, end in enumerate(times[first:], start=first):
                    self.assertLessEqual(last - first + 1, (end - begin) * events / seconds + events + 1e-6)


class BoundTests(SynchronousTestCase):
    """R6.9: 65,536 sources, the least recently seen goes first."""

    def test_the_default_is_65536(self) -> None:
        self.assertEqual(MAX_SOURCES, 65_536)
        limiter = SourceLimiter(Rate(1, 3600))
        for source in range(MAX_SOURCES + 1000):
            limiter.take(source, START)
        self.assertEqual(len(limiter), MAX_SOURCES)

    def test_the_least_recently_seen_is_forgotten(self) -> None:
        limiter = SourceLimiter(Rate(1, 3600), capacity=3)
        for source in (1, 2, 3):
            limiter.take(source, START)
        self.assertFalse(limiter.take(1, START), "a refusal is a sight, too")
        limiter.take(4, START)
        self.assertEqual([limiter.wait(source, START) > 0 for source in (1, 2, 3, 4)], [True, False, True, True])

    def test_a_flood_of_others_frees_only_who_is_not_seen(self) -> None:
        limiter = SourceLimiter(Rate(5, 3600), capacity=100)
        for number in range(10_000):
            limiter.take(1000 + number, START)
            if number % 50 == 0:
                limiter.take(1, START)
        self.assertFalse(limiter.take(1, START))
