"""Moments as text."""

from __future__ import annotations

from datetime import UTC, datetime
from math import inf, nan

from twisted.trial.unittest import SynchronousTestCase

from zrc_relay.control.answers import moment
from zrc_relay.moments import timestamp


class TimestampTests(SynchronousTestCase):
    """R5.7: every line says when, in UTC, to the millisecond."""

    def test_it_is_what_the_calendar_says(self) -> None:
        for unix in (0.0, 0.25, 1.0, 951_782_400.5, 1_735_689_599.999, 1_767_225_600.001, 4_102_444_800.125, -0.5):
            expected = datetime.fromtimestamp(unix, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
            self.assertEqual(timestamp(unix), expected)

    def test_a_moment_just_before_the_next_second_is_of_that_second(self) -> None:
        self.assertEqual(timestamp(1_767_225_599.999_9), "2025-12-31T23:59:59.999Z")

    def test_moments_in_turn_and_out_of_turn_are_each_their_own(self) -> None:
        moments = [1_000_000_000.0 + step * 0.7 for step in (0, 1, 2, 1, 9, 8, 7, 6, 5, 0)]
        made = [datetime.fromisoformat(timestamp(unix)).timestamp() for unix in moments]
        for unix, again in zip(moments, made, strict=True):
            self.assertAlmostEqual(unix, again, delta=0.001)

    def test_years_have_four_digits(self) -> None:
        self.assertEqual(timestamp(-62_135_596_800.0), "0001-01-01T00:00:00.000Z")

    def test_what_is_beyond_the_calendar_is_an_error_and_as_an_answer_none(self) -> None:
        for unix in (inf, nan, 1e18):
            self.assertRaises((ValueError, OverflowError, OSError), timestamp, unix)
            self.assertIsNone(moment(unix))
