"""An allocation's life: its transition table, its two sides, which member carries egress, how long absence lasts."""

from __future__ import annotations

from itertools import product

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.fakes import OPEN_TIER, START, FakeEvents, FakeMember, make_token
from zrc_relay.core.allocation import TRANSITIONS, Allocation, Change, IllegalTransition, Side, State, reason_is_final
from zrc_relay.core.codes import ErrorCode, Role, TerminationReason
from zrc_relay.core.counters import Counters

LEGAL = {
    (State.CREATED, Change.SIDE_JOINED): State.WAITING,
    (State.WAITING, Change.SIDE_JOINED): State.WAITING,
    (State.WAITING, Change.BOTH_THERE): State.ACTIVE,
    (State.WAITING, Change.SIDE_GONE): State.WAITING,
    (State.ACTIVE, Change.SIDE_GONE): State.WAITING,
    (State.CREATED, Change.END): State.TERMINATING,
    (State.WAITING, Change.END): State.TERMINATING,
    (State.ACTIVE, Change.END): State.TERMINATING,
    (State.TERMINATING, Change.CLOSED): State.TERMINATED,
}
"""R2.4, said a second time on purpose: a way that is added to the code by mistake is not in here."""


def make_allocation(now: float = START) -> Allocation:
    """An allocation without limits, alone in the world."""
    return Allocation(
        make_token(), OPEN_TIER, now=now, burst_seconds=0.1, global_bucket=None, counters=Counters(), events=FakeEvents(),
    )


class TransitionTests(SynchronousTestCase):
    """created → waiting → active → terminating → terminated, and nothing else (R2.4, ARCHITECTURE rule 4)."""

    def test_a_new_allocation_is_created(self) -> None:
        self.assertIs(make_allocation().state, State.CREATED)

    def test_every_legal_change_moves_it(self) -> None:
        for (state, change), then in LEGAL.items():
            allocation = make_allocation()
            allocation.state = state
            allocation.change(change)
            self.assertIs(allocation.state, then, (state, change))

    def test_every_other_change_raises_and_changes_nothing(self) -> None:
        illegal = [pair for pair in product(State, Change) if pair not in LEGAL]
        self.assertEqual(len(illegal), 25 - 9)
        for state, change in illegal:
            allocation = make_allocation()
            allocation.state = state
            with self.assertRaises(IllegalTransition) as caught:
                allocation.change(change)
            self.assertIn(change.value, str(caught.exception))
            self.assertIs(allocation.state, state)

    def test_the_table_that_documents_are_drawn_from_is_this_one(self) -> None:
        self.assertEqual(dict(TRANSITIONS), LEGAL)


class BindingTests(SynchronousTestCase):
    """Sides come and go; the state follows (R2.4, R5.2)."""

    def setUp(self) -> None:
        self.allocation = make_allocation()
        self.device, self.peer = FakeMember(Role.DEVICE), FakeMember(Role.PEER)

    def bind(self, *members: FakeMember) -> list[bool]:
        """Bind in order; for each whether its side was absent."""
        return [self.allocation.bind(member, START) for member in members]

    def unbind(self, *members: FakeMember) -> list[bool]:
        """Unbind in order; for each whether its side is absent now."""
        return [self.allocation.unbind(member, START) for member in members]

    def test_one_side_waits_for_the_other(self) -> None:
        for first, second in ((self.device, self.peer), (self.peer, self.device)):
            self.allocation = make_allocation()
            self.bind(first)
            self.assertIs(self.allocation.state, State.WAITING)
            self.bind(second)
            self.assertIs(self.allocation.state, State.ACTIVE)

    def test_it_waits_again_when_a_side_is_gone(self) -> None:
        self.bind(self.device, self.peer)
        self.unbind(self.device)
        self.assertIs(self.allocation.state, State.WAITING)
        self.bind(self.device)
        self.assertIs(self.allocation.state, State.ACTIVE)

    def test_it_waits_when_both_are_gone(self) -> None:
        self.bind(self.device, self.peer)
        self.unbind(self.device, self.peer)
        self.assertIs(self.allocation.state, State.WAITING)
        self.bind(self.peer)
        self.assertIs(self.allocation.state, State.WAITING)

    def test_only_the_first_of_a_side_ends_its_absence_and_only_the_last_begins_it(self) -> None:
        second = FakeMember(Role.DEVICE)
        self.assertEqual(self.bind(self.device, self.peer, second), [True, True, False])
        self.assertIs(self.allocation.state, State.ACTIVE)
        self.assertEqual(self.unbind(second), [False])
        self.assertIs(self.allocation.state, State.ACTIVE)
        self.assertEqual(self.unbind(self.device), [True])

    def test_members_are_those_of_both_sides(self) -> None:
        self.bind(self.device, self.peer)
        self.assertEqual(set(self.allocation.members), {self.device, self.peer})
        self.unbind(self.peer)
        self.assertEqual(list(self.allocation.members), [self.device])

    def test_nobody_binds_to_what_ended(self) -> None:
        self.bind(self.device)
        self.allocation.change(Change.END)
        with self.assertRaises(IllegalTransition):
            self.bind(self.peer)
        self.assertEqual(list(self.allocation.members), [self.device])

    def test_leaving_what_is_about_to_end_is_no_absence(self) -> None:
        self.bind(self.device, self.peer)
        self.allocation.change(Change.END)
        self.assertEqual(self.unbind(self.device, self.peer), [False, False])
        self.assertIs(self.allocation.state, State.TERMINATING)


