"""Deadlines: what is due, when to look again, and a heap that stays small."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from zrc_relay.core.deadlines import Deadlines

_steps = st.lists(
    st.one_of(
        st.tuples(st.just("set"), st.integers(0, 3), st.integers(0, 12)),
        st.tuples(st.just("unset"), st.integers(0, 3), st.just(0)),
        st.tuples(st.just("look"), st.just(0), st.integers(0, 12)),
    ),
    min_size=20,
    max_size=60,
)
"""What a user of Deadlines may do: (what, which item, deadline from now or how much time passes before the look)."""


class DeadlineTests(SynchronousTestCase):
    """One timer for many deadlines (R2.5, R2.6)."""

    def setUp(self) -> None:
        self.deadlines: Deadlines[str] = Deadlines()

    def test_nothing_is_due_when_nothing_was_set(self) -> None:
        self.assertEqual((len(self.deadlines), self.deadlines.next(), self.deadlines.due(1e9)), (0, None, []))

    def test_an_item_is_due_at_its_deadline_and_not_before(self) -> None:
        self.deadlines.set("a", 10.0)
        self.assertEqual(self.deadlines.due(9.999), [])
        self.assertEqual(self.deadlines.due(10.0), ["a"])

    def test_an_item_is_due_once(self) -> None:
        self.deadlines.set("a", 10.0)
        self.deadlines.due(10.0)
        self.assertEqual((self.deadlines.due(20.0), len(self.deadlines), self.deadlines.next()), ([], 0, None))

    def test_a_later_deadline_replaces_the_earlier(self) -> None:
        self.deadlines.set("a", 10.0)
        self.deadlines.set("a", 20.0)
        self.assertEqual(self.deadlines.due(10.0), [])
        self.assertEqual(self.deadlines.next(), 20.0)
        self.assertEqual(self.deadlines.due(20.0), ["a"])

    def test_an_earlier_deadline_replaces_the_later(self) -> None:
        self.deadlines.set("a", 20.0)
        self.deadlines.set("a", 10.0)
        self.assertEqual(self.deadlines.next(), 10.0)
        self.assertEqual(self.deadlines.due(10.0), ["a"])
        self.assertEqual(self.deadlines.due(20.0), [])

    def test_none_takes_the_deadline_away(self) -> None:
        self.deadlines.set("a", 10.0)
        self.deadlines.set("b", 11.0)
        self.deadlines.set("a", None)
        self.deadlines.set("never there", None)
        self.assertEqual((len(self.deadlines), self.deadlines.next(), self.deadlines.due(20.0)), (1, 11.0, ["b"]))

    def test_the_earliest_comes_first_also_when_it_was_moved(self) -> None:
        self.deadlines.set("moved", 1.0)
        self.deadlines.set("early", 3.0)
        self.deadlines.set("late", 7.0)
        self.deadlines.set("moved", 5.0)
        self.assertEqual(self.deadlines.due(10.0), ["early", "moved", "late"])

    def test_items_need_no_order_of_their_own(self) -> None:
        deadlines: Deadlines[object] = Deadlines()
        items = {object(), object(), object()}
        for item in items:
            deadlines.set(item, 1.0)
        self.assertEqual(set(deadlines.due(1.0)), items)


class ModelTests(SynchronousTestCase):
    """Whatever is done, the answers are those of a plain dict (P4)."""

    @settings(max_examples=300)
    @given(_steps)
    def test_any_use_gives_what_a_plain_dict_would(self, steps: list[tuple[str, int, int]]) -> None:
        deadlines: Deadlines[int] = Deadlines()
        model: dict[int, int] = {}
        now = 0
        for what, item, number in steps:
            if what == "set":
                deadlines.set(item, now + number)
                model[item] = now + number
            elif what == "unset":
                deadlines.set(item, None)
                model.pop(item, None)
            else:
                now += number
                ready = deadlines.due(now)
                expected = {one for one, deadline in model.items() if deadline <= now}
                self.assertEqual(set(ready), expected)
                self.assertEqual(len(ready), len(expected))
                self.assertEqual([model[one] for one in ready], sorted(model[one] for one in ready))
                for one in ready:
                    del model[one]
            self.assertEqual(len(deadlines), len(model))
            look = deadlines.next()
            self.assertEqual(look is None, not model)
            if look is not None:
                self.assertLessEqual(look, min(model.values()))

    def test_many_items_whose_deadlines_move_both_ways_are_due_in_order(self) -> None:
        deadlines: Deadlines[int] = Deadlines()
        final: dict[int, int] = {}
        for turn in range(40, 0, -1):  # each turn is earlier than the one before: superseded entries pile up
            for item in range(100):
                final[item] = 1000 * turn + (item * 7919 + turn * 104_729) % 997
                deadlines.set(item, final[item])
        for item in range(0, 100, 3):
            final[item] += 500
            deadlines.set(item, final[item])
        seen: list[int] = []
        for now in range(1000, 3000, 13):
            ready = deadlines.due(now)
            self.assertEqual(set(ready), {item for item in final if now - 13 < final[item] <= now})
            seen += ready
        self.assertEqual([final[item] for item in seen], sorted(final.values()))


class SizeTests(SynchronousTestCase):
    """The heap does not grow with the number of changes (R6.9)."""

    def test_deadlines_that_keep_moving_leave_no_pile(self) -> None:
        deadlines: Deadlines[int] = Deadlines()
        for turn in range(10_000):
            deadlines.set(turn % 10, 1e6 - turn)
        self.assertLess(len(deadlines._heap), 200)  # noqa: SLF001 - how much it holds is what is tested

    def test_deadlines_that_only_move_later_cost_one_entry_each(self) -> None:
        deadlines: Deadlines[int] = Deadlines()
        for turn in range(1000):
            deadlines.set(turn % 10, float(turn))
        self.assertEqual(len(deadlines._heap), 10)  # noqa: SLF001 - how much it holds is what is tested

    def test_items_that_come_and_go_leave_no_pile(self) -> None:
        deadlines: Deadlines[int] = Deadlines()
        for turn in range(10_000):
            deadlines.set(turn, 1e6)
            deadlines.set(turn, None)
        self.assertLess(len(deadlines._heap), 200)  # noqa: SLF001 - how much it holds is what is tested
