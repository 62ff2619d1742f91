"""Channels in the client library, against the relay on a simulated network and against one that says what a test wants."""

from __future__ import annotations

import os
from dataclasses import replace

from twisted.internet.defer import CancelledError
from twisted.trial.unittest import SynchronousTestCase

from tests import raw_quic as raw
from tests.dialing import cut, mend
from tests.fake_relay import FakeRelay, FakeSession, allocated, fingerprint, server_configuration
from tests.harness import OPEN_TIER, RELAY_ADDRESS, RELAY_ID, TestClient, World
from tests.test_isolation import explode
from zrc_relay.client import (
    Channel,
    ChannelClosed,
    ChannelRefused,
    ConnectionLost,
    MaxPayloadChanged,
    PayloadTooLarge,
)
from zrc_relay.client.channel import DATAGRAM_COST
from zrc_relay.client.errors import Terminated
from zrc_relay.client.trust import UDP_PAYLOAD
from zrc_relay.core.channel import CHANNEL_HEADER
from zrc_relay.core.codes import ErrorCode, Role
from zrc_relay.core.counters import InputDrop
from zrc_relay.core.relay import Policy
from zrc_relay.quic.udp import Path, SocketAddress

OPEN, CLOSE, CHANNEL, ERROR = 0x04, 0x06, 0x16, 0x1F
ID = b"\xc1\xc2\xc3\xc4\xc5\xc6\xc7"
NEW_PLACE: SocketAddress = ("203.0.113.50", 40_001)
STRANGER: SocketAddress = ("203.0.113.66", 666)


class End:
    """A client with a channel, and what came by it."""

    def __init__(self, client: TestClient) -> None:
        self.client = client
        self.got: list[bytes] = []
        self.opening = client.open_channel(self.got.append)
        client.world.run(0.1)
        results: list[Channel] = []
        self.opening.addCallback(results.append)
        (self.channel,) = results


def scene() -> tuple[World, End, End]:
    """Both ends with a channel."""
    world = World()
    device, peer = world.pair()
    world.run(3)  # the paths have been probed
    return world, End(device), End(peer)