class CurrentMemberTests(SynchronousTestCase):
    """The newest heard from within max(3 PTO, 1 s) is current, else the one heard from last (PROTOCOL §6)."""

    def setUp(self) -> None:
        self.side = Side(Role.DEVICE, START)

    def add(self, last_heard: float, patience: float = 1.0) -> FakeMember:
        """A member that was heard from ``last_heard`` seconds after the start, bound as the newest."""
        member = FakeMember(last_heard=START + last_heard, patience=patience)
        self.side.add(member, START + last_heard)
        return member

    def test_there_is_none_on_an_empty_side(self) -> None:
        self.side.select(START)
        self.assertIsNone(self.side.current)

    def test_the_newest_is(self) -> None:
        first, second = self.add(0.0), self.add(0.0)
        self.assertIs(self.side.current, second)
        self.assertEqual((first.times_superseded, second.times_superseded), (1, 0))

    def test_the_newest_stays_although_an_older_one_is_heard(self) -> None:
        first, second = self.add(0.0), self.add(0.0)
        first.last_heard = START + 0.9
        self.side.select(START + 1.0)
        self.assertIs(self.side.current, second)
        self.assertEqual(second.times_superseded, 0)

    def test_silence_longer_than_its_patience_loses_it_to_one_that_is_heard(self) -> None:
        first, second = self.add(0.0), self.add(0.0)
        first.last_heard = START + 1.25
        self.side.select(START + 1.25)
        self.assertIs(self.side.current, first)
        self.assertEqual((first.times_superseded, second.times_superseded), (1, 1))

    def test_each_member_has_its_own_patience(self) -> None:
        self.add(0.0)
        patient = self.add(0.0, patience=3.0)
        self.side.members[0].last_heard = START + 2.9
        self.side.select(START + 3.0)
        self.assertIs(self.side.current, patient)

    def test_it_comes_back_when_it_is_heard_again(self) -> None:
        first, second = self.add(0.0), self.add(0.0)
        first.last_heard = START + 2.0
        self.side.select(START + 2.0)
        second.last_heard = START + 2.5
        self.side.select(START + 2.5)
        self.assertIs(self.side.current, second)
        self.assertEqual((first.times_superseded, second.times_superseded), (2, 1))

    def test_of_silent_ones_it_is_the_one_heard_from_last(self) -> None:
        self.add(0.0)
        lately = self.add(0.0)
        self.add(0.0)
        lately.last_heard = START + 5.0
        self.side.select(START + 60.0)
        self.assertIs(self.side.current, lately)

    def test_of_silent_ones_that_were_heard_at_the_same_moment_it_is_the_newest(self) -> None:
        self.add(0.0)
        newest = self.add(0.0)
        self.side.select(START + 60.0)
        self.assertIs(self.side.current, newest)
        self.assertEqual(newest.times_superseded, 0)

    def test_nobody_is_told_when_nothing_changes(self) -> None:
        first, second = self.add(0.0), self.add(0.0)
        for _ in range(3):
            self.side.select(START + 0.5)
        self.assertEqual((first.times_superseded, second.times_superseded), (1, 0))

    def test_when_it_leaves_the_next_takes_over_without_a_word_to_it(self) -> None:
        first, second = self.add(0.0), self.add(0.0)
        self.side.remove(second, START + 0.5)
        self.assertIs(self.side.current, first)
        self.assertEqual(second.times_superseded, 0)

    def test_when_another_leaves_it_stays(self) -> None:
        first, second = self.add(0.0), self.add(0.0)
        self.side.remove(first, START + 0.5)
        self.assertIs(self.side.current, second)
        self.assertEqual(second.times_superseded, 0)

    def test_one_that_loses_it_because_another_leaves_hears_of_it(self) -> None:
        first, second, third = self.add(0.0), self.add(0.0), self.add(0.0)
        first.last_heard = START + 5.0
        self.side.remove(second, START + 5.0)
        self.assertIs(self.side.current, first)
        self.assertEqual((second.times_superseded, third.times_superseded), (1, 1))

    def test_when_the_last_leaves_there_is_none(self) -> None:
        self.side.remove(self.add(0.0), START)
        self.assertIsNone(self.side.current)

    @given(
        heard=st.lists(st.tuples(st.integers(0, 64), st.integers(1, 16)), min_size=1, max_size=6, unique_by=lambda one: one[0]),
        now=st.integers(64, 80),
    )
    def test_for_any_silences_it_is_the_one_the_rule_names(self, heard: list[tuple[int, int]], now: int) -> None:
        side = Side(Role.PEER, 0.0)
        members = [FakeMember(Role.PEER, last_heard=float(last), patience=float(patience)) for last, patience in heard]
        for member in members:
            side.add(member, 0.0)
        side.select(float(now))
        lately = [member for member in members if now - member.last_heard <= member.patience]
        expected = lately[-1] if lately else max(members, key=lambda member: member.last_heard)
        self.assertIs(side.current, expected)


