"""Payloads of every size through the client library, and paths whose MTU changes (PROTOCOL §6; R3.4, R5.8)."""

from __future__ import annotations

from typing import Any

from aioquic.quic import events
from twisted.trial.unittest import SynchronousTestCase

from tests import raw_quic as raw
from tests.fake_relay import FakeRelay, FakeSession, allocated, fingerprint, server_configuration
from tests.harness import OPEN_TIER, RELAY_ADDRESS, RELAY_ID, TestClient, World
from tests.raw_quic import PEER, ScriptedClient
from zrc_relay.client import ClientConnection, ConnectionLost, Identity, PayloadTooLarge, Trust
from zrc_relay.client.notices import DatagramsDropped
from zrc_relay.client.trust import MAX_UDP_PAYLOAD, UDP_PAYLOAD
from zrc_relay.core.codes import Role, StreamError
from zrc_relay.core.relay import Policy
from zrc_relay.quic.udp import SocketAddress

LARGEST = 65_535
OVERHEAD = UDP_PAYLOAD - 1202
"""What QUIC takes of a UDP payload for one DATAGRAM."""
SIZES = sorted({
    0, 1, 63, 64, 65, 1199, 1200, 1201, 1202, 1203,
    *range(1150, 1460, 7), *range(1418, 1426), *range(2_000, LARGEST, 2_711), 16_383, 16_384, 16_385, 65_534, LARGEST,
})


class NarrowWorld(World):
    """Packets of more than ``mtu`` bytes of UDP payload are lost between the device and the relay."""

    def __init__(self, mtu: int) -> None:
        super().__init__()
        self.mtu = mtu
        self.network.filter = self.narrow
        self.device, self.peer = self.pair()
        self.run(3)

    def narrow(self, data: bytes, source: SocketAddress, to: SocketAddress) -> bytes | None:
        ends = {source[:2], to[:2]}
        return None if len(data) > self.mtu and ("198.51.100.7", 10_001) in ends else data


class EverySizeTests(SynchronousTestCase):
    """R3.4, PROTOCOL §6: payloads of 0 to 65,535 bytes arrive byte for byte, each way."""

    def check(self, world: World, sender: TestClient, receiver: TestClient) -> None:
        for size in SIZES:
            payload = world.random(size)
            receiver.got.clear()
            sender.send(payload)
            world.run(0.15)
            self.assertEqual(receiver.got, [payload], f"{size} bytes")
        self.assertEqual(sender.dropped, 0)

    def test_from_the_device_to_the_peer(self) -> None:
        world = World()
        device, peer = world.pair()
        world.run(1)
        self.check(world, device, peer)

    def test_from_the_peer_to_the_device(self) -> None:
        world = World()
        device, peer = world.pair()
        world.run(1)
        self.check(world, peer, device)

    def test_when_the_two_paths_carry_packets_of_different_sizes(self) -> None:
        world = NarrowWorld(1280)
        self.assertLess(world.device.max_payload, world.peer.max_payload)
        self.check(world, world.device, world.peer)
        self.check(world, world.peer, world.device)

    def test_many_large_ones_in_a_row_arrive_in_order(self) -> None:
        world = World()
        device, peer = world.pair()
        sent = [world.random(20_000 + number) for number in range(40)]
        for payload in sent:
            device.send(payload)
            world.run(0.05)
        world.run(0.5)
        self.assertEqual(peer.got, sent)

    def test_they_are_payloads_like_any_other(self) -> None:
        world = World()
        device, peer = world.pair()
        peer.on_datagram = None
        sizes = [10, 5_000, 20]
        for size in sizes:
            device.send(bytes(size))
            world.run(0.2)
        self.assertEqual([len(self.successResultOf(peer.receive()) or b"") for _ in sizes], sizes)
        self.assertEqual((device.stats.datagrams_sent, device.stats.bytes_sent), (3, 5_030))
        self.assertEqual((peer.stats.datagrams_received, peer.stats.bytes_received), (3, 5_030))


