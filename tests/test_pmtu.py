"""The search for the path's MTU as a machine of its own: what it probes, where it ends, when it begins again."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from zrc_relay.quic.pmtu import MAX_PROBES, RAISE_INTERVAL, STEP, PathMtu, SearchState

BASE, MAXIMUM = 1232, 1452
ROUND_TRIP = 0.02
MOST_PROBES = 100
"""Far more than any search takes: what needs more does not end."""


class Path:
    """A path that carries ``mtu`` bytes, and a search on it; ``lose`` says whether a probe that fits is lost all the same."""

    def __init__(self, mtu: int, base: int = BASE, maximum: int = MAXIMUM) -> None:
        self.mtu = mtu
        self.search = PathMtu(base, maximum)
        self.now = 0.0
        self.probed: list[int] = []

    def lose(self, size: int) -> bool:
        """Nothing is lost here."""
        del size
        return False

    def step(self) -> bool:
        """One probe and what becomes of it; False when none is wanted."""
        size = self.search.next_probe(self.now)
        if size is None:
            return False
        self.probed.append(size)
        self.search.sent()
        self.now += ROUND_TRIP
        if size > self.mtu or self.lose(size):
            self.search.lost(size, self.now)
        else:
            self.search.acked(size, self.now)
        return True

    def finish(self) -> int:
        """Search until nothing more is wanted; returns the size found."""
        for _ in range(MOST_PROBES):
            if not self.step():
                return self.search.size
        msg = f"no end after {MOST_PROBES} probes: {self.probed}"
        raise AssertionError(msg)


class LossyPath(Path):
    """Loses a share of the probes that would fit, at random, but never ``MAX_PROBES`` of one size in a row."""

    def __init__(self, mtu: int, loss: float, seed: int) -> None:
        super().__init__(mtu)
        self._loss = loss
        self._random = random.Random(seed)  # noqa: S311 - the same losses for the same seed
        self._in_a_row: dict[int, int] = {}

    def lose(self, size: int) -> bool:
        """See the class."""
        lost = self._random.random() < self._loss and self._in_a_row.get(size, 0) < MAX_PROBES - 1
        self._in_a_row[size] = self._in_a_row.get(size, 0) + 1 if lost else 0
        return lost


class UnluckyPath(LossyPath):
    """Loses a share of all probes, and as many in a row as chance wants."""

    def lose(self, size: int) -> bool:
        """See the class."""
        del size
        return self._random.random() < self._loss


class SearchTests(SynchronousTestCase):
    """R5.8, RFC 8899: from the base to the largest size that the path carries."""

    def test_it_begins_at_the_base(self) -> None:
        self.assertEqual((PathMtu(BASE, MAXIMUM).size, PathMtu(BASE, MAXIMUM).state), (BASE, SearchState.SEARCHING))

    def test_a_path_that_carries_the_maximum_takes_one_probe(self) -> None:
        path = Path(MAXIMUM)
        self.assertEqual((path.finish(), path.probed, path.search.state), (MAXIMUM, [MAXIMUM], SearchState.COMPLETE))

    def test_a_path_that_carries_the_base_only_stays_there(self) -> None:
        path = Path(BASE)
        self.assertEqual(path.finish(), BASE)
        self.assertEqual(path.search.state, SearchState.COMPLETE)

    def test_each_size_that_fails_is_tried_as_often_as_the_rfc_says(self) -> None:
        path = Path(BASE)
        path.finish()
        self.assertEqual({path.probed.count(size) for size in path.probed}, {MAX_PROBES})

    def test_nothing_is_probed_where_the_maximum_is_the_base(self) -> None:
        for maximum in (BASE, 0):
            search = PathMtu(BASE, maximum)
            self.assertEqual((search.size, search.state), (BASE, SearchState.COMPLETE))
            self.assertIsNone(search.next_probe(1e9))

    def test_one_probe_at_a_time(self) -> None:
        search = PathMtu(BASE, MAXIMUM)
        self.assertEqual(search.next_probe(0.0), MAXIMUM)
        self.assertEqual(search.next_probe(0.0), MAXIMUM, "asking is not sending")
        search.sent()
        self.assertIsNone(search.next_probe(100.0))
        search.lost(MAXIMUM, 100.0)
        self.assertEqual(search.next_probe(100.0), MAXIMUM)

    def test_a_size_is_used_only_after_its_probe_has_arrived(self) -> None:
        search = PathMtu(BASE, MAXIMUM)
        search.sent()
        self.assertEqual(search.size, BASE)
        self.assertTrue(search.acked(MAXIMUM, 1.0))
        self.assertEqual(search.size, MAXIMUM)

    def test_what_arrives_twice_or_too_late_changes_nothing(self) -> None:
        search = PathMtu(BASE, MAXIMUM)
        search.acked(MAXIMUM, 1.0)
        for size in (MAXIMUM, 1300, BASE):
            self.assertFalse(search.acked(size, 2.0))
            search.lost(size, 2.0)
        self.assertEqual((search.size, search.state), (MAXIMUM, SearchState.COMPLETE))

    @settings(max_examples=300)
    @given(st.integers(BASE, MAXIMUM))
    def test_any_mtu_is_found_to_within_the_step_and_never_passed(self, mtu: int) -> None:
        path = Path(mtu)
        self.assertIn(mtu - path.finish(), range(STEP))
        self.assertLessEqual(len(path.probed), 2 + 6 * MAX_PROBES, "halving 220 bytes down to 8 takes no more")

    @settings(max_examples=300)
    @given(st.integers(1200, 9000), st.integers(0, 8000), st.integers(0, 9000))
    def test_any_bounds_are_kept(self, base: int, room: int, mtu: int) -> None:
        path = Path(mtu, base, base + room)
        found = path.finish()
        self.assertTrue(all(base < size <= base + room for size in path.probed), path.probed)
        if mtu <= base:
            self.assertEqual(found, base)
        else:
            self.assertIn(min(mtu, base + room) - found, range(STEP))

    @settings(max_examples=300)
    @given(st.integers(BASE, MAXIMUM), st.floats(0, 0.2), st.integers(0, 2**32))
    def test_losses_that_spare_one_of_three_do_not_mislead_it(self, mtu: int, loss: float, seed: int) -> None:
        self.assertIn(mtu - LossyPath(mtu, loss, seed).finish(), range(STEP))

    @settings(max_examples=300)
    @given(st.integers(BASE, MAXIMUM), st.floats(0, 0.2), st.integers(0, 2**32))
    def test_whatever_is_lost_the_mtu_is_never_passed_and_found_in_the_end(self, mtu: int, loss: float, seed: int) -> None:
        path = UnluckyPath(mtu, loss, seed)
        found = [path.finish()]
        for _ in range(20):
            path.now += RAISE_INTERVAL
            found.append(path.finish())
        self.assertLessEqual(max(found), mtu)
        self.assertEqual(found, sorted(found), "what was found is not given up")
        self.assertIn(mtu - found[-1], range(STEP))


class LimitTests(SynchronousTestCase):
    """RFC 9000 §18.2: no packet is larger than the peer's max_udp_payload_size."""

    @settings(max_examples=300)
    @given(st.integers(1200, 1600))
    def test_nothing_above_it_is_used_or_probed(self, takes: int) -> None:
        path = Path(MAXIMUM)
        path.search.limit(takes)
        path.finish()
        self.assertEqual(path.search.size, min(takes, MAXIMUM))
        self.assertTrue(all(size <= takes for size in path.probed), path.probed)

    def test_a_peer_that_takes_less_than_the_base_gets_less(self) -> None:
        search = PathMtu(BASE, MAXIMUM)
        search.limit(1200)
        self.assertEqual((search.size, search.next_probe(0.0)), (1200, None))
        search.restart()
        self.assertEqual((search.size, search.next_probe(0.0)), (1200, None), "on another path too")

    def test_it_holds_after_the_raise_timer_and_a_black_hole(self) -> None:
        path = Path(MAXIMUM)
        path.search.limit(1400)
        path.finish()
        path.now += RAISE_INTERVAL
        path.finish()
        path.search.black_hole()
        path.finish()
        self.assertEqual((path.search.size, max(path.probed)), (1400, 1400))

    def test_a_peer_that_takes_more_changes_nothing(self) -> None:
        search = PathMtu(BASE, MAXIMUM)
        search.limit(65527)
        self.assertEqual(search.next_probe(0.0), MAXIMUM)