class CarryingTests(SynchronousTestCase):
    """PROTOCOL §7, issue "channels": ``open_channel()`` and what passes."""

    def test_payloads_of_every_size_pass_both_ways_and_in_order(self) -> None:
        world, device, peer = scene()
        sent = [os.urandom(size) for size in (0, 1, 7, 8, 1200, device.channel.max_payload)]
        for payload in sent:
            device.channel.send(payload)
        peer.channel.send_many(sent)
        world.run(0.1)
        self.assertEqual((peer.got, device.got), (sent, sent))
        self.assertEqual((peer.client.got, device.client.got), ([], []), "not as datagrams")
        self.assertEqual(world.relay.counters.channel_packets, 2 * len(sent))

    def test_packets_are_plain_udp_from_the_socket_of_the_connection(self) -> None:
        world, device, _ = scene()
        world.network.record = True
        device.channel.send(b"as it is")
        (packet,) = world.network.sent
        (channel_id,) = world.relay.channels
        self.assertEqual(packet, (b"\x05" + channel_id + b"as it is", device.client.host.sockaddr, RELAY_ADDRESS))

    def test_several_leave_in_one_call(self) -> None:
        world, device, peer = scene()
        calls: list[list[bytes]] = []
        send = device.client.host.send_many

        def note(packets: list[bytes], to: SocketAddress) -> None:
            calls.append(packets)
            send(packets, to)

        self.patch(device.client.host, "send_many", note)
        device.channel.send_many([b"%03d" % number for number in range(44)])
        world.run(0.1)
        self.assertEqual([len(call) for call in calls], [44])
        self.assertEqual(peer.got, [b"%03d" % number for number in range(44)])

    def test_nothing_passes_before_the_other_end_has_opened_and_after_it_has_closed(self) -> None:
        world = World()
        device, peer = world.pair()
        early = End(device)
        early.channel.send(b"too early")
        world.run(0.1)
        late = End(peer)
        early.channel.send(b"now")
        world.run(0.1)
        late.channel.close()
        world.run(0.1)
        early.channel.send(b"too late")
        world.run(0.1)
        self.assertEqual(late.got, [b"now"])
        self.assertEqual(world.relay.counters.input_dropped[InputDrop.CHANNEL], 2)

    def test_a_train_is_taken_apart_and_one_of_several_kinds_too(self) -> None:
        world, device, _ = scene()
        (channel_id,) = world.relay.channels
        mine, other = b"\x05" + channel_id + b"abcd", b"\x05" + bytes(7) + b"efgh"
        path = Path(RELAY_ADDRESS, device.client.host)
        device.client.train_received(mine * 3 + mine[:10], 12, path)
        self.assertEqual(device.got, [b"abcd"] * 3 + [b"ab"])
        device.client.train_received(mine + other + bytes(12) + mine, 12, path)
        device.client.train_received(other * 4, 12, path)
        device.client.batch_done()
        self.assertEqual(device.got[4:], [b"abcd"] * 2)
        self.assertEqual(device.client.stats.strays, 5)
        self.assertFalse(device.client.is_closed)

    def test_what_is_quic_in_a_train_reaches_the_connection(self) -> None:
        world, device, peer = scene()
        packets: list[bytes] = []

        def hold(data: bytes, _source: SocketAddress, to: SocketAddress) -> bytes | None:
            if to != device.client.host.sockaddr:
                return data
            packets.append(data)
            return None

        world.network.filter = hold
        peer.client.send(b"one")
        world.run(0.01)
        mend(world)
        size = len(packets[0])
        (channel_id,) = world.relay.channels
        beside = (b"\x05" + channel_id).ljust(size, b"x")
        device.client.train_received(beside + packets[0], size, Path(RELAY_ADDRESS, device.client.host))
        device.client.batch_done()
        self.assertEqual((device.client.got, device.got), ([b"one"], [beside[8:]]))

    def test_it_is_counted_with_everything_else(self) -> None:
        world, device, peer = scene()
        device.channel.send(bytes(100))
        device.client.send(bytes(1000))
        peer.channel.send_many([bytes(20), bytes(3)])
        world.run(0.1)
        stats = device.client.stats
        self.assertEqual((stats.datagrams_sent, stats.bytes_sent), (2, 1100))
        self.assertEqual((stats.datagrams_received, stats.bytes_received), (2, 23))

    def test_without_a_callback_payloads_are_dropped_and_counted(self) -> None:
        world, device, peer = scene()
        peer.channel.on_data = None
        device.channel.send(b"nobody wants it")
        world.run(0.1)
        peer.channel.on_data = peer.got.append
        device.channel.send(b"somebody does")
        world.run(0.1)
        self.assertEqual((peer.got, peer.client.stats.datagrams_dropped), ([b"somebody does"], 1))

    def test_a_callback_that_raises_is_logged_and_the_channel_goes_on(self) -> None:
        world, device, peer = scene()
        peer.channel.on_data = explode
        device.channel.send(b"one")
        world.run(0.1)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        peer.channel.on_data = peer.got.append
        device.channel.send(b"two")
        world.run(0.1)
        self.assertEqual(peer.got, [b"two"])


class StrayTests(SynchronousTestCase):
    """PROTOCOL §7: what is not our channel's is dropped and counted."""

    def test_only_the_relays_address_and_the_right_id_get_in(self) -> None:
        world, device, _ = scene()
        (channel_id,) = world.relay.channels
        mine = b"\x05" + channel_id + b"payload"
        here, relay = device.client.host, world.network.hosts[RELAY_ADDRESS]
        stranger = world.network.attach(STRANGER)
        stranger.send(mine, here.sockaddr)
        for packet in (b"\x05" + bytes(7) + b"payload", b"\x05", mine[:7]):
            relay.send(packet, here.sockaddr)
        world.run(0.1)
        self.assertEqual((device.got, device.client.stats.strays), ([], 4))
        relay.send(mine, here.sockaddr)
        world.run(0.1)
        self.assertEqual((device.got, device.client.stats.strays), ([b"payload"], 4))

    def test_a_client_without_a_channel_takes_nothing(self) -> None:
        world = World()
        device, _ = world.pair()
        world.network.hosts[RELAY_ADDRESS].send(b"\x05" + ID + b"payload", device.host.sockaddr)
        world.run(0.1)
        self.assertEqual((device.stats.strays, device.is_closed), (1, False))

    def test_channel_packets_are_no_sign_of_life(self) -> None:
        world, device, _ = scene()
        (channel_id,) = world.relay.channels
        cut(world)
        device.client.send(b"unanswered")
        for _ in range(200):
            device.client.datagram_received(b"\x05" + channel_id + b"x", Path(RELAY_ADDRESS, device.client.host))
            device.client.batch_done()
            world.run(0.01)
        self.assertIsInstance(device.client.error, ConnectionLost)


