"""Ends of an allocation that outlive their connections (PROTOCOL §9; R5.4)."""

from __future__ import annotations

import random
from collections.abc import Callable

from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase

from tests.dialing import Resilient, cut, mend, restart
from tests.harness import OPEN_TIER, RELAY_ID, World
from tests.reconnecting import Scene, pending
from zrc_relay.client import (
    ConnectFailed,
    ConnectionLost,
    NotConnected,
    PayloadTooLarge,
    PeerJoined,
    PeerLeft,
    Reconnected,
    Reconnecting,
    RelayDraining,
    RelayStream,
    Superseded,
    UnknownCode,
)
from zrc_relay.client.backoff import FIRST_DELAY, LAST_DELAY, Backoff, is_final
from zrc_relay.client.errors import Draining, RateLimited, TooManyConnections, error_for
from zrc_relay.client.reconnect import ResilientState
from zrc_relay.core.codes import ErrorCode, Role
from zrc_relay.core.relay import Policy


class BackoffTests(SynchronousTestCase):
    """PROTOCOL §9: jittered exponential backoff from 100 ms."""

    def test_delays_double_up_to_the_last(self) -> None:
        backoff = Backoff(lambda: 1.0)
        delays = [backoff.next(ConnectionLost()) for _ in range(10)]
        self.assertEqual([round(delay, 3) for delay in delays[:8]], [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0])
        self.assertEqual(delays[-1], LAST_DELAY)
        backoff.reset()
        self.assertEqual(backoff.next(ConnectionLost()), FIRST_DELAY)

    def test_they_are_drawn_from_the_upper_half(self) -> None:
        self.assertEqual(Backoff(lambda: 0.0).next(ConnectionLost()), FIRST_DELAY / 2)
        rng = random.Random(3)  # noqa: S311 - any will do
        drawn = {round(Backoff(rng.random).next(ConnectionLost()), 4) for _ in range(50)}
        self.assertGreater(len(drawn), 25)
        self.assertTrue(all(FIRST_DELAY / 2 <= delay <= FIRST_DELAY for delay in drawn))

    def test_what_the_relay_asks_for_is_honoured(self) -> None:
        backoff = Backoff(lambda: 1.0)
        self.assertEqual(backoff.next(RateLimited("retry_after=30; slowly")), 30.0)
        self.assertEqual(backoff.next(RateLimited("slowly")), 0.2)

    def test_a_thousand_attempts_are_no_overflow(self) -> None:
        backoff = Backoff(lambda: 0.5)
        self.assertLessEqual(max(backoff.next(ConnectionLost()) for _ in range(2000)), LAST_DELAY)

    def test_which_errors_are_final(self) -> None:
        passing = {
            ErrorCode.ALLOCATE_TIMEOUT, ErrorCode.CAPACITY, ErrorCode.RATE_LIMITED, ErrorCode.TOO_MANY_CONNECTIONS,
            ErrorCode.DRAINING, ErrorCode.IDLE, ErrorCode.INTERNAL,
        }
        for code in ErrorCode:
            if code is not ErrorCode.NO_ERROR:
                self.assertEqual(is_final(error_for(code, "")), code not in passing, code.name)
        for error, final in (
            (ConnectionLost(), False), (ConnectFailed(), False), (UnknownCode(0x99, "?"), True), (ValueError(), True),
        ):
            self.assertEqual(is_final(error), final, error)


