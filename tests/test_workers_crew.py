"""The workers as one thing that forwards, without processes: started, replaced, watched, and stopped."""

from __future__ import annotations

import os
from dataclasses import replace

from tests.crew_support import COUNT, STALL, CrewCase
from tests.fake_workers import FakeWorker
from zrc_relay.control.sums import NOTHING
from zrc_relay.core.routing import Share
from zrc_relay.metrics.catalogue import COUNTERS
from zrc_relay.metrics.snapshot import Snapshot
from zrc_relay.workers.berth import START_TIMEOUT, STOP_TIMEOUT, State, Watchfulness
from zrc_relay.workers.crew import SPARE_DELAY
from zrc_relay.workers.supervision import FIRST_DELAY, MAX_DELAY, STEADY


class StartTests(CrewCase):
    """Issue "all cores": the parent opens the sockets once, and each worker learns which are its own and what it goes by."""

    def test_each_worker_begins_with_its_place_and_the_orders(self) -> None:
        self.start()
        sockets = self.crew.sockets
        for index, worker in enumerate((self.first, self.second)):
            post, orders = worker.post, worker.orders
            if post is None or orders is None:
                self.fail("it has not begun")
            self.assertEqual((post.index, post.count, post.secret, post.cpus), (index, COUNT, bytes(32), ()))
            self.assertEqual((post.sockets, post.descriptors), (sockets.places(index), len(sockets.all)))
            self.assertEqual(orders.settings.policy.worker_port_base, sockets.worker_port_base)
        self.assertNotEqual(sockets.places(0), sockets.places(1))

    def test_it_is_ready_when_the_last_one_is(self) -> None:
        self.processes.waits = {"begin"}
        self.crew.startService()
        self.addCleanup(self.stop)
        self.processes.turn()
        self.processes.started[0].answer()
        self.processes.turn()
        self.assertEqual((self.states(), self.times_ready), ([State.READY, State.STARTING], 0))
        self.processes.started[1].answer()
        self.processes.turn()
        self.assertEqual((self.states(), self.times_ready), ([State.READY] * 2, 1))

    def test_a_spare_is_started_when_all_are_there_and_not_before(self) -> None:
        self.crew.startService()
        self.addCleanup(self.stop)
        self.processes.run(SPARE_DELAY - 0.25)
        self.assertEqual(len(self.processes.started), COUNT)
        self.processes.run(0.5)
        self.assertEqual(len(self.processes.started), COUNT + 1)
        self.assertEqual(self.processes.started[-1].heard, [])

    def test_each_gets_a_cpu_where_that_is_wanted(self) -> None:
        self.patch(os, "sched_getaffinity", lambda _: {7, 3})
        self.crew = self.make(pins=True)
        self.start()
        self.assertEqual([worker.post.cpus for worker in (self.first, self.second) if worker.post], [(3,), (7,)])

    def test_it_reports_often_enough_to_be_missed_in_time(self) -> None:
        self.start()
        for stall, expected in ((STALL, 1.0), (0.5, 0.125)):
            self.crew.watchfulness = Watchfulness(stall, pins=False)
            self.assertEqual(self.crew.beginning(0).post.report_interval, expected)

    def test_one_that_cannot_be_started_is_tried_again(self) -> None:
        self.processes.problem = OSError("no more processes")
        self.crew.startService()
        self.addCleanup(self.stop)
        self.processes.turn()
        self.assertEqual((self.states(), self.times_ready), ([State.DOWN] * 2, 0))
        self.processes.problem = None
        self.processes.run(FIRST_DELAY)
        self.assertEqual((self.states(), self.times_ready), ([State.READY] * 2, 1))

    def test_one_that_does_not_begin_in_time_is_killed(self) -> None:
        self.processes.waits = {"begin"}
        self.crew.startService()
        self.addCleanup(self.stop)
        self.processes.waits = set()
        for worker in self.processes.started:
            worker.stands_still = True
        self.processes.run(START_TIMEOUT - 1)
        self.assertEqual(self.states(), [State.STARTING] * 2)
        self.processes.run(2)
        self.assertEqual([worker.kills for worker in self.processes.started[:2]], [1, 1])
        self.assertEqual(self.states(), [State.READY] * 2)


