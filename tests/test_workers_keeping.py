"""What workers know of allocations outlives them: told in batches, kept by the parent, handed to whoever comes after."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from tests.crew_support import CrewCase
from tests.fake_workers import FakeWorker
from tests.harness import World
from zrc_relay.control.sampler import INTERVAL, Sampler
from zrc_relay.core.allocation import AllocationKey
from zrc_relay.core.codes import ErrorCode, Role, TerminationReason
from zrc_relay.core.remembered import Remembered
from zrc_relay.workers.keeping import MAX_TOGETHER, Keeper, Kept

UNTIL = 1000


def key_of(number: int) -> AllocationKey:
    """One of many."""
    return number.to_bytes(32, "big"), b"allocation" + bytes(6)


def entry(number: int, used: int = 70, until: int = UNTIL, *, pinned: bool = True) -> Remembered:
    """What is remembered of one of many."""
    return Remembered(*key_of(number), used, until, None, frozenset(), pinned)


class FakeTable:
    """A ``Table`` that knows what it is told."""

    def __init__(self) -> None:
        self.known: dict[AllocationKey, Remembered] = {}

    def remembered(self, key: AllocationKey, wall: float) -> Remembered | None:
        """What is known, while it holds."""
        found = self.known.get(key)
        return found if found is not None and found.until > wall else None


class KeeperTests(SynchronousTestCase):
    """R2.8, R3.7: what has changed is told once, in bounded batches; what must stay ended before anything else."""

    def setUp(self) -> None:
        self.table = FakeTable()
        self.sent: list[tuple[tuple[Remembered, ...], tuple[AllocationKey, ...]]] = []
        self.arrivals: list[Deferred[Any]] = []
        self.keeper = Keeper(self.table, self.send, lambda: 0.0)

    def send(self, *, entries: tuple[Remembered, ...], forgotten: tuple[AllocationKey, ...]) -> Deferred[Any]:
        self.sent.append((entries, forgotten))
        self.arrivals.append(Deferred())
        return self.arrivals[-1]

    def change(self, *numbers: int, used: int = 70) -> None:
        for number in numbers:
            self.table.known[key_of(number)] = entry(number, used)
            self.keeper.changed(key_of(number))

    def arrive(self) -> None:
        """What is under way arrives."""
        self.arrivals[-1].callback({})

    def test_nothing_is_sent_of_those_that_have_not_changed(self) -> None:
        self.keeper.flush()
        self.change(1)
        self.keeper.flush()
        self.arrive()
        self.keeper.flush()
        self.assertEqual(self.sent, [((entry(1),), ())])

    def test_what_is_known_when_it_is_sent_counts(self) -> None:
        self.change(1, 2)
        self.change(1, used=90)
        self.keeper.flush()
        self.assertEqual(self.sent, [((entry(1, 90), entry(2)), ())])

    def test_what_is_nothing_any_more_is_forgotten(self) -> None:
        self.change(1, 2)
        self.table.known[key_of(1)] = entry(1, until=0)
        self.keeper.flush()
        self.assertEqual(self.sent, [((entry(2),), (key_of(1),))])

    def test_many_go_one_batch_after_the_other(self) -> None:
        self.change(*range(2 * MAX_TOGETHER + 1))
        self.keeper.flush()
        self.keeper.flush()
        self.assertEqual(len(self.sent), 1)
        self.change(0, used=90)  # told already, and told again
        for _ in range(3):
            self.arrive()
        self.assertEqual([len(entries) for entries, _ in self.sent], [MAX_TOGETHER, MAX_TOGETHER, 2])
        self.assertEqual(self.sent[-1][0][-1], entry(0, 90))
        self.assertEqual(len({each.key for entries, _ in self.sent for each in entries}), 2 * MAX_TOGETHER + 1)

    def test_an_end_for_good_waits_for_nothing(self) -> None:
        self.change(1, 2)
        self.keeper.flush()
        self.change(3, 4)
        self.table.known[key_of(3)] = replace(entry(3), code=ErrorCode.TERMINATED)
        self.keeper.ended_for_good(key_of(3))
        self.assertEqual(self.sent[1:], [((replace(entry(3), code=ErrorCode.TERMINATED),), ())])
        self.arrivals[0].callback({})
        self.assertEqual(self.sent[2:], [((entry(4),), ())])

    def test_a_parent_that_is_gone_is_no_error(self) -> None:
        self.change(1, 2)
        self.keeper.ended_for_good(key_of(1))
        self.keeper.flush()
        for each in self.arrivals:
            each.errback(Failure(ConnectionLost()))
        self.assertEqual(len(self.sent), 2)


class LookTests(SynchronousTestCase):
    """R3.7: within a second what an allocation has carried is known elsewhere, and only of those that carry something."""

    def setUp(self) -> None:
        self.world = World()
        self.sent: list[tuple[Remembered, ...]] = []
        table = self.world.relay.table
        keeper = Keeper(table, self.send, self.world.wall)
        table.report_to(keeper)
        self.sampler = Sampler(self.world.relay, self.world.endpoint, self.world.clock, self.world.now)
        self.sampler.on_moved, self.sampler.on_looked = keeper.changed, keeper.flush
        self.sampler.startService()
        self.addCleanup(self.sampler.stopService)

    def send(self, *, entries: tuple[Remembered, ...], forgotten: tuple[AllocationKey, ...]) -> Deferred[Any]:
        self.assertEqual(forgotten, ())
        self.sent.append(entries)
        arrived: Deferred[Any] = Deferred()
        arrived.callback({})
        return arrived

    def test_bytes_are_told_after_the_next_look_and_then_no_more(self) -> None:
        device, peer = self.world.pair()
        self.world.run(2 * INTERVAL)
        (allocation,) = self.world.relay.table
        self.assertEqual(self.sent[-1], (Remembered.of_live(allocation),))
        self.assertEqual(self.sent[-1][0].proven, frozenset(Role))
        self.sent.clear()
        device.send(bytes(500))
        peer.send(bytes(300))
        self.world.run(2 * INTERVAL)
        self.assertEqual([[each.bytes_transferred for each in entries] for entries in self.sent], [[800]])
        self.world.run(3 * INTERVAL)
        self.assertEqual(len(self.sent), 1)

    def test_an_administrator_s_word_is_told_before_anybody_can_be_told_that_it_was_done(self) -> None:
        self.world.pair()
        (allocation,) = self.world.relay.table
        self.world.relay.end(allocation, TerminationReason.ADMINISTRATOR, self.world.now(), self.world.wall())
        self.assertEqual([each.code for each in self.sent[-1]], [ErrorCode.TERMINATED])


class KeptTests(SynchronousTestCase):
    """R2.8, R6.9: the parent knows what the worker said last, while it holds, and no more than so many."""

    def test_the_last_word_counts_and_comes_last(self) -> None:
        kept = Kept(10)
        kept.keep((entry(1), entry(2), entry(3)), ())
        kept.keep((entry(1, 90),), (key_of(2), key_of(9)))
        self.assertEqual(kept.take_stock(0.0), (entry(3), entry(1, 90)))

    def test_what_has_run_out_is_forgotten(self) -> None:
        kept = Kept(10)
        kept.keep((entry(1, until=5), entry(2, until=6)), ())
        self.assertEqual((kept.take_stock(5.0), len(kept)), ((entry(2, until=6),), 1))

    def test_past_the_bound_those_go_that_are_not_pinned_and_run_out_first(self) -> None:
        kept = Kept(32)
        kept.keep(tuple(entry(number, until=UNTIL - number) for number in range(16)), ())
        kept.keep(tuple(entry(number, until=UNTIL + number, pinned=False) for number in range(16, 32)), ())
        self.assertEqual(len(kept), 32)
        kept.keep((entry(99),), ())
        left = {each.key for each in kept.take_stock(0.0)}
        self.assertEqual({key_of(number) for number in range(32)} - left, {key_of(16), key_of(17), key_of(18)})
        self.assertIn(key_of(99), left)
        kept.keep(tuple(entry(number) for number in range(100, 200)), ())
        self.assertLessEqual(len(kept), 32)
        self.assertFalse([each for each in kept.take_stock(0.0) if not each.pinned])


class SuccessorTests(CrewCase):
    """R2.8, R3.7, issue "all cores": whoever takes the place of a worker knows what it knew of allocations."""

    def began_with(self, worker: FakeWorker) -> tuple[Remembered, ...]:
        """What that one was told when it began."""
        (beginning,) = [what for name, what in worker.heard if name == "begin"]
        found: tuple[Remembered, ...] = beginning.remembered
        return found

    def test_it_is_handed_to_the_successor_and_to_nobody_else(self) -> None:
        self.start()
        self.assertEqual(self.began_with(self.first), ())
        kept = self.first.keep(entry(1), entry(2))
        self.second.keep(entry(5))
        self.processes.turn()
        self.assertEqual(self.successResultOf(kept), {})
        self.first.keep(replace(entry(1), code=ErrorCode.TERMINATED), forgotten=(key_of(2),))
        self.first.die()
        self.processes.turn()
        self.assertEqual(self.began_with(self.spare), (replace(entry(1), code=ErrorCode.TERMINATED),))
        self.assertEqual(self.second.names(), ["begin"])

    def test_and_to_the_successor_of_that_one_although_it_said_nothing(self) -> None:
        self.start()
        self.first.keep(entry(1), entry(2))
        self.processes.run(1)
        for _ in range(3):
            self.occupant(0).die()
            self.processes.run(10)
        self.occupant(0).keep(entry(1, 90))
        self.occupant(0).die()
        self.processes.run(1)
        self.assertEqual(self.began_with(self.occupant(0)), (entry(2), entry(1, 90)))

    def test_what_has_run_out_is_not(self) -> None:
        self.start()
        self.first.keep(entry(1, until=3), entry(2))
        self.processes.run(2)
        self.first.die()
        self.processes.turn()
        self.assertEqual(self.began_with(self.spare), (entry(2),))

    def test_words_that_are_read_after_the_end_reach_it_too(self) -> None:
        self.start()
        self.first.keep(entry(1))
        self.first.die(words_last=True)
        self.processes.turn()
        self.assertEqual(self.began_with(self.spare), (entry(1),))

    def test_words_that_are_read_after_it_began_reach_it_too(self) -> None:
        self.start()
        self.first.keep(entry(1))
        self.first.die(words_last=True, meanwhile=self.processes.turn)
        self.processes.turn()
        self.assertEqual(self.began_with(self.spare), ())
        self.assertEqual(self.spare.heard[1:], [("remember", (entry(1),))])
        self.spare.die()
        self.processes.run(1)
        self.assertEqual(self.began_with(self.occupant(0)), (entry(1),))