class ReconnectTests(SynchronousTestCase):
    """PROTOCOL §9: after a dead connection or a reset, the address in use again, with a new proof; counters go on."""

    def test_after_a_restart_of_the_relay_both_ends_find_each_other_again(self) -> None:
        scene = Scene()
        scene.exchange(self, b"before")
        restart(scene)
        for _ in range(10):
            scene.device.send(b"knock")
            scene.peer.send(b"knock")
            scene.run(0.1)
        scene.exchange(self, b"after")
        for end in (scene.device, scene.peer):
            self.assertEqual((end.reconnections, end.state), (1, ResilientState.CONNECTED))
            (going,), (back,) = end.events(Reconnecting), end.events(Reconnected)
            self.assertIsInstance(going.error, ConnectionLost)
            self.assertEqual((going.attempt, going.delay), (1, FIRST_DELAY))
            self.assertEqual(back.allocated, end.allocated)
            self.assertLess(end.notices.index(going), end.notices.index(back))

    def test_after_an_outage_the_allocation_is_the_same_and_goes_on_counting(self) -> None:
        scene = Scene()
        scene.exchange(self, bytes(100))
        cut(scene)
        scene.device.send(b"lost")
        scene.peer.send(b"lost")
        scene.run(4)
        self.assertFalse(scene.device.is_connected or scene.peer.is_connected)
        mend(scene)
        scene.run(8)
        scene.exchange(self, b"after")
        self.assertEqual(scene.relay.counters.allocations_created, 1)
        granted = scene.device.allocated
        self.assertEqual(granted.bytes_transferred if granted else None, 200)

    def test_every_connection_is_proven_anew(self) -> None:
        scene = Scene()
        challenges = set()
        for _ in range(3):
            connection = scene.device.connection
            self.assertIsNotNone(connection)
            hello = connection.hello if connection else None
            challenges.add(hello.challenge if hello else None)
            restart(scene)
            scene.device.send(bytes(100))
            scene.run(1.5)
        self.assertEqual(len(challenges), 3)
        self.assertTrue(scene.device.is_connected)

    def test_the_waits_between_attempts_grow_and_nothing_is_hammered(self) -> None:
        scene = Scene()
        cut(scene)
        scene.device.send(b"lost")
        scene.run(120)
        attempts = scene.device.events(Reconnecting)
        self.assertEqual([round(event.delay, 2) for event in attempts[:9]], [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0])
        self.assertEqual([event.attempt for event in attempts], list(range(1, len(attempts) + 1)))
        self.assertTrue(all(isinstance(event.error, ConnectFailed) for event in attempts[1:]))
        times = scene.device.dialer.times[1:]
        self.assertEqual(len(times), len(attempts) - (scene.device.state is ResilientState.WAITING))

    def test_while_it_is_away_datagrams_are_dropped_and_counted_and_the_rest_says_so(self) -> None:
        scene = Scene()
        scene.exchange(self)
        cut(scene)
        scene.device.send(b"lost")
        scene.run(3)
        device = scene.device
        before = device.stats
        for _ in range(5):
            device.send(b"into the void")
        self.assertEqual(device.stats.datagrams_dropped - before.datagrams_dropped, 5)
        self.assertEqual(device.dropped, device.stats.datagrams_dropped)
        with self.assertRaises(PayloadTooLarge):
            device.send(bytes(65_536))
        calls: list[Callable[[], object]] = [
            device.open_stream, device.ping, device.list_relays,
            lambda: device.refresh(scene.token()), lambda: device.observed_addr,
        ]
        for call in calls:
            with self.assertRaises(NotConnected):
                call()
        self.assertEqual((device.allocated, device.limits, device.max_payload, device.peer_max_payload), (None, None, 0, 0))
        self.assertFalse(device.peer_present)
        self.assertIsNone(device.stats.round_trip_time)
        self.assertEqual(device.allocation_id, scene.first_token.allocation_id)

    def test_counters_go_on_over_reconnections(self) -> None:
        scene = Scene()
        scene.exchange(self, b"12345")
        first = scene.device.stats
        self.assertEqual((first.datagrams_sent, first.bytes_sent, first.datagrams_received, first.bytes_received), (1, 5, 1, 5))
        self.assertLess(abs((first.round_trip_time or 0) - 0.01), 0.02)
        restart(scene)
        for end in (scene.device, scene.peer):
            end.send(bytes(100))
        scene.run(1.5)
        scene.exchange(self, b"12345")
        second = scene.device.stats
        self.assertEqual((second.datagrams_sent, second.datagrams_received), (3, 2))

    def test_who_waits_for_payloads_goes_on_waiting(self) -> None:
        scene = Scene()
        scene.device.on_datagram = None
        texts: list[bytes] = []

        async def read() -> None:
            texts.extend([payload async for payload in scene.device.datagrams()])

        reading: Deferred[None] = Deferred.fromCoroutine(read())
        scene.peer.send(b"one")
        scene.run(0.2)
        restart(scene)
        for end in (scene.device, scene.peer):
            end.send(bytes(100))
        scene.run(1.5)
        scene.peer.send(b"two")
        scene.run(0.2)
        self.assertNoResult(reading)
        scene.device.close()
        self.successResultOf(reading)
        self.assertEqual(texts, [b"one", b"two"])

    def test_streams_end_with_the_connection_they_began_on_and_new_ones_arrive(self) -> None:
        scene = Scene()
        taken: list[RelayStream] = []
        scene.peer.on_stream = taken.append
        old = scene.device.open_stream()
        scene.run(0.2)
        self.assertEqual(len(taken), 1)
        restart(scene)
        for end in (scene.device, scene.peer):
            end.send(bytes(100))
        gone = old.when_closed()
        scene.run(1.5)
        self.failureResultOf(gone, ConnectionLost)
        new = scene.device.open_stream()
        scene.run(0.2)
        self.assertEqual(len(taken), 2)
        self.assertFalse(new.is_closed)

    def test_a_relay_that_drains_and_stops_is_found_again_when_it_is_back(self) -> None:
        scene = Scene()
        scene.relay.drain(scene.wall() + 1)
        scene.run(1)
        scene.endpoint.close_all(ErrorCode.DRAINING, "the relay stops")
        scene.run(0.5)
        self.assertIsInstance(scene.device.events(Reconnecting)[0].error, Draining)
        self.assertEqual(len(scene.device.events(RelayDraining)), 1)
        self.assertFalse(scene.device.is_connected)
        restart(scene)
        scene.run(12)
        scene.exchange(self, b"after")

    def test_the_first_connection_is_tried_once_and_its_error_raised(self) -> None:
        world = World()
        cut(world)
        device = Resilient(world, Role.DEVICE)
        world.run(30)
        self.failureResultOf(device.opened, ConnectFailed)
        self.assertEqual(len(device.dialer.times), 1)
        self.assertIsInstance(device.error, ConnectFailed)
        self.assertEqual(pending(world), [])