class AbsenceTests(SynchronousTestCase):
    """A side never there is waited for wait_timeout, one that left idle_timeout (R2.6)."""

    WAIT, IDLE = 60.0, 30.0

    def setUp(self) -> None:
        self.allocation = make_allocation(now=START)
        self.device, self.peer = FakeMember(Role.DEVICE), FakeMember(Role.PEER)

    @property
    def deadline(self) -> float | None:
        """In seconds from the start."""
        deadline = self.allocation.absence_deadline(self.WAIT, self.IDLE)
        return None if deadline is None else deadline - START

    def test_one_that_was_never_there_is_waited_for_from_the_creation(self) -> None:
        self.assertEqual(self.deadline, 60.0)
        self.allocation.bind(self.device, START + 20.0)
        self.assertEqual(self.deadline, 60.0)

    def test_there_is_no_deadline_while_both_are_there(self) -> None:
        self.allocation.bind(self.device, START)
        self.allocation.bind(self.peer, START + 5.0)
        self.assertIsNone(self.deadline)

    def test_one_that_left_is_waited_for_from_then(self) -> None:
        self.allocation.bind(self.device, START)
        self.allocation.bind(self.peer, START + 5.0)
        self.allocation.unbind(self.peer, START + 100.0)
        self.assertEqual(self.deadline, 130.0)
        self.allocation.bind(self.peer, START + 129.0)
        self.assertIsNone(self.deadline)
        self.allocation.unbind(self.peer, START + 200.0)
        self.assertEqual(self.deadline, 230.0)

    def test_a_side_with_one_connection_left_is_there(self) -> None:
        second = FakeMember(Role.PEER)
        for member in (self.device, self.peer, second):
            self.allocation.bind(member, START)
        self.allocation.unbind(second, START + 10.0)
        self.assertIsNone(self.deadline)
        self.allocation.unbind(self.peer, START + 11.0)
        self.assertEqual(self.deadline, 41.0)

    def test_of_two_absent_sides_the_first_deadline_counts(self) -> None:
        self.allocation.bind(self.device, START)
        self.allocation.unbind(self.device, START + 1.0)
        self.assertEqual(self.deadline, 31.0)
        self.allocation.bind(self.device, START + 2.0)
        self.allocation.unbind(self.device, START + 40.0)
        self.assertEqual(self.deadline, 60.0)


class EndTests(SynchronousTestCase):
    """Which ends stay, and what they are called on the wire (R2.8, PROTOCOL §5)."""

    def test_quota_and_administrator_stay_ended(self) -> None:
        final = {reason for reason in TerminationReason if reason_is_final(reason)}
        self.assertEqual(final, {TerminationReason.QUOTA, TerminationReason.ADMINISTRATOR})

    def test_each_reason_has_its_close_code(self) -> None:
        self.assertEqual({int(reason): reason.close_code for reason in TerminationReason}, {
            1: ErrorCode.EXPIRED, 2: ErrorCode.IDLE, 3: ErrorCode.QUOTA_EXCEEDED, 4: ErrorCode.NO_ERROR,
            5: ErrorCode.TERMINATED, 6: ErrorCode.INTERNAL,
        })