class AgainTests(SynchronousTestCase):
    """RFC 8899 §5.1.1, §4.3: searching again after a while, on another path, and when large packets no longer arrive."""

    def test_a_search_that_ended_below_the_maximum_is_repeated_after_the_raise_interval(self) -> None:
        path = Path(1300)
        path.finish()
        ended = path.now
        path.mtu = MAXIMUM
        path.now = ended + RAISE_INTERVAL - 1
        self.assertFalse(path.step())
        path.now = ended + RAISE_INTERVAL
        self.assertEqual(path.finish(), MAXIMUM)

    def test_one_that_found_the_maximum_is_not(self) -> None:
        path = Path(MAXIMUM)
        path.finish()
        path.now += 100 * RAISE_INTERVAL
        self.assertFalse(path.step())

    def test_it_is_repeated_every_interval_as_long_as_it_fails(self) -> None:
        path = Path(1300)
        found = path.finish()
        for _ in range(3):
            path.probed.clear()
            path.now += RAISE_INTERVAL
            self.assertEqual(path.finish(), found, "what works is kept in the meantime")
            self.assertEqual(path.probed[:MAX_PROBES], [MAXIMUM] * MAX_PROBES)
            self.assertGreater(min(path.probed), found)

    def test_another_path_begins_at_the_base(self) -> None:
        path = Path(1400)
        path.finish()
        path.mtu = 1300
        path.search.restart()
        self.assertEqual((path.search.size, path.search.state), (BASE, SearchState.SEARCHING))
        self.assertIn(1300 - path.finish(), range(STEP))

    def test_another_path_does_not_wait_for_the_probe_of_the_old_one(self) -> None:
        search = PathMtu(BASE, MAXIMUM)
        search.sent()
        search.restart()
        self.assertEqual(search.next_probe(0.0), MAXIMUM)

    def test_a_black_hole_falls_back_to_the_base_at_once(self) -> None:
        path = Path(MAXIMUM)
        path.finish()
        self.assertTrue(path.search.black_hole())
        self.assertEqual((path.search.size, path.search.state), (BASE, SearchState.SEARCHING))

    def test_there_is_none_at_the_base(self) -> None:
        path = Path(BASE)
        path.finish()
        self.assertFalse(path.search.black_hole())
        self.assertEqual((path.search.size, path.search.state), (BASE, SearchState.COMPLETE))

    def test_a_false_alarm_costs_one_probe(self) -> None:
        path = Path(MAXIMUM)
        path.finish()
        path.search.black_hole()
        path.probed.clear()
        self.assertEqual((path.finish(), path.probed), (MAXIMUM, [MAXIMUM]))

    @settings(max_examples=300)
    @given(st.lists(st.integers(BASE, MAXIMUM), min_size=1, max_size=6))
    def test_whatever_the_route_becomes_its_mtu_is_found(self, mtus: list[int]) -> None:
        path = Path(MAXIMUM)
        path.finish()
        for mtu in mtus:
            path.mtu = mtu
            if path.search.size > mtu:
                path.search.black_hole()
                self.assertEqual(path.search.size, BASE)
            else:
                path.now += RAISE_INTERVAL
            self.assertIn(mtu - path.finish(), range(STEP))