class SizeTests(SynchronousTestCase):
    """Issue "channels": ``max_payload`` is what fits the paths, and nothing longer is sent."""

    def test_it_is_what_the_path_carries_without_the_header(self) -> None:
        world = World()
        device, _ = world.pair()
        self.assertEqual(End(device).channel.max_payload, device.peer_max_payload + DATAGRAM_COST - CHANNEL_HEADER)
        alone = world.client(Role.DEVICE, world.token(allocation_id=b"another one....."))
        world.run(0.1)
        channel = End(alone).channel
        self.assertEqual(channel.max_payload, alone.quic.udp_payload - CHANNEL_HEADER)
        self.assertGreaterEqual(channel.max_payload, UDP_PAYLOAD - CHANNEL_HEADER)

    def test_it_grows_with_the_path(self) -> None:
        world = World()
        device, _ = world.pair()
        channel = End(device).channel
        world.run(3)
        self.assertGreater(channel.max_payload, 1400)

    def test_a_narrow_path_of_the_other_end_counts_too(self) -> None:
        world = World()
        narrow = ("198.51.100.7", 10_002)

        def carry(data: bytes, source: SocketAddress, to: SocketAddress) -> bytes | None:
            return None if len(data) > 1280 and narrow in (source, to) else data

        world.network.filter = carry
        device, peer = world.pair()
        self.assertEqual(peer.host.sockaddr, narrow)
        world.run(5)
        one, other = End(device), End(peer)
        self.assertGreater(device.quic.udp_payload, 1280)
        one.channel.send(bytes(one.channel.max_payload))
        other.channel.send(bytes(other.channel.max_payload))
        world.run(0.1)
        self.assertEqual((len(other.got), len(one.got)), (1, 1))
        before = one.channel.max_payload
        mend(world)
        world.run(700)
        self.assertTrue([notice for notice in device.notices if isinstance(notice, MaxPayloadChanged)])
        self.assertGreater(one.channel.max_payload, before)

    def test_one_that_is_too_long_is_refused_with_all_that_would_go_with_it(self) -> None:
        world, device, peer = scene()
        too_long = bytes(device.channel.max_payload + 1)
        for send in (lambda: device.channel.send(too_long), lambda: device.channel.send_many([b"fits", too_long])):
            with self.assertRaises(PayloadTooLarge):
                send()
        world.run(0.1)
        self.assertEqual((peer.got, device.client.stats.datagrams_sent), ([], 0))


