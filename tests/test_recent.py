"""What was received: duplicates and ranges, against the plain tables and aioquic's own classes."""

from __future__ import annotations

from aioquic.quic.rangeset import RangeSet
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from zrc_relay.quic.frames import MAX_ACK_BLOCKS
from zrc_relay.quic.recent import WINDOW, ReceivedRanges, RecentPackets

_moves = st.lists(st.one_of(st.just(1), st.just(1), st.integers(-20, 20), st.integers(-2 * WINDOW, 2 * WINDOW)), max_size=80)
"""By how much the next packet number differs from the largest so far."""


class RecentTests(SynchronousTestCase):
    """RFC 9000 §12.3: a packet is processed once."""

    @given(_moves)
    @settings(max_examples=300)
    def test_what_was_received_and_what_is_below_the_window_is_known_and_nothing_else(self, moves: list[int]) -> None:
        recent, received = RecentPackets(), set[int]()
        for move in moves:
            number = max(0, recent.highest + move)
            recent.add(number)
            received.add(number)
            self.assertEqual(recent.highest, max(received))
        highest = recent.highest
        for number in range(max(0, highest - 2 * WINDOW), highest + 3):
            self.assertEqual(number in recent, number in received or number <= highest - WINDOW, number)

    def test_more_than_a_window_in_order_is_a_full_window(self) -> None:
        recent = RecentPackets()
        for number in range(3 * WINDOW):
            recent.add(number)
        recent.add(3 * WINDOW + 1)
        missing = [number for number in range(3 * WINDOW + 2) if number not in recent]
        self.assertEqual(missing, [3 * WINDOW])


class RangesTests(SynchronousTestCase):
    """RFC 9000 §13.2.3: what is told in ACK frames."""

    def assert_same(self, ours: ReceivedRanges, theirs: RangeSet) -> None:
        """They hold the same ranges, however one asks."""
        expected = list(theirs)
        self.assertEqual((list(ours), len(ours)), (expected, len(expected)))
        self.assertEqual([ours[index] for index in range(len(ours))], expected)
        self.assertEqual(ours.start < ours.stop, bool(expected))
        if expected:
            self.assertEqual(ours[-1], expected[-1])
            newest_first = expected[-2::-1]
            self.assertEqual(ours.newest_earlier(MAX_ACK_BLOCKS), newest_first[:MAX_ACK_BLOCKS])
            self.assertEqual(ours.newest_earlier(1), newest_first[:1])

    @given(st.lists(st.one_of(
        st.tuples(st.just("add"), st.integers(0, 60)),
        st.tuples(st.just("next"), st.just(0)),
        st.tuples(st.just("forget"), st.integers(1, 60)),
        st.tuples(st.just("shift"), st.just(0)),
    ), max_size=60))
    @settings(max_examples=300)
    def test_they_are_what_aioquics_are(self, steps: list[tuple[str, int]]) -> None:
        ours, theirs = ReceivedRanges(), RangeSet()
        for what, number in steps:
            if what == "add":
                ours.add(number)
                theirs.add(number)
            elif what == "next" and len(theirs):
                theirs.add(ours.stop)
                ours.add(ours.stop)
            elif what == "forget":
                ours.subtract(0, number)
                theirs.subtract(0, number)
            elif what == "shift" and len(theirs):
                ours.shift()
                theirs.shift()
            self.assert_same(ours, theirs)