class BoundTests(SynchronousTestCase):
    """PROTOCOL §6, R3.9: what is too long is refused, what nobody lets through is bounded."""

    def test_more_than_65535_bytes_are_too_many(self) -> None:
        world = World()
        device, peer = world.pair()
        with self.assertRaises(PayloadTooLarge):
            device.send(bytes(LARGEST + 1))
        device.send(b"the next one")
        world.run(0.1)
        self.assertEqual(peer.got, [b"the next one"])
        self.assertEqual(device.stats.datagrams_sent, 1)

    def test_what_waits_is_bounded_and_the_oldest_goes(self) -> None:
        world = World()
        device, peer = world.pair()
        world.network.filter = lambda _data, _source, _to: None
        for number in range(100):
            device.send(number.to_bytes(2, "big") * 15_000)
            world.run(0.002)
        held = device.quic.unsent(2) + 30_000 * (100 - device.dropped)
        self.assertLess(held, 1_500_000)
        self.assertGreater(device.dropped, 50)
        world.network.filter = lambda data, _source, _to: data
        world.run(3)
        device.send(b"x" * 30_000)
        world.run(1)
        self.assertEqual(peer.got[-1], b"x" * 30_000)

    def test_a_receiver_that_wants_none_costs_the_sender_a_notice_and_nobody_the_connection(self) -> None:
        policy = Policy(relay_id=RELAY_ID, instance_id=bytes(8), default_tier=OPEN_TIER, proving_roles=frozenset())
        world = World(policy=policy)
        device = world.client(Role.DEVICE)
        world.run(0.3)
        peer = ScriptedClient(world)
        world.run(0.1)
        peer.allocate(world.token().encode(), role=PEER)
        world.run(0.1)
        device.send(bytes(5_000))
        world.run(0.2)
        (oversize,) = (stream_id for stream_id in peer.streams if stream_id not in (0, 3))
        peer.quic.stop_stream(oversize, 7)
        peer.flush()
        world.run(0.2)
        for _ in range(3):
            device.send(bytes(5_000))
            world.run(1.2)
        self.assertEqual(len(peer.streams[oversize]), 1 + 2 + 5_000)
        self.assertEqual(sum(event.packets for event in device.notices if isinstance(event, DatagramsDropped)), 3)
        device.send(b"what fits still passes")
        world.run(0.1)
        self.assertEqual(peer.datagrams, [b"what fits still passes"])
        self.assertEqual((peer.close_code, world.relay.counters.session_errors), (None, 0))


class RudeRelayTests(SynchronousTestCase):
    """PROTOCOL §6: streams of a relay that are not what they should be."""

    def setUp(self) -> None:
        self.world = World()
        self.fake = FakeRelay(self.world.clock, self.world.now, self.answer)
        self.world.network.attach(RELAY_ADDRESS, self.fake)

    def answer(self, session: FakeSession, kind: int, _value: bytes) -> None:
        if kind == raw.ALLOCATE:
            session.send(allocated(keepalive=15))

    def established(self) -> tuple[ClientConnection, FakeSession]:
        world = self.world
        world.credentials = type(world.credentials)(world.credentials.configuration, fingerprint(server_configuration()))
        client = TestClient(world, Identity(world.token(), Role.DEVICE, world.device_key), None, start=True)
        world.run(0.3)
        if client.allocated is None:
            msg = f"not allocated: {client.error}"
            raise AssertionError(msg)
        return client, self.fake.sessions[0]

    def say(self, session: FakeSession, *pieces: bytes, end: bool = False) -> int:
        """Say something on a new unidirectional stream, piece by piece."""
        stream_id = session.quic.get_next_available_stream_id(is_unidirectional=True)
        for number, piece in enumerate(pieces, start=1):
            session.quic.send_stream_data(stream_id, piece, end_stream=end and number == len(pieces))
            session.flush()
            self.world.run(0.1)
        return stream_id

    def test_records_cut_anywhere_are_put_together(self) -> None:
        client, session = self.established()
        record = b"\x01" + b"\x00" + b"\x03abc" + raw.varint(300) + bytes(300)
        self.say(session, *(record[i : i + 1] for i in range(8)), record[8:200], record[200:], end=True)
        self.assertIsInstance(client, TestClient)
        self.assertEqual(getattr(client, "got", None), [b"", b"abc", bytes(300)])

    def test_a_type_of_more_bytes_than_needed_is_understood(self) -> None:
        client, session = self.established()
        self.say(session, b"\x40", b"\x01", b"\x02ok")
        self.assertEqual(getattr(client, "got", None), [b"ok"])

    def test_a_record_longer_than_any_may_be_is_an_error(self) -> None:
        client, session = self.established()
        self.say(session, b"\x01" + raw.varint(LARGEST + 1))
        self.assertIsInstance(client.error, ConnectionLost)
        self.assertIn("broke the protocol", str(client.error))
        self.world.run(1)
        closed: Any = session.closed
        self.assertEqual(closed.error_code if closed else None, 1)

    def test_a_record_that_never_ends_is_nothing(self) -> None:
        client, session = self.established()
        self.say(session, b"\x01" + raw.varint(1000) + bytes(10), end=True)
        self.assertEqual(getattr(client, "got", None), [])
        self.assertFalse(client.is_closed)

    def test_a_stream_of_an_unknown_type_is_stopped_with_the_code_for_that(self) -> None:
        client, session = self.established()
        seen: list[events.QuicEvent] = []
        next_event = session.quic.next_event

        def watched() -> events.QuicEvent | None:
            event = next_event()
            if event is not None:
                seen.append(event)
            return event

        setattr(session.quic, "next_event", watched)  # noqa: B010 - mypy does not like a method to be replaced
        stream_id = self.say(session, b"\x3fsomething new")
        stops = [event for event in seen if isinstance(event, events.StopSendingReceived)]
        self.assertEqual([(stop.stream_id, stop.error_code) for stop in stops], [(stream_id, StreamError.UNKNOWN_TYPE)])
        self.assertFalse(client.is_closed)
        self.say(session, b"\x01\x02ok")
        self.assertEqual(getattr(client, "got", None), [b"ok"])

    def test_hundreds_of_strange_streams_leave_room_for_the_good_one(self) -> None:
        client, session = self.established()
        for number in range(200):
            self.say(session, b"\x3f" + bytes(number), end=bool(number % 2))
        self.say(session, b"\x01\x02ok")
        self.assertEqual(getattr(client, "got", None), [b"ok"])
        self.assertEqual(len(vars(vars(client)["_streams"])["_done_with"]), 0)

    def test_a_relay_that_allows_no_stream_gets_datagrams_only(self) -> None:
        client, session = self.established()
        vars(client.quic)["_remote_max_streams_uni"] = 0
        with self.assertRaises(PayloadTooLarge) as caught:
            client.send(bytes(5_000))
        self.assertIn("takes no stream", str(caught.exception))
        client.send(b"fits")
        self.world.run(0.1)
        self.assertEqual(session.datagrams, [b"fits"])

    def test_a_relay_that_stops_our_stream_gets_datagrams_only_from_then_on(self) -> None:
        client, session = self.established()
        client.send(bytes(5_000))
        self.world.run(0.2)
        session.quic.stop_stream(2, 0)
        session.flush()
        self.world.run(0.2)
        for _ in range(2):
            with self.assertRaises(PayloadTooLarge):
                client.send(bytes(5_000))
            self.world.run(0.2)
        client.send(b"fits")
        self.world.run(0.1)
        self.assertEqual(session.datagrams, [b"fits"])
        self.assertFalse(client.is_closed)