class LifeTests(SynchronousTestCase):
    """Issue "channels": opening, closing, and the end of the connection."""

    def test_who_asks_again_gets_the_same_one_with_the_new_callback(self) -> None:
        world, device, peer = scene()
        got: list[bytes] = []
        self.assertIs(self.successResultOf(device.client.open_channel()), device.channel)
        peer.channel.send(b"to the old callback")
        world.run(0.1)
        self.assertIs(self.successResultOf(device.client.open_channel(got.append)), device.channel)
        peer.channel.send(b"to the new callback")
        world.run(0.1)
        self.assertEqual((device.got, got), ([b"to the old callback"], [b"to the new callback"]))

    def test_asking_twice_at_once_asks_the_relay_once(self) -> None:
        world = World()
        device, _ = world.pair()
        opening = [device.open_channel(), device.open_channel(), device.open_channel()]
        opening[1].cancel()
        self.failureResultOf(opening[1], CancelledError)
        world.run(0.1)
        self.assertIs(self.successResultOf(opening[0]), self.successResultOf(opening[2]))
        self.assertEqual(world.relay.counters.channels_opened, 1)

    def test_after_close_it_is_over_and_another_can_be_opened(self) -> None:
        world, device, peer = scene()
        device.channel.close()
        device.channel.close()
        with self.assertRaises(ChannelClosed):
            device.channel.send(b"x")
        self.assertEqual((device.channel.is_open, device.channel.is_closed, device.channel.max_payload), (False, True, 0))
        again = End(device.client)
        self.assertIsNot(again.channel, device.channel)
        peer.channel.send(b"hello again")
        again.channel.send(b"hello")
        world.run(0.1)
        self.assertEqual((device.got, again.got, peer.got), ([], [b"hello again"], [b"hello"]))
        self.assertFalse(device.client.is_closed)

    def test_what_arrives_after_close_is_a_stray(self) -> None:
        world, device, peer = scene()
        peer.channel.send(b"on its way")
        world.run(0.006)
        device.channel.close()
        world.run(0.1)
        self.assertEqual((device.got, device.client.stats.strays), ([], 1))

    def test_a_callback_that_closes_gets_nothing_more(self) -> None:
        world, device, _ = scene()
        (channel_id,) = world.relay.channels
        got: list[bytes] = []

        def once(payload: bytes) -> None:
            got.append(payload)
            device.channel.close()

        device.channel.on_data = once
        packet = b"\x05" + channel_id + b"abcd"
        device.client.train_received(packet * 3, len(packet), Path(RELAY_ADDRESS, device.client.host))
        self.assertEqual(got, [b"abcd"])

    def test_it_ends_with_its_connection_and_with_its_error(self) -> None:
        world, device, peer = scene()
        peer.client.close()
        cut(world)
        device.client.give_up(ConnectionLost("a test pulls the plug"))
        for end, reason in ((device, "a test pulls the plug"), (peer, "the connection is closed")):
            self.assertEqual((end.channel.is_open, end.channel.is_closed), (False, True))
            with self.assertRaises(ConnectionLost) as caught:
                end.channel.send(b"x")
            self.assertEqual(str(caught.exception), reason)
            end.channel.close()
            with self.assertRaises(ConnectionLost):
                end.client.open_channel()

    def test_an_opening_that_the_end_overtakes_fails_with_it(self) -> None:
        world = World()
        device, _ = world.pair()
        opening = device.open_channel()
        device.close()
        self.failureResultOf(opening, ConnectionLost)


class Scene(World):
    """A device that is allocated at a scripted relay, which answers OPEN_CHANNEL with ``answers``, one after the other."""

    def __init__(self, *answers: bytes, features: int = 7) -> None:
        super().__init__()
        self.answers = list(answers)
        self.fake = FakeRelay(self.clock, self.now, self.answer, features=features)
        self.network.attach(RELAY_ADDRESS, self.fake)
        self.credentials = replace(self.credentials, certificate_sha256=fingerprint(server_configuration()))
        self.device = self.client(Role.DEVICE)
        self.run(0.3)

    def answer(self, session: FakeSession, kind: int, _value: bytes) -> None:
        """The relay's script."""
        if kind == raw.ALLOCATE:
            session.send(allocated())
        elif kind == OPEN and self.answers:
            session.send(self.answers.pop(0))

    def asked(self) -> list[int]:
        """The kinds of the capsules that the relay got after ALLOCATE."""
        return [kind for kind, _ in self.fake.sessions[0].requests[1:]]


