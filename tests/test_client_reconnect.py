"""Connections that die, and ends of an allocation that outlive them (PROTOCOL §9; R5.4, R5.9)."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase

from tests import raw_quic as raw
from tests.dialing import Dialer, Resilient, cut, mend, restart
from tests.fake_relay import FakeRelay, FakeSession, allocated, fingerprint, server_configuration
from tests.harness import OPEN_TIER, RELAY_ADDRESS, RELAY_ID, World
from zrc_relay.client import (
    AllocationTerminated,
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
    Trust,
    UnknownCode,
)
from zrc_relay.client.backoff import FIRST_DELAY, LAST_DELAY, Backoff, is_final
from zrc_relay.client.errors import (
    AllocationIdle,
    Draining,
    InternalError,
    QuotaExceeded,
    RateLimited,
    Terminated,
    TokenExpired,
    TooManyConnections,
    error_for,
)
from zrc_relay.client.reconnect import STABLE, ResilientState
from zrc_relay.client.vigil import Advice, Vigil
from zrc_relay.core.codes import ErrorCode, Role, TerminationReason
from zrc_relay.core.relay import Policy
from zrc_relay.quic.udp import SocketAddress


def pending(world: World) -> list[str]:
    """Whatever is still scheduled for clients."""
    owners = [getattr(call.func, "__self__", None) for call in world.clock.getDelayedCalls()]
    return [type(owner).__module__ for owner in owners if type(owner).__module__.startswith("zrc_relay.client")]


class VigilTests(SynchronousTestCase):
    """R5.4, PROTOCOL §9: when to say something, and when to take the relay for gone."""

    def test_a_ping_is_due_once_for_each_silence(self) -> None:
        vigil = Vigil(100.0)
        self.assertIsNone(vigil.deadline)
        vigil.keep_alive(15)
        self.assertEqual(vigil.deadline, 115.0)
        self.assertEqual([vigil.advise(now, 0.1) for now in (114.9, 115.0, 115.1)], [Advice.NOTHING, Advice.PING, Advice.NOTHING])
        self.assertIsNone(vigil.deadline)
        vigil.heard(116.0)
        self.assertEqual(vigil.deadline, 131.0)
        self.assertIs(vigil.advise(131.0, 0.1), Advice.PING)

    def rounds(self, probe_timeout: float) -> list[float]:
        """When a vigil probes and, last, gives up something sent at 0 that is never answered."""
        vigil = Vigil(-100.0)
        vigil.sent(0.0, probe_timeout, awaits_answer=True)
        times = []
        while vigil.deadline is not None:
            now = vigil.deadline
            self.assertIs(vigil.advise(now - 0.001, probe_timeout), Advice.NOTHING)
            times.append(now)
            if vigil.advise(now, probe_timeout) is Advice.GIVE_UP:
                break
            vigil.sent(now, probe_timeout, awaits_answer=True)
        return times

    def test_three_probes_without_an_answer_are_a_death(self) -> None:
        self.assertEqual([round(time, 3) for time in self.rounds(2.0)], [2.0, 4.0, 6.0, 8.0])

    def test_on_a_short_path_they_take_a_second(self) -> None:
        self.assertEqual([round(time, 3) for time in self.rounds(0.03)], [0.333, 0.667, 1.0, 1.03])

    def test_whatever_is_heard_brings_it_back_to_life(self) -> None:
        vigil = Vigil(100.0)
        vigil.sent(200.0, 0.1, awaits_answer=True)
        for now in (200.4, 200.8, 201.2):
            self.assertIs(vigil.advise(now, 0.1), Advice.PING)
        vigil.heard(201.25)
        self.assertIs(vigil.advise(260.0, 0.1), Advice.NOTHING, "nothing was sent since")
        vigil.sent(300.0, 0.1, awaits_answer=True)
        self.assertIs(vigil.advise(300.4, 0.1), Advice.PING)

    def test_what_asks_for_no_answer_waits_for_none(self) -> None:
        vigil = Vigil(100.0)
        vigil.sent(100.0, 0.1, awaits_answer=True)
        vigil.sent(100.2, 0.1, awaits_answer=False)
        self.assertIsNone(vigil.deadline)
        self.assertIs(vigil.advise(200.0, 0.1), Advice.NOTHING)


class LivenessTests(SynchronousTestCase):
    """R5.4, PROTOCOL §9: keepalive as ALLOCATED says, and dead connections noticed within seconds."""

    def silences(self, keepalive: float) -> tuple[World, list[float]]:
        """The times between two packets of a client that has nothing to say, over five minutes."""
        policy = Policy(relay_id=RELAY_ID, instance_id=bytes(8), default_tier=OPEN_TIER, keepalive_interval=keepalive)
        world = World(policy=policy)
        device, _ = world.pair()
        times: list[float] = []

        def note(data: bytes, source: SocketAddress, _to: SocketAddress) -> bytes:
            if source == device.host.sockaddr:
                times.append(world.now())
            return data

        world.network.filter = note
        world.run(1)
        times.append(world.now())
        times.sort()
        world.run(300 if keepalive else 25)
        self.assertFalse(device.is_closed)
        return world, [later - earlier for earlier, later in pairwise(times)]

    def test_something_is_said_in_every_interval_and_not_much_more_often(self) -> None:
        for keepalive in (5, 15):
            world, silences = self.silences(keepalive)
            self.assertLessEqual(max(silences), keepalive + 0.1)
            self.assertLessEqual(len([silence for silence in silences if silence > 1]), 300 / keepalive + 1)
            self.assertEqual(sum(world.relay.counters.connections_closed.values()), 0)

    def test_no_interval_means_no_ping(self) -> None:
        _, silences = self.silences(0)
        self.assertLess(len(silences), 10)

    def test_a_busy_connection_that_dies_is_noticed_within_two_seconds(self) -> None:
        world = World()
        device, _ = world.pair()
        cut(world)
        began = world.now()
        while not device.is_closed and world.now() < began + 10:
            device.send(b"anyone?")
            world.run(0.05)
        self.assertIsInstance(device.error, ConnectionLost)
        self.assertTrue(began + 1 <= world.now() < began + 2, world.now() - began)

    def test_a_quiet_one_when_the_keepalive_is_not_answered(self) -> None:
        world = World()
        device, _ = world.pair()
        cut(world)
        world.run(15 + 3)
        self.assertIsInstance(device.error, ConnectionLost)

    def test_a_hiccup_is_no_death(self) -> None:
        world = World()
        device, peer = world.pair()
        for _ in range(5):
            cut(world)
            device.send(b"lost")
            world.run(0.8)
            mend(world)
            world.run(2)
        self.assertFalse(device.is_closed)
        device.send(b"still there")
        world.run(0.1)
        self.assertEqual(peer.got[-1], b"still there")

    def test_nor_is_a_tenth_of_all_packets_lost(self) -> None:
        world = World(seed=4)
        device, peer = world.pair()
        rng = random.Random(5)  # noqa: S311 - the same losses each time
        world.network.filter = lambda data, _source, _to: None if rng.random() < 0.1 else data
        for _ in range(600):
            device.send(b"x")
            world.run(0.5)
        self.assertFalse(device.is_closed or peer.is_closed)

    def test_nor_is_a_process_that_was_stopped_for_a_while(self) -> None:
        world = World()
        device, peer = world.pair()
        world.run(3)
        device.send(b"before")
        world.run(0.001)
        world.clock.advance(8)  # everything that was due meanwhile is late, timers first
        world.run(1)
        self.assertFalse(device.is_closed)
        device.send(b"after")
        world.run(0.1)
        self.assertEqual(peer.got[-1], b"after")

    def test_nothing_is_scheduled_any_more_once_it_is_closed(self) -> None:
        world = World()
        device, peer = world.pair()
        device.send(b"x")
        device.open_stream()
        self.assertNotEqual(pending(world), [])
        device.close()
        peer.close()
        self.assertEqual(pending(world), [])


class StatelessResetTests(SynchronousTestCase):
    """RFC 9000 §10.3.1, R5.9: a relay that has lost its memory says so, and is believed at once."""

    def test_a_reset_ends_the_connection_at_once(self) -> None:
        world = World()
        device, _ = world.pair()
        restart(world)
        device.send(bytes(100))
        world.run(0.05)
        self.assertIsInstance(device.error, ConnectionLost)
        self.assertIn("does not know", str(device.error))

    def test_a_forged_one_does_nothing(self) -> None:
        world = World()
        device, peer = world.pair()
        rng = random.Random(1)  # noqa: S311 - any will do
        for _ in range(100):
            for packet in (b"\x41" + rng.randbytes(42), b"\x41" + device.quic.own_ids[0] + rng.randbytes(34)):
                device.datagram_received(packet, (RELAY_ADDRESS, device.host))
        device.batch_done()
        peer.send(b"still there")
        world.run(0.1)
        self.assertEqual(device.got, [b"still there"])

    def test_without_the_old_secret_the_silence_tells(self) -> None:
        world = World()
        device, _ = world.pair()
        restart(world, forget=True)
        device.send(bytes(100))
        world.run(0.5)
        self.assertFalse(device.is_closed)
        world.run(2)
        self.assertIsInstance(device.error, ConnectionLost)


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


class Scene(World):
    """A device that connects again, and a peer that does too."""

    def __init__(self, *, supplier: Any = None, **changes: Any) -> None:
        super().__init__(**changes)
        self.first_token = self.token()
        self.device = Resilient(self, Role.DEVICE, token=self.first_token, supplier=supplier)
        self.peer = Resilient(self, Role.PEER, token=self.first_token)
        self.run(0.5)
        if not (self.device.is_connected and self.peer.is_connected):
            msg = f"not connected: {self.device.error}, {self.peer.error}"
            raise AssertionError(msg)

    def exchange(self, case: SynchronousTestCase, text: bytes = b"ping") -> None:
        """Both ends hear each other."""
        self.device.send(text)
        self.peer.send(text)
        self.run(0.2)
        case.assertEqual((self.device.got[-1], self.peer.got[-1]), (text, text))


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


class GivingUpTests(SynchronousTestCase):
    """PROTOCOL §5, §9: what the relay has decided is not asked again."""

    def test_a_release_of_the_other_end_is_the_end(self) -> None:
        scene = Scene()
        closed = scene.device.when_closed()
        released = scene.peer.release()
        scene.run(1)
        self.assertIsNone(self.successResultOf(released))
        self.assertIsNone(self.successResultOf(closed))
        self.assertEqual(scene.device.state, ResilientState.CLOSED)
        self.assertIn(AllocationTerminated(TerminationReason.RELEASED), scene.device.notices)
        scene.run(30)
        self.assertEqual((len(scene.device.dialer.times), pending(scene)), (1, []))

    def test_what_an_administrator_or_the_quota_ended_stays_ended(self) -> None:
        for reason, error in (
            (TerminationReason.ADMINISTRATOR, Terminated),
            (TerminationReason.QUOTA, QuotaExceeded),
        ):
            scene = Scene()
            (allocation,) = scene.relay.table
            scene.relay.end(allocation, reason, scene.now(), scene.wall())
            scene.endpoint.batch_done()
            scene.run(5)
            self.assertIsInstance(scene.device.error, error)
            self.assertEqual(len(scene.device.dialer.times), 1)

    def test_an_allocation_whose_other_side_never_comes_back_is_let_go(self) -> None:
        scene = Scene()
        scene.peer.close()
        scene.run(35)
        self.assertIsInstance(scene.device.error, AllocationIdle)
        self.assertEqual(len(scene.device.dialer.times), 1)

    def test_a_failure_inside_the_relay_is_tried_again_even_when_it_ended_the_allocation(self) -> None:
        scene = Scene()
        (allocation,) = scene.relay.table
        scene.relay.end(allocation, TerminationReason.ERROR, scene.now(), scene.wall())
        scene.endpoint.batch_done()
        scene.run(2)
        self.assertIsInstance(scene.device.events(Reconnecting)[0].error, InternalError)
        scene.exchange(self, b"a new one")

    def test_a_token_that_expires_while_it_is_away_is_the_end(self) -> None:
        world = World()
        device = Resilient(world, Role.DEVICE, token=world.token(expires_at=int(world.wall()) + 30))
        world.run(0.5)
        cut(world)
        device.send(b"lost")
        world.run(60)
        self.assertIsInstance(device.error, TokenExpired)
        self.assertEqual(pending(world), [])

    def test_a_supplier_gives_the_token_to_come_back_with(self) -> None:
        world = World()
        late = world.token(expires_at=int(world.wall()) + 500)
        asked: list[float] = []

        def supply() -> Any:
            asked.append(world.now())
            if len(asked) < 3:
                msg = "the minting service is away too"
                raise OSError(msg)
            return late

        device = Resilient(world, Role.DEVICE, token=world.token(expires_at=int(world.wall()) + 30), supplier=supply)
        world.run(0.5)
        cut(world)
        device.send(b"lost")
        world.run(40)
        mend(world)
        world.run(30)
        self.assertTrue(device.is_connected)
        self.assertEqual(device.dialer.tokens[-1], late)
        self.assertEqual(device.identity.token, late)
        self.assertIn("minting service", str([event.error for event in device.events(Reconnecting)]))


class FakedScene(World):
    """A scripted relay: each connection gets the next answer to its ALLOCATE; the last one goes on."""

    def __init__(self, *answers: Any, supplier: Any = None) -> None:
        super().__init__()
        self.answers = list(answers)
        self.fake = FakeRelay(self.clock, self.now, self.answer)
        self.network.attach(RELAY_ADDRESS, self.fake)
        dialer = Dialer(self, Trust(fingerprint=fingerprint(server_configuration())))
        self.device = Resilient(self, Role.DEVICE, dialer=dialer, supplier=supplier)
        self.run(0.5)

    def answer(self, session: FakeSession, kind: int, _value: bytes) -> None:
        if kind == raw.ALLOCATE:
            answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
            if answer is None:
                session.send(allocated())
            else:
                code, reason = answer
                session.close(code, reason)

    def lose(self) -> None:
        """The connection that there is now ends with a failure inside the relay."""
        self.fake.sessions[-1].close(ErrorCode.INTERNAL)
        self.run(0.05)


class ScriptedTests(SynchronousTestCase):
    """PROTOCOL §5, §9: answers of a relay to one who comes back."""

    def test_a_close_is_heard_as_soon_as_it_arrives(self) -> None:
        scene = FakedScene(None)
        scene.fake.sessions[-1].close(ErrorCode.INTERNAL, "sorry")
        scene.run(0.006)
        (event,) = scene.device.events(Reconnecting)
        self.assertEqual(str(event.error), "INTERNAL: sorry")

    def test_each_final_code_ends_it_after_one_attempt(self) -> None:
        for code in ErrorCode:
            if code is ErrorCode.NO_ERROR or not is_final(error_for(code, "")):
                continue
            scene = FakedScene(None, (code, "no"))
            scene.lose()
            scene.run(30)
            self.assertEqual(getattr(scene.device.error, "code", None), code)
            self.assertEqual(len(scene.device.dialer.times), 2, code.name)

    def test_each_passing_code_is_tried_again_until_it_passes(self) -> None:
        for code in ErrorCode:
            if code is ErrorCode.NO_ERROR or is_final(error_for(code, "")):
                continue
            scene = FakedScene(None, (code, "not now"), (code, "not now"), None)
            scene.lose()
            scene.run(10)
            self.assertEqual((len(scene.device.dialer.times), scene.device.is_connected), (4, True), code.name)

    def test_an_end_in_peace_is_the_end(self) -> None:
        scene = FakedScene(None)
        scene.fake.sessions[-1].close(ErrorCode.NO_ERROR)
        scene.run(10)
        self.assertTrue(scene.device.is_closed)
        self.assertIsNone(scene.device.error)

    def test_retry_after_is_waited_for(self) -> None:
        scene = FakedScene(None, (ErrorCode.RATE_LIMITED, "retry_after=25; too many"), None)
        scene.lose()
        scene.run(24)
        self.assertFalse(scene.device.is_connected)
        scene.run(2)
        self.assertTrue(scene.device.is_connected)
        self.assertEqual([event.delay for event in scene.device.events(Reconnecting)], [FIRST_DELAY, 25.0])

    def test_a_relay_that_takes_and_drops_again_and_again_is_not_hammered(self) -> None:
        scene = FakedScene(None)
        for _ in range(400):
            if scene.device.is_connected:
                scene.lose()
            scene.run(0.25)
        self.assertLess(len(scene.device.dialer.times), 20)

    def test_one_that_held_for_a_while_is_come_back_to_at_once(self) -> None:
        scene = FakedScene(None)
        for _ in range(4):
            scene.lose()
            scene.run(3)
        scene.run(STABLE)
        self.assertTrue(scene.device.is_connected)
        scene.lose()
        self.assertEqual(scene.device.events(Reconnecting)[-1].delay, FIRST_DELAY)

    def test_an_expired_token_is_replaced_by_the_suppliers_and_only_by_a_later_one(self) -> None:
        given: list[Any] = []

        def supply() -> Any:
            return given.pop(0)

        scene = FakedScene(None, (ErrorCode.TOKEN_EXPIRED, ""), (ErrorCode.TOKEN_EXPIRED, ""), None, supplier=supply)
        same, later, last = (scene.token(expires_at=int(scene.wall()) + 3600 + extra) for extra in (0, 100, 200))
        given += [same, later, last]
        scene.lose()
        scene.run(15)
        self.assertEqual([token.expires_at - same.expires_at for token in scene.device.dialer.tokens], [0, 0, 100, 200])
        self.assertTrue(scene.device.is_connected)
        self.assertIn("does not live longer", str([event.error for event in scene.device.events(Reconnecting)]))


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