class PathTests(SynchronousTestCase):
    """R5.8: the client probes its path too, and what no longer fits takes the other way."""

    def test_a_path_that_carries_the_maximum_is_found_soon(self) -> None:
        world = World()
        device, _ = world.pair()
        self.assertEqual(device.max_payload, MAX_UDP_PAYLOAD - OVERHEAD)
        self.assertIsInstance(device.quic.round_trip_time, float)

    def test_the_size_of_a_narrower_path_is_found(self) -> None:
        for mtu in (1232, 1300, 1400):
            world = NarrowWorld(mtu)
            found = world.device.max_payload + OVERHEAD
            self.assertTrue(mtu - 8 <= found <= mtu, f"{found} on a path of {mtu}")

    def test_when_the_path_becomes_narrow_everything_soon_arrives_again(self) -> None:
        world = NarrowWorld(1452)
        before = world.device.max_payload
        world.mtu = 1300
        for _ in range(60):
            world.device.send(bytes(1_400))
            world.run(0.05)
        self.assertLess(world.device.max_payload, before)
        world.run(2)
        world.peer.got.clear()
        sent = [world.random(1_300 + number) for number in range(100)]
        for payload in sent:
            world.device.send(payload)
            world.run(0.05)
        self.assertEqual(world.peer.got, sent)
        self.assertTrue(1_300 - 8 <= world.device.max_payload + OVERHEAD <= 1_300)

    def test_what_is_queued_when_it_no_longer_fits_changes_over(self) -> None:
        world = World()
        device, peer = world.pair()
        large, small = [world.random(1_400) for _ in range(5)], [world.random(100) for _ in range(5)]
        for pair in zip(large, small, strict=True):
            for payload in pair:
                device.send(payload)
        vars(device.quic)["_max_datagram_size"] = UDP_PAYLOAD  # as after a black hole
        vars(vars(device.quic)["_mtu"])["size"] = UDP_PAYLOAD
        world.run(0.5)
        self.assertEqual([payload for payload in peer.got if len(payload) == 100], small)
        self.assertEqual([payload for payload in peer.got if len(payload) == 1_400], large)
        self.assertEqual(device.dropped, 0)


class TrustTests(SynchronousTestCase):
    """The two sizes that a client begins and ends its search with."""

    def test_the_base_is_what_every_path_carries_and_the_maximum_what_ethernet_does(self) -> None:
        configuration = Trust().configuration("relay.test")
        self.assertEqual((configuration.max_datagram_size, MAX_UDP_PAYLOAD), (1232, 1452))