class ReplacementTests(CrewCase):
    """Issue "all cores": a worker that dies is replaced within a second, with backoff when it keeps dying."""

    def test_the_spare_takes_the_place_at_once_and_another_spare_comes(self) -> None:
        self.start()
        self.first.die()
        self.processes.turn()
        self.assertIs(self.at(0), self.spare)
        self.assertEqual(self.states(), [State.READY] * 2)
        self.assertEqual(self.spare.post.index if self.spare.post else None, 0)
        self.assertTrue(self.second.is_alive)
        self.assertEqual(self.second.names(), ["begin"])
        self.assertEqual(len(self.processes.alive), 2)
        self.processes.run(1.5)
        self.assertEqual(len(self.processes.alive), 3)
        self.assertEqual(self.times_ready, 2)

    def test_without_a_spare_a_new_process_takes_it(self) -> None:
        self.start()
        self.processes.run(STEADY)
        self.first.die()
        self.second.exit(1)
        self.processes.turn()
        self.assertEqual(self.states(), [State.READY] * 2)
        self.assertEqual(len(self.processes.started), 4)

    def test_whoever_ends_by_himself_is_replaced_too(self) -> None:
        for status in (0, 1):
            self.setUp()
            self.start()
            self.first.exit(status)
            self.processes.turn()
            self.assertIs(self.at(0), self.spare)

    def test_one_that_keeps_dying_comes_back_ever_later(self) -> None:
        self.start()
        self.processes.run(STEADY)
        delays = []
        for _ in range(12):
            self.occupant(0).die()
            self.processes.turn()
            died_at = self.processes.seconds()
            while self.at(0) is None:
                self.processes.run(0.25)
            delays.append(self.processes.seconds() - died_at)
        self.assertEqual(delays[:5], [0, FIRST_DELAY, 2 * FIRST_DELAY, 4 * FIRST_DELAY, 8 * FIRST_DELAY])
        self.assertEqual(delays[-1], MAX_DELAY)
        self.assertIs(self.at(1), self.second)

    def test_one_that_has_lived_for_a_while_comes_back_at_once_again(self) -> None:
        self.start()
        for _ in range(3):
            self.occupant(0).die()
            self.processes.run(1)
        self.processes.run(STEADY)
        self.occupant(0).die()
        self.processes.turn()
        self.assertEqual(self.states(), [State.READY] * 2)

    def test_a_spare_that_dies_is_renewed_ever_later(self) -> None:
        self.start()
        self.spare.die()
        self.processes.run(1.25)
        self.assertEqual(len(self.processes.alive), 3)
        self.processes.started[-1].die()
        self.processes.run(SPARE_DELAY)
        self.assertEqual(len(self.processes.alive), 2)
        self.processes.run(FIRST_DELAY)
        self.assertEqual(len(self.processes.alive), 3)
        self.assertEqual(self.states(), [State.READY] * 2)

    def test_a_spare_is_renewed_while_another_place_is_empty(self) -> None:
        self.start()
        for _ in range(6):
            self.occupant(0).die()
            while self.at(0) is None:
                self.processes.run(0.25)
            self.processes.run(1.25)
        self.occupant(0).die()
        self.second.die()
        self.processes.turn()
        self.assertEqual((self.states(), len(self.processes.alive)), ([State.DOWN, State.READY], 1))
        self.processes.run(SPARE_DELAY)
        self.assertEqual((self.states(), len(self.processes.alive)), ([State.DOWN, State.READY], 2))

    def test_a_spare_that_dies_when_it_is_needed(self) -> None:
        self.start()
        self.processes.run(STEADY)
        self.first.die()
        self.processes.advance(0)
        self.assertEqual((self.states(), self.at(0)), ([State.STARTING, State.READY], self.spare))
        self.spare.die()
        self.processes.run(FIRST_DELAY)
        self.assertEqual(self.states(), [State.READY] * 2)

    def test_one_that_cannot_begin_is_killed_and_replaced(self) -> None:
        self.start()
        self.spare.fails = {"begin"}
        self.first.die()
        self.processes.turn()
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual((self.spare.kills, self.spare.is_alive), (1, False))
        self.assertEqual(self.states(), [State.DOWN, State.READY])
        self.processes.run(FIRST_DELAY)
        self.assertEqual(self.states(), [State.READY] * 2)

    def test_what_the_dead_one_held_of_the_limits_is_given_back(self) -> None:
        self.start()
        mine, others = (self.crew.memory.limits(Share(index, COUNT)).places for index in range(COUNT))
        self.assertEqual([mine.take(bytes(32), 3, None) for _ in range(2)], [None, None])
        self.assertIsNone(others.take(bytes(32), 3, None))
        self.assertIsNotNone(others.take(bytes(32), 3, None))
        self.first.die()
        self.processes.turn()
        self.assertEqual([others.take(bytes(32), 3, None) for _ in range(2)], [None, None])
        self.assertIsNotNone(others.take(bytes(32), 3, None))

    def test_what_the_dead_one_had_counted_stays_and_is_counted_once(self) -> None:
        name = next(iter(sorted(COUNTERS)))
        for words_last in (False, True):
            self.setUp()
            self.start()
            self.first.numbers = replace(NOTHING, traffic=replace(NOTHING.traffic, bytes=70))
            self.first.snapshot = Snapshot({name: {"": 70.0}})
            self.processes.run(0.5)
            self.assertEqual(self.counted(name), (70, 70.0))
            self.first.report()
            self.first.die(words_last=words_last)
            self.assertEqual(self.counted(name), (70, 70.0))
            self.processes.run(1)
            self.assertEqual(self.counted(name), (70, 70.0))
            self.assertEqual(self.fleet.restarts, 1)

    def counted(self, name: str) -> tuple[int, float]:
        return self.fleet.numbers().traffic.bytes, self.fleet.totals.together().values[name][""]