class RefusalTests(SynchronousTestCase):
    """Issue "channels": a relay without channels is a clear exception, and nothing else is lost by it."""

    def test_a_relay_that_offers_none_is_not_even_asked(self) -> None:
        scripted = Scene(features=5)
        error = self.failureResultOf(scripted.device.open_channel(), ChannelRefused).value
        self.assertEqual((str(error), error.error, scripted.asked()), ("the relay offers no channels", None, []))
        self.assertFalse(scripted.device.is_closed)

    def test_the_real_relay_without_channels(self) -> None:
        world = World(policy=Policy(relay_id=RELAY_ID, instance_id=bytes(8), default_tier=OPEN_TIER, channels=False))
        device, peer = world.pair()
        self.failureResultOf(device.open_channel(), ChannelRefused)
        device.send(b"goes on")
        world.run(0.1)
        self.assertEqual(peer.got, [b"goes on"])

    def test_an_error_of_the_relay_is_told_and_asking_again_may_help(self) -> None:
        scripted = Scene(raw.capsule(ERROR, b"\x00\x22\x00\x03why"), raw.capsule(CHANNEL, ID))
        refused = scripted.device.open_channel()
        scripted.run(0.1)
        error = self.failureResultOf(refused, ChannelRefused).value
        self.assertEqual(error.error.code, ErrorCode(0x22))
        self.assertIn("why", str(error))
        granted = scripted.device.open_channel()
        scripted.run(0.1)
        self.assertTrue(self.successResultOf(granted).is_open)

    def test_answers_find_their_questions(self) -> None:
        scripted = Scene()
        session = scripted.fake.sessions[0]
        device = scripted.device
        first, opening, last = device.refresh(scripted.token()), device.open_channel(), device.refresh(scripted.token())
        session.send(raw.capsule(ERROR, b"\x00\x31\x00\x04used"), raw.capsule(CHANNEL, ID), raw.capsule(0x12, bytes(32)))
        scripted.run(0.1)
        self.assertEqual(self.failureResultOf(first).value.code, ErrorCode.QUOTA_EXCEEDED)
        self.assertTrue(self.successResultOf(opening).is_open)
        self.assertEqual(self.successResultOf(last).expires_at, 0)

    def test_a_refusal_of_the_channel_is_not_taken_for_that_of_a_refresh(self) -> None:
        scripted = Scene()
        session = scripted.fake.sessions[0]
        opening, refreshing = scripted.device.open_channel(), scripted.device.refresh(scripted.token())
        session.send(raw.capsule(ERROR, b"\x00\x01\x00\x02no"), raw.capsule(0x12, bytes(32)))
        scripted.run(0.1)
        self.failureResultOf(opening, ChannelRefused)
        self.successResultOf(refreshing)

    def test_an_id_that_nobody_asked_for_is_ignored(self) -> None:
        scripted = Scene()
        refreshing = scripted.device.refresh(scripted.token())
        scripted.fake.sessions[0].send(raw.capsule(CHANNEL, ID), raw.capsule(0x12, bytes(32)))
        scripted.run(0.1)
        self.assertEqual(self.successResultOf(refreshing).expires_at, 0)
        self.assertFalse(scripted.device.is_closed)

    def test_a_refresh_of_the_other_side_is_not_taken_for_the_id(self) -> None:
        scripted = Scene()
        opening = scripted.device.open_channel()
        scripted.fake.sessions[0].send(raw.capsule(0x12, bytes(32)), raw.capsule(CHANNEL, ID))
        scripted.run(0.1)
        self.assertTrue(self.successResultOf(opening).is_open)
        self.assertIsNotNone(scripted.device.limits)

    def test_the_capsules_are_those_of_the_protocol(self) -> None:
        scripted = Scene(raw.capsule(CHANNEL, ID + b"more than version 1 says"))
        opening = scripted.device.open_channel()
        scripted.run(0.1)
        channel = self.successResultOf(opening)
        scripted.network.record = True
        channel.send(b"x")
        self.assertEqual(scripted.network.sent[0][0], b"\x05" + ID + b"x")
        channel.close()
        scripted.run(0.1)
        self.assertEqual(scripted.fake.sessions[0].requests[1:], [(OPEN, b""), (CLOSE, b"")])

    def test_without_an_allocation_there_is_none(self) -> None:
        world = World()
        asker = TestClient(world, None, None, start=True)
        world.run(0.1)
        self.assertIsNotNone(asker.hello)
        self.failureResultOf(asker.open_channel(), ChannelRefused)

    def test_a_connection_that_the_relay_ends_while_it_is_asked(self) -> None:
        scripted = Scene()
        opening = scripted.device.open_channel()
        scripted.run(0.1)
        scripted.fake.sessions[0].close(ErrorCode.TERMINATED, "by hand")
        scripted.run(0.1)
        self.failureResultOf(opening, Terminated)


class IdentityTests(SynchronousTestCase):
    """PROTOCOL §7: a channel belongs to its connection; a new one of the same side takes it over."""

    def test_the_newer_connection_of_a_side_has_it(self) -> None:
        world, device, peer = scene()
        client = world.client(Role.PEER)
        world.run(0.3)
        newer = End(client)
        device.channel.send(b"to the newer one")
        newer.channel.send(b"from the newer one")
        world.run(0.1)
        self.assertEqual((peer.got, newer.got, device.got), ([], [b"to the newer one"], [b"from the newer one"]))
