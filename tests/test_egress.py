"""Payloads on their way out: what waits is bounded in bytes and age, nothing blocks what comes after it, control goes first."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests import raw_quic as raw
from tests.harness import TestClient, World
from tests.raw_quic import ScriptedClient
from tests.test_hostile import device_key, good_token, peer_key
from zrc_relay.client.errors import PayloadTooLarge
from zrc_relay.client.notices import DatagramsDropped, MaxPayloadChanged, PeerJoined
from zrc_relay.core.codes import DropCause, Role
from zrc_relay.quic.egress import EgressQueue
from zrc_relay.quic.link import RelayConnection
from zrc_relay.quic.settings import EndpointSettings


class QueueTests(SynchronousTestCase):
    """R3.9: bounded in bytes and in age, the oldest dropped first."""

    def setUp(self) -> None:
        self.dropped: list[int] = []

    def queue(self, max_bytes: int = 1000, max_age: float = 0.1) -> EgressQueue:
        return EgressQueue(max_bytes, max_age, self.dropped.append)

    def test_what_fits_comes_out_in_order(self) -> None:
        queue = self.queue()
        for size in (100, 200, 300):
            queue.push(bytes(size), 0.0)
        self.assertEqual((len(queue), queue.size, bool(queue)), (3, 600, True))
        self.assertEqual(queue[0], bytes(100), "looking does not take")
        self.assertEqual([len(queue.popleft()) for _ in range(3)], [100, 200, 300])
        self.assertEqual((len(queue), queue.size, bool(queue), self.dropped), (0, 0, False, []))

    def test_the_bytes_are_full_to_the_last_one(self) -> None:
        queue = self.queue()
        queue.push(bytes(500), 0.0)
        queue.push(bytes(500), 0.0)
        self.assertEqual(self.dropped, [])
        queue.push(bytes(64), 0.0)
        self.assertEqual((self.dropped, queue.size), ([500], 564))

    def test_the_oldest_go_until_the_newest_fits(self) -> None:
        queue = self.queue()
        for size in (100, 101, 102, 103):
            queue.push(bytes(size), 0.0)
        queue.push(bytes(800), 0.0)
        self.assertEqual(self.dropped, [100, 101, 102])
        self.assertEqual([len(queue.popleft()), len(queue.popleft())], [103, 800])

    def test_one_that_is_larger_than_the_bound_is_kept_alone(self) -> None:
        queue = self.queue(max_bytes=1000)
        queue.push(bytes(10), 0.0)
        queue.push(bytes(1400), 0.0)
        self.assertEqual((self.dropped, len(queue)), ([10], 1))

    def test_empty_payloads_are_bounded_too(self) -> None:
        queue = self.queue(max_bytes=64 * 10)
        for _ in range(100):
            queue.push(b"", 0.0)
        self.assertEqual((len(queue), len(self.dropped)), (10, 90))

    def test_what_has_waited_longer_than_the_age_is_dropped_and_no_other(self) -> None:
        queue = self.queue(max_age=0.1)
        for number in range(10):
            queue.push(bytes(number + 1), number * 0.02)
        queue.expire(0.19)
        self.assertEqual(self.dropped, [1, 2, 3, 4, 5])
        queue.expire(0.19)
        self.assertEqual(len(queue), 5)

    @given(
        st.lists(st.tuples(st.integers(0, 1500), st.floats(0, 0.05), st.integers(0, 3)), max_size=60),
        st.integers(1500, 5000),
    )
    def test_bounds_and_order_hold_for_any_schedule(self, steps: list[tuple[int, float, int]], max_bytes: int) -> None:
        dropped: list[int] = []
        queue = EgressQueue(max_bytes, 0.1, dropped.append)
        now, pushed, taken = 0.0, 0, []
        times: dict[int, float] = {}
        for size, delay, take in steps:
            now += delay
            payload = pushed.to_bytes(4, "big") + bytes(size)
            times[pushed] = now
            pushed += 1
            queue.push(payload, now)
            self.assertLessEqual(queue.size, max(max_bytes, len(payload)))
            queue.expire(now)
            for _ in range(min(take, len(queue))):
                number = int.from_bytes(queue.popleft()[:4], "big")
                self.assertLessEqual(now - times[number], 0.1)
                taken.append(number)
        self.assertEqual(taken, sorted(taken))
        self.assertEqual(len(taken) + len(dropped) + len(queue), pushed)


class SizesTests(SynchronousTestCase):
    """R3.1, R3.4: payloads of every size that fits arrive byte for byte and in order, both ways; others are refused at once."""

    def test_every_size_that_fits_arrives_byte_for_byte_and_in_order_both_ways(self) -> None:
        world = World()
        device, peer = world.pair()
        most = device.max_payload
        self.assertGreaterEqual(most, 1200, "a QUIC Initial of the inner program must pass")
        sent = [world.random(size) for size in range(most + 1)]
        for start in range(0, len(sent), 8):
            for payload in sent[start : start + 8]:
                device.send(payload)
                peer.send(payload)
            world.run(0.012)
        world.run(0.2)
        self.assertEqual(peer.got, sent)
        self.assertEqual(device.got, sent)
        self.assertEqual(sum(world.relay.counters.dropped_packets.values()), 0)

    def test_the_library_refuses_what_no_datagram_may_hold(self) -> None:
        world = World()
        device, peer = world.pair()
        with self.assertRaises(PayloadTooLarge):
            device.send(bytes(65_536))
        device.send(b"after")
        world.run(0.1)
        self.assertEqual(peer.got, [b"after"])

    def test_each_side_hears_what_fits_towards_the_other(self) -> None:
        world = World()
        device, peer = world.pair()
        world.run(2)
        told = [notice.max_payload for notice in device.notices if isinstance(notice, PeerJoined | MaxPayloadChanged)]
        self.assertEqual(told[-1], device.peer_max_payload)
        self.assertGreaterEqual(told[0], 1200)
        for client in (device, peer):
            self.assertGreaterEqual(client.peer_max_payload, client.max_payload)
            client.send(bytes(client.max_payload))
        world.run(0.1)
        self.assertEqual([len(payload) for payload in device.got + peer.got], [peer.max_payload, device.max_payload])


class OversizeTests(SynchronousTestCase):
    """Issue "must show": a datagram too big for the way out never delays the next one."""

    def pair(self, world: World, frame_limit: int) -> tuple[ScriptedClient, ScriptedClient]:
        """A device with room and a peer that takes DATAGRAM frames of at most ``frame_limit`` bytes."""
        token = good_token(world)
        device = ScriptedClient(world)
        peer = ScriptedClient(world, max_datagram_frame_size=frame_limit)
        world.run(0.1)
        device.allocate(token, device_key(world))
        peer.allocate(token, peer_key(world), raw.PEER)
        world.run(0.1)
        return device, peer

    def test_small_ones_pass_at_once_between_those_that_do_not_fit(self) -> None:
        world = World()
        device, peer = self.pair(world, 100)
        for number in range(20):
            peer.datagrams.clear()
            device.send_datagram(bytes(1000))
            device.send_datagram(b"%d" % number)
            world.run(3 * world.network.latency)
            self.assertEqual([payload for payload in peer.datagrams if len(payload) < 100], [b"%d" % number])
        self.assertIsNone(peer.closed)
        self.assertIsNone(device.closed)

    def test_the_limit_is_kept_to_the_byte(self) -> None:
        world = World()
        device, peer = self.pair(world, 100)
        for size in range(90, 101):
            device.send_datagram(bytes(size))
        device.send_datagram(b"end")
        world.run(0.1)
        # A frame of 100 bytes is its type, a length of two bytes (for what is above 63) and 97 bytes; one counted short is well.
        sizes = [len(payload) for payload in peer.datagrams]
        self.assertEqual(sizes[-1], 3)
        self.assertEqual(sizes[:-1], list(range(90, 98)))
        self.assertIsNone(peer.closed)

    def test_a_client_that_takes_no_datagrams_at_all_is_no_obstacle_to_the_other_direction(self) -> None:
        world = World()
        token = good_token(world)
        device, peer = ScriptedClient(world), ScriptedClient(world, max_datagram_frame_size=None)
        world.run(0.1)
        device.allocate(token, device_key(world))
        peer.allocate(token, peer_key(world), raw.PEER)
        world.run(0.1)
        for payload in (b"", b"x", bytes(1000)):
            device.send_datagram(payload)
        world.run(0.2)
        self.assertEqual(peer.datagrams, [])
        self.assertIsNone(device.closed)
        self.assertEqual(world.relay.counters.session_errors, 0)


class CongestionTests(SynchronousTestCase):
    """R3.9, R3.10: when the way out is jammed the queue is bounded, the newest survive, and control still gets through."""

    SETTINGS = EndpointSettings(egress_queue_bytes=20_000, egress_queue_age=0.1)

    def connection_of(self, world: World, client: TestClient) -> RelayConnection:
        connections = world.endpoint.all_connections()
        return next(connection for connection in connections if connection.remote.port == client.host.sockaddr[1])

    def test_a_jam_keeps_at_most_the_bound_and_then_the_newest_go_on_in_order(self) -> None:
        world = World(settings=self.SETTINGS)
        device, peer = world.pair()
        connection = self.connection_of(world, peer)
        world.network.filter = lambda data, source, _to: None if source == peer.host.sockaddr else data
        for number in range(300):
            device.send(number.to_bytes(4, "big") + bytes(996))
            world.run(0.003)
            self.assertLessEqual(connection.quic.egress.size, 20_000)
        counters = world.relay.counters
        self.assertGreater(counters.dropped_packets[DropCause.EGRESS_QUEUE], 200)
        self.assertEqual(counters.dropped_bytes[DropCause.EGRESS_QUEUE], 1000 * counters.dropped_packets[DropCause.EGRESS_QUEUE])
        world.network.filter = lambda data, _source, _to: data
        world.run(3)
        device.send(b"after the jam")
        world.run(0.1)
        self.assertEqual(peer.got[-1], b"after the jam")
        numbers = [int.from_bytes(payload[:4], "big") for payload in peer.got[:-1]]
        self.assertEqual(numbers, sorted(numbers))
        late = [notice for notice in device.notices if isinstance(notice, DatagramsDropped)]
        self.assertEqual({notice.cause for notice in late}, {DropCause.EGRESS_QUEUE})
        self.assertEqual(sum(notice.packets for notice in late), counters.dropped_packets[DropCause.EGRESS_QUEUE])

    def test_what_waited_too_long_never_leaves(self) -> None:
        world = World(settings=self.SETTINGS)
        device, peer = world.pair()
        world.network.filter = lambda data, source, _to: None if source == peer.host.sockaddr else data
        for _ in range(200):
            device.send(bytes(1000))
            world.run(0.003)
        world.run(0.5)
        stale = len(peer.got)
        world.network.filter = lambda data, _source, _to: data
        world.run(3)
        self.assertEqual(len(peer.got), stale, "everything that was queued is older than the age by now")

    def test_a_refresh_is_answered_while_a_flood_of_datagrams_is_queued(self) -> None:
        world = World(settings=EndpointSettings(egress_queue_bytes=10_000_000, egress_queue_age=60.0))
        device, peer = world.pair()
        world.run(2)
        connection = self.connection_of(world, device)
        # Empty payloads: the smallest frames leave no room for anything else in any packet, if they go first.
        flood = 100_000
        for _ in range(flood):
            connection.send_datagrams([b""], world.now())
        arrived: list[int] = []
        token = device.identity.token if device.identity else world.token()
        device.refresh(token).addCallback(lambda _: arrived.append(len(device.got)))
        world.run(1)
        self.assertEqual(len(device.got), flood)
        self.assertLess(arrived[0], flood // 2, "the answer came before most of what was queued when it was asked for")
        self.assertFalse(peer.is_closed)

    def test_a_handshake_in_the_middle_of_a_flood_is_completed(self) -> None:
        world = World()
        device, peer = world.pair()
        for _ in range(200):
            peer.send(bytes(1000))
        other = world.client(Role.DEVICE)
        world.run(0.3)
        self.assertIsNotNone(other.allocated)
        self.assertGreater(len(device.got) + len(other.got), 100)