class SettlingTests(SynchronousTestCase):
    """Issue "connections": two clients with one identity settle instead of driving each other out."""

    def test_the_older_one_is_superseded_stays_and_does_not_come_back(self) -> None:
        world = World()
        older = Resilient(world, Role.DEVICE)
        world.run(0.5)
        newer = Resilient(world, Role.DEVICE)
        peer = Resilient(world, Role.PEER)
        world.run(300)
        self.assertEqual([len(end.dialer.times) for end in (older, newer, peer)], [1, 1, 1])
        self.assertIn(Superseded(), older.notices)
        self.assertTrue(older.is_connected and newer.is_connected)
        newer.send(b"I was heard last")
        world.run(0.1)
        peer.send(b"to the newer")
        older.send(b"from the older")
        world.run(0.2)
        self.assertEqual((older.got, newer.got), ([], [b"to the newer"]))
        self.assertEqual(peer.got, [b"I was heard last", b"from the older"])

    def test_after_an_outage_of_both_each_comes_back_once(self) -> None:
        world = World(seed=9)
        rng = random.Random(2)  # noqa: S311 - the same jitter each time
        ends = [Resilient(world, Role.DEVICE, random=rng.random) for _ in range(2)]
        peer = Resilient(world, Role.PEER, random=rng.random)
        world.run(1)
        cut(world)
        for end in (*ends, peer):
            end.send(b"lost")
        world.run(3)
        mend(world)
        world.run(20)
        came_back = [end.reconnections for end in (*ends, peer)]
        self.assertEqual(came_back, [1, 1, 1])
        dialed = [len(end.dialer.times) for end in (*ends, peer)]
        world.run(300)
        self.assertEqual([len(end.dialer.times) for end in (*ends, peer)], dialed, "and then there is peace")
        self.assertTrue(all(end.is_connected for end in (*ends, peer)))

    def test_where_there_is_room_for_one_the_other_waits_without_disturbing_it(self) -> None:
        policy = Policy(relay_id=RELAY_ID, instance_id=bytes(8), default_tier=OPEN_TIER, max_connections_per_side=1)
        world = World(policy=policy)
        first = Resilient(world, Role.DEVICE)
        world.run(0.5)
        second = Resilient(world, Role.DEVICE)
        world.run(0.5)
        self.failureResultOf(second.opened, TooManyConnections)
        world.run(20)
        self.assertEqual((len(first.dialer.times), first.is_connected), (1, True))


