"""The wheel: what is due, when to look again, acknowledgements beside deadlines, and slots that stay few."""

from __future__ import annotations

from math import ceil, inf

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from zrc_relay.quic.wheel import SLOTS_PER_SECOND, Timed, Wheel

MANY = 500
_steps = st.lists(
    st.one_of(
        st.tuples(st.just("set"), st.integers(0, 3), st.integers(0, 120)),
        st.tuples(st.just("put off"), st.integers(0, 3), st.integers(0, 240)),
        st.tuples(st.just("unset"), st.integers(0, 3), st.just(0)),
        st.tuples(st.just("owe"), st.integers(0, 3), st.integers(0, 120)),
        st.tuples(st.just("look"), st.just(0), st.integers(0, 60)),
    ),
    min_size=20,
    max_size=60,
)
"""What an endpoint may do: (what, with which item, tenths of a millisecond from now, or until the next look)."""


def slot_end(at: float) -> float:
    """When what is due at ``at`` is found to be."""
    return ceil(at * SLOTS_PER_SECOND) / SLOTS_PER_SECOND


class WheelTests(SynchronousTestCase):
    """One timer for all connections (R2.6)."""

    def setUp(self) -> None:
        self.wheel: Wheel[Timed] = Wheel()
        self.item = Timed()

    def test_nothing_is_due_when_nothing_was_set(self) -> None:
        self.assertEqual((len(self.wheel), self.wheel.next(), self.wheel.due(1e9)), (0, inf, ([], [])))

    def test_an_item_is_due_at_the_end_of_its_millisecond_and_then_never_again(self) -> None:
        self.wheel.set(self.item, 10.0003)
        self.assertEqual((self.item.wakes_at, len(self.wheel), self.wheel.next()), (10.0003, 1, 10.001))
        self.assertEqual(self.wheel.due(10.0009), ([], []))
        self.assertEqual(self.wheel.due(10.001), ([self.item], []))
        self.assertEqual((self.item.wakes_at, len(self.wheel), self.wheel.next()), (inf, 0, inf))
        self.assertEqual(self.wheel.due(20.0), ([], []))

    def test_one_that_moves_later_is_due_later(self) -> None:
        self.wheel.set(self.item, 10.0)
        self.wheel.set(self.item, 12.0)
        self.assertEqual(self.wheel.due(11.0), ([], []))
        self.assertEqual(self.wheel.next(), 12.0)
        self.assertEqual(self.wheel.due(12.0), ([self.item], []))

    def test_one_that_moves_earlier_is_due_earlier_and_once(self) -> None:
        self.wheel.set(self.item, 12.0)
        self.wheel.set(self.item, 10.0)
        self.assertEqual(self.wheel.due(10.0), ([self.item], []))
        self.assertEqual(self.wheel.due(13.0), ([], []))

    def test_one_that_is_unset_is_never_due(self) -> None:
        self.wheel.set(self.item, 10.0)
        self.wheel.set(self.item, inf)
        self.assertEqual((len(self.wheel), self.wheel.due(20.0)), (0, ([], [])))

    def test_an_acknowledgement_leaves_the_deadline_where_it_is(self) -> None:
        self.wheel.set(self.item, 12.0)
        self.wheel.set_owing(self.item, 10.0)
        self.wheel.set_owing(self.item, 10.0)
        self.assertEqual(self.wheel.next(), 10.0)
        self.assertEqual(self.wheel.due(10.0), ([], [self.item]))
        self.assertEqual((self.item.wakes_at, self.wheel.next()), (12.0, 12.0))
        self.assertEqual(self.wheel.due(12.0), ([self.item], []))

    def test_only_the_last_time_of_an_acknowledgement_counts(self) -> None:
        for at in (10.0, 14.0, 12.0):
            self.wheel.set_owing(self.item, at)
        self.assertEqual([self.wheel.due(now)[1] for now in (10.0, 12.0, 14.0)], [[], [self.item], []])

    def test_both_at_once(self) -> None:
        self.wheel.set(self.item, 10.0)
        self.wheel.set_owing(self.item, 10.0)
        self.assertEqual(self.wheel.due(10.0), ([self.item], [self.item]))
        self.assertEqual(self.wheel.due(11.0), ([], []))

    def test_a_time_that_is_no_whole_number_of_slots_when_it_is_multiplied_ends_all_the_same(self) -> None:
        for number in range(1, MANY):
            at = number * 1.1 / SLOTS_PER_SECOND
            self.wheel.set(self.item, at)
            self.assertEqual(self.wheel.due(at + 1 / SLOTS_PER_SECOND), ([self.item], []))

    def places(self) -> int:
        """How many there are."""
        return sum(map(len, self.wheel._slots.values()))  # noqa: SLF001 - what it is not to hold is seen nowhere else

    def test_deadlines_that_keep_moving_earlier_do_not_pile_up(self) -> None:
        others = [Timed() for _ in range(10)]
        for other in others:
            self.wheel.set(other, 100.0)
        for number in range(MANY):
            self.wheel.set(self.item, 90.0 - number / 100)
            self.assertLess(self.places(), 3 * (3 * (len(others) + 1) + 64))
        ready, _ = self.wheel.due(200.0)
        self.assertEqual({id(each) for each in ready}, {id(each) for each in (self.item, *others)})

    def test_those_that_have_none_any_more_do_not_pile_up(self) -> None:
        self.wheel.set(self.item, 100.0)
        for number in range(MANY):
            gone = Timed()
            self.wheel.set(gone, 90.0)
            self.wheel.set_owing(gone, 80.0 + number)
            self.wheel.set(gone, inf)
            gone.owing_slot = 0  # nobody asks for it again
        self.assertLess(self.places(), 200)

    def test_what_is_soon_leaves_no_place_behind_that_lasts(self) -> None:
        now = 0.0
        for _ in range(MANY):
            self.wheel.set(self.item, now + 30.0)
            self.wheel.set(self.item, now + 0.05)
            now += 0.051
            self.assertEqual(self.wheel.due(now), ([self.item], []))
        self.wheel.set(self.item, now + 30.0)
        self.assertLessEqual(self.places(), 2)
        self.assertEqual(self.wheel.due(now + 29.9), ([], []))
        self.assertEqual(self.wheel.due(now + 30.001), ([self.item], []))

    def early(self) -> None:
        """Give the item a deadline soon in front of one that is far away."""
        self.wheel.set(self.item, 40.0)
        self.wheel.set(self.item, 10.0)
        self.assertTrue(self.item.is_early)

    def test_who_leaves_the_place_in_front_is_not_looked_at_when_that_is_due(self) -> None:
        self.early()
        self.wheel.put_off(self.item, 42.0)
        self.assertFalse(self.item.is_early)
        self.assertEqual((len(self.wheel), self.wheel.next(), self.places()), (1, 40.0, 1))
        self.assertEqual([self.wheel.due(now) for now in (10.0, 41.9)], [([], []), ([], [])])
        self.assertEqual((self.wheel.next(), self.wheel.due(42.0)), (42.0, ([self.item], [])))

    def test_who_leaves_a_place_stays_there_for_its_acknowledgement(self) -> None:
        self.early()
        self.wheel.set_owing(self.item, 10.0)
        self.wheel.put_off(self.item, 42.0)
        self.assertEqual([self.wheel.due(now) for now in (10.0, 42.0)], [([], [self.item]), ([self.item], [])])

    def test_others_stay_in_the_place_that_one_leaves(self) -> None:
        other = Timed()
        self.early()
        self.wheel.set(other, 10.0)
        self.wheel.put_off(self.item, 42.0)
        self.assertEqual((self.wheel.next(), self.wheel.due(10.0)), (10.0, ([other], [])))

    def test_who_is_put_off_to_a_time_before_its_far_one_is_due_then(self) -> None:
        self.early()
        self.wheel.put_off(self.item, 12.0)
        self.assertEqual((self.wheel.due(11.9), self.wheel.due(12.0)), (([], []), ([self.item], [])))

    def test_who_is_put_off_time_and_again_leaves_no_places_behind(self) -> None:
        """Also where its far place was later than what it is put off to."""
        self.wheel.set(self.item, 40.0)
        for number in range(MANY):
            now = number / 100
            self.wheel.set(self.item, now + 0.05)
            self.wheel.put_off(self.item, now + 30.0)
            self.assertLessEqual(self.places(), 2)

    def test_clearing_away_pays_for_itself(self) -> None:
        """Also where few have a deadline and many owe an acknowledgement."""
        items = [Timed() for _ in range(MANY)]
        for item in items:
            self.wheel.set(item, 10.0)
            self.wheel.set_owing(item, 20.0)
        self.assertEqual(len(self.wheel.due(10.0)[0]), MANY)
        looked_at = 0
        for number, item in enumerate(items):
            table = self.wheel._slots  # noqa: SLF001 - it is another one when it was cleared
            self.wheel.set_owing(item, 21.0 + number)
            looked_at += self.places() if self.wheel._slots is not table else 0  # noqa: SLF001
        self.assertLess(looked_at, 10 * MANY)

    @given(_steps)
    @settings(max_examples=300)
    def test_it_does_what_a_plain_table_would(self, steps: list[tuple[str, int, int]]) -> None:
        wheel: Wheel[Timed] = Wheel()
        items = [Timed() for _ in range(4)]
        deadlines: dict[int, float] = {}
        owing: dict[int, float] = {}
        now = 5.0
        for what, which, tenths in steps:
            at = now + tenths / 10_000
            if what == "set":
                wheel.set(items[which], at)
                deadlines[which] = at
            elif what == "put off":
                if items[which].is_early:
                    wheel.put_off(items[which], at)
                    deadlines[which] = at
            elif what == "unset":
                wheel.set(items[which], inf)
                deadlines.pop(which, None)
            elif what == "owe":
                wheel.set_owing(items[which], at)
                owing[which] = at
            else:
                now = at
                ready, acknowledging = wheel.due(now)
                found, also = set(map(items.index, ready)), set(map(items.index, acknowledging))
                self.assertEqual((len(found), len(also)), (len(ready), len(acknowledging)))
                # What has moved later may be found in the slot of before, but not before its time.
                self.assertLessEqual({which for which, at in deadlines.items() if slot_end(at) <= now}, found)
                self.assertLessEqual(found, {which for which, at in deadlines.items() if at <= now})
                self.assertEqual(also, {which for which, at in owing.items() if slot_end(at) <= now})
                deadlines = {which: at for which, at in deadlines.items() if which not in found}
                owing = {which: at for which, at in owing.items() if which not in also}
                self.assertEqual(len(wheel), len(deadlines))
                upcoming = min(map(slot_end, (*deadlines.values(), *owing.values())), default=inf)
                self.assertLessEqual(wheel.next(), upcoming)
                self.assertEqual([item.wakes_at for item in items], [deadlines.get(which, inf) for which in range(4)])