class StallTests(CrewCase):
    """Issue "all cores": a worker whose event loop stands still for ``worker_stall`` is replaced."""

    def test_it_is_killed_once_and_replaced(self) -> None:
        self.start()
        self.first.stands_still = True
        self.processes.run(STALL - 0.5)
        self.assertEqual(self.first.kills, 0)
        self.processes.run(1)
        self.assertEqual((self.first.kills, self.first.is_alive), (1, False))
        self.assertIs(self.at(0), self.spare)
        self.assertEqual((self.second.kills, self.second.is_alive), (0, True))

    def test_it_is_killed_again_only_when_that_does_not_help(self) -> None:
        self.start()
        self.first.stands_still = True
        self.patch(FakeWorker, "die", lambda worker: None)
        self.processes.run(STALL + 2)
        self.assertEqual(self.first.kills, 1)
        self.processes.run(STALL)
        self.assertEqual(self.first.kills, 2)

    def test_nobody_is_killed_when_it_was_the_parent_that_stood_still(self) -> None:
        self.start()
        self.processes.advance(2 * STALL)
        self.processes.turn()
        self.processes.run(1)
        self.assertEqual([worker.kills for worker in self.processes.started], [0, 0, 0])

    def test_a_spare_has_nothing_to_say_and_lives(self) -> None:
        self.start()
        self.processes.run(3 * STALL)
        self.assertTrue(self.spare.is_alive)


class DrainTests(CrewCase):
    """R9: draining is over when the last client of the last worker has left."""

    def setUp(self) -> None:
        super().setUp()
        self.start()
        self.first.waits = self.second.waits = {"drain"}

    def test_it_is_answered_when_all_have_left(self) -> None:
        left = self.crew.drain(77.0)
        self.processes.turn()
        self.assertEqual([worker.heard[-1] for worker in (self.first, self.second)], [("drain", 77.0)] * 2)
        self.first.answer()
        self.processes.turn()
        self.assertNoResult(left)
        self.second.answer()
        self.processes.turn()
        self.successResultOf(left)

    def test_who_is_dead_has_left(self) -> None:
        left = self.crew.drain(77.0)
        self.processes.turn()
        self.first.answer()
        self.second.die()
        self.processes.turn()
        self.successResultOf(left)

    def test_who_comes_while_it_drains_drains_at_once(self) -> None:
        self.crew.drain(77.0)
        self.processes.turn()
        self.second.die()
        self.processes.turn()
        self.assertEqual(self.spare.names(), ["begin", "drain"])

    def test_who_comes_before_does_not(self) -> None:
        self.second.die()
        self.processes.turn()
        self.assertEqual(self.spare.names(), ["begin"])


class StopTests(CrewCase):
    """R9: everything ends with the relay, in peace if it can."""

    def setUp(self) -> None:
        super().setUp()
        self.start()

    def test_all_are_asked_to_stop_and_the_spare_just_ends(self) -> None:
        stopped = self.crew.stopService()
        self.processes.turn()
        self.successResultOf(stopped)
        self.assertEqual(self.processes.alive, [])
        self.assertEqual([worker.names()[-1] for worker in (self.first, self.second)], ["stop", "stop"])
        self.assertEqual([worker.kills for worker in self.processes.started], [0, 0, 1])
        self.assertEqual(self.crew.sockets.all, [])

    def test_nobody_is_replaced_any_more(self) -> None:
        self.first.waits = {"stop"}
        self.crew.stopService()
        self.processes.run(1)
        self.first.die()
        self.processes.run(STOP_TIMEOUT)
        self.assertEqual((len(self.processes.started), self.processes.alive), (3, []))

    def test_who_does_not_stop_in_time_is_killed(self) -> None:
        self.first.stands_still = True
        stopped = self.crew.stopService()
        self.processes.run(STOP_TIMEOUT - 0.25)
        self.assertNoResult(stopped)
        self.assertEqual(self.processes.alive, [self.first])
        self.processes.run(0.5)
        self.successResultOf(stopped)
        self.assertEqual(self.first.kills, 1)

    def test_a_place_that_waits_for_its_next_one_stays_empty(self) -> None:
        for _ in range(2):
            self.occupant(0).die()
            self.processes.turn()
        self.assertEqual(self.states(), [State.DOWN, State.READY])
        stopped = self.crew.stopService()
        self.processes.run(MAX_DELAY)
        self.successResultOf(stopped)
        self.assertEqual(self.processes.alive, [])
        self.assertEqual(self.processes.getDelayedCalls(), [])