class UserTests(SynchronousTestCase):
    """What a user may do while there is no connection."""

    def away(self) -> Scene:
        scene = Scene()
        cut(scene)
        scene.device.send(b"lost")
        scene.run(2.5)
        self.assertFalse(scene.device.is_connected)
        return scene

    def test_close_ends_it_at_any_moment_and_leaves_nothing_behind(self) -> None:
        seen = set()
        for moment in range(12):
            scene = self.away()
            scene.peer.close()
            scene.run(0.3 * moment)
            seen.add(scene.device.state)
            closed = scene.device.when_closed()
            scene.device.close()
            self.assertIsNone(self.successResultOf(closed))
            self.assertEqual(pending(scene), [])
            with self.assertRaises(ConnectionLost):
                scene.device.send(b"x")
            scene.device.close()
        self.assertEqual(seen, {ResilientState.WAITING, ResilientState.CONNECTING})

    def test_close_while_opening_cancels_that(self) -> None:
        world = World()
        device = Resilient(world, Role.DEVICE)
        world.run(0.012)
        device.opened.cancel()
        self.failureResultOf(device.opened, CancelledError)
        self.assertTrue(device.is_closed)
        self.assertEqual(pending(world), [])

    def test_close_when_it_is_connected_tells_the_other_end(self) -> None:
        scene = Scene()
        scene.device.close()
        scene.run(0.2)
        self.assertEqual(scene.peer.notices[-1], PeerLeft())

    def test_a_handler_may_close_it(self) -> None:
        scene = Scene()

        def leave(event: object) -> None:
            if isinstance(event, Reconnecting):
                scene.device.close()

        scene.device.on_notice = leave
        restart(scene)
        scene.device.send(bytes(100))
        scene.peer.close()
        scene.run(1)
        self.assertTrue(scene.device.is_closed)
        self.assertEqual(pending(scene), [])

    def test_a_handler_that_raises_is_logged_and_it_goes_on(self) -> None:
        scene = Scene()

        def clumsy(event: object) -> None:
            raise LookupError(event)

        scene.device.on_notice = clumsy
        restart(scene)
        scene.device.send(bytes(100))
        scene.run(1)
        self.assertTrue(scene.device.is_connected)
        self.assertGreaterEqual(len(self.flushLoggedErrors(LookupError)), 2)

    def test_a_release_waits_for_the_next_connection(self) -> None:
        scene = self.away()
        released = scene.device.release()
        mend(scene)
        scene.run(8)
        self.assertIsNone(self.successResultOf(released))
        self.assertTrue(scene.peer.is_closed)
        self.assertEqual(len(scene.relay.table), 0)

    def test_peers_that_come_and_go_are_told_as_ever(self) -> None:
        scene = Scene()
        restart(scene)
        scene.device.send(bytes(100))
        scene.run(1)
        self.assertTrue(scene.device.is_connected)
        self.assertFalse(scene.device.peer_present)
        scene.peer.send(bytes(100))
        scene.run(1)
        self.assertTrue(scene.device.peer_present)
        self.assertIsInstance([event for event in scene.device.notices if isinstance(event, PeerJoined)][-1], PeerJoined)
