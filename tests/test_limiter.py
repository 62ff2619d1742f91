"""Token buckets: exact over any interval, whatever the spacing of the calls."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from zrc_relay.core.limiter import MIN_BURST, TokenBucket, bandwidth_bucket, bandwidth_burst

_schedules = st.lists(st.tuples(st.integers(0, 4096), st.integers(0, 70_000)), min_size=10, max_size=60)
"""Steps of (time since the step before in 1/1024 s, amount asked for): such times and amounts are exact as floats."""


class BucketTests(SynchronousTestCase):
    """A bucket gains its rate, holds its burst, and gives all or nothing (R4.1)."""

    def test_it_is_full_at_the_start(self) -> None:
        bucket = TokenBucket(10, 100, 5.0)
        self.assertEqual(bucket.available(5.0), 100)
        self.assertTrue(bucket.take(100, 5.0))
        self.assertEqual(bucket.available(5.0), 0)

    def test_it_gains_its_rate_up_to_its_burst(self) -> None:
        bucket = TokenBucket(10, 100, 0.0)
        bucket.take(100, 0.0)
        self.assertEqual([bucket.available(now) for now in (0.5, 4.0, 9.5, 11.0, 1000.0)], [5, 40, 95, 100, 100])

    def test_a_take_that_does_not_fit_takes_nothing(self) -> None:
        bucket = TokenBucket(10, 100, 0.0)
        self.assertFalse(bucket.take(101, 0.0))
        self.assertTrue(bucket.take(60, 0.0))
        self.assertFalse(bucket.take(41, 0.0))
        self.assertTrue(bucket.take(40, 0.0))

    def test_nothing_is_always_there(self) -> None:
        bucket = TokenBucket(10, 100, 0.0)
        bucket.take(100, 0.0)
        self.assertTrue(bucket.take(0, 0.0))

    def test_time_that_runs_backwards_gains_nothing_and_is_not_paid_twice(self) -> None:
        bucket = TokenBucket(10, 100, 10.0)
        bucket.take(100, 10.0)
        self.assertEqual(bucket.available(3.0), 0)
        self.assertEqual(bucket.available(10.0), 0)
        self.assertEqual(bucket.available(11.0), 10)

    def test_wait_says_when_the_amount_will_be_there(self) -> None:
        bucket = TokenBucket(10, 100, 0.0)
        self.assertEqual(bucket.wait(100, 0.0), 0.0)
        bucket.take(100, 0.0)
        self.assertEqual(bucket.wait(25, 0.0), 2.5)
        self.assertEqual(bucket.wait(25, 1.5), 1.0)
        self.assertEqual(bucket.wait(25, 2.5), 0.0)
        self.assertEqual(bucket.wait(25.5, 2.5), 0.05)

    def test_wait_takes_nothing(self) -> None:
        bucket = TokenBucket(10, 100, 0.0)
        bucket.wait(100, 0.0)
        self.assertEqual(bucket.available(0.0), 100)

    def test_another_rate_keeps_what_was_gained_at_the_old_one(self) -> None:
        bucket = TokenBucket(10, 100, 0.0)
        bucket.take(100, 0.0)
        bucket.set_rate(20, 200, 4.0)
        self.assertEqual(bucket.available(4.0), 40)
        self.assertEqual(bucket.available(5.0), 60)
        self.assertEqual(bucket.available(100.0), 200)

    def test_a_smaller_burst_holds_at_once(self) -> None:
        bucket = TokenBucket(10, 100, 0.0)
        bucket.set_rate(10, 30, 0.0)
        self.assertEqual(bucket.available(0.0), 30)


class BurstTests(SynchronousTestCase):
    """The burst of a bandwidth: max(burst seconds of it, 65,535) (R4.1)."""

    def test_it_is_so_many_seconds_of_the_limit(self) -> None:
        self.assertEqual(bandwidth_burst(1_250_000, 0.1), 125_000)

    def test_the_longest_payload_always_fits(self) -> None:
        self.assertEqual(MIN_BURST, 65_535)
        self.assertEqual(bandwidth_burst(1000, 0.1), 65_535)
        self.assertTrue(bandwidth_bucket(1, 0.0, 0.0).take(65_535, 0.0))

    def test_a_bandwidth_bucket_has_both(self) -> None:
        bucket = bandwidth_bucket(1_250_000, 0.1, 7.0)
        self.assertEqual((bucket.rate, bucket.burst, bucket.available(7.0)), (1_250_000, 125_000, 125_000))


class IntervalTests(SynchronousTestCase):
    """Over any interval of t seconds at most rate * t + burst, and never less than the bucket holds (R4.1, P2)."""

    @given(rate=st.integers(1, 1 << 20), burst=st.integers(65_535, 1 << 20), schedule=_schedules)
    def test_no_interval_of_any_schedule_takes_more(self, rate: int, burst: int, schedule: list[tuple[int, int]]) -> None:
        bucket = TokenBucket(rate, burst, 0.0)
        ticks = 0
        taken: list[tuple[int, int]] = []
        for gap, amount in schedule:
            ticks += gap
            if bucket.take(amount, ticks / 1024):
                taken.append((ticks, amount))
        for first, (begin, _) in enumerate(taken):
            total = 0
            for end, amount in taken[first:]:
                total += amount
                self.assertLessEqual(total, Fraction(rate * (end - begin), 1024) + burst)

    @given(rate=st.integers(1, 1 << 20), burst=st.integers(65_535, 1 << 20), schedule=_schedules)
    def test_it_gives_exactly_when_an_exact_bucket_would(self, rate: int, burst: int, schedule: list[tuple[int, int]]) -> None:
        bucket = TokenBucket(rate, burst, 0.0)
        ticks, held = 0, Fraction(burst)
        for gap, amount in schedule:
            ticks += gap
            held = min(Fraction(burst), held + Fraction(rate * gap, 1024))
            self.assertEqual(bucket.wait(amount, ticks / 1024) == 0.0, amount <= held)
            self.assertEqual(bucket.take(amount, ticks / 1024), amount <= held)
            held -= amount if amount <= held else 0
            self.assertEqual(bucket.available(ticks / 1024), held)
