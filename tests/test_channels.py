"""Channels, as the relay carries them (PROTOCOL §7)."""

from __future__ import annotations

import os
import struct
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests import raw_quic as raw
from tests.harness import OPEN_TIER, RELAY_ADDRESS, RELAY_ID, World
from tests.raw_quic import DEVICE, PEER, ScriptedClient
from tests.test_isolation import explode
from zrc_relay.core.channel import is_one_channel
from zrc_relay.core.codes import DropCause, TerminationReason
from zrc_relay.core.counters import InputDrop
from zrc_relay.core.relay import Policy
from zrc_relay.core.tiers import Tier
from zrc_relay.quic.udp import Path

OPEN, CLOSE, CHANNEL, ERROR = 0x04, 0x06, 0x16, 0x1F


class ChannelClient(ScriptedClient):
    """A raw client whose channel data comes apart from its QUIC packets."""

    def __init__(self, world: World, **changes: Any) -> None:
        self.channel_packets: list[bytes] = []
        super().__init__(world, **changes)

    def datagram_received(self, data: bytes, path: Path) -> None:
        """See ``Receiver``."""
        if data[0] == 5:
            self.channel_packets.append(data)
        else:
            super().datagram_received(data, path)

    @property
    def channel_id(self) -> bytes:
        """What the relay has answered last."""
        return self.values(CHANNEL)[-1]

    def open_channel(self) -> None:
        """Ask for it."""
        self.send_control(raw.capsule(OPEN))

    def on_channel(self, payload: bytes) -> bytes:
        """A packet of channel data."""
        return b"\x05" + self.channel_id + payload

    def say(self, *payloads: bytes) -> None:
        """Send channel data."""
        for payload in payloads:
            self.send(self.on_channel(payload))


class Scene(World):
    """Two raw clients with an allocation."""

    def __init__(self, *, tier: Tier = OPEN_TIER, channels: bool = True, **changes: Any) -> None:
        policy = Policy(
            relay_id=RELAY_ID, instance_id=bytes(8), default_tier=tier, proving_roles=frozenset(), channels=channels, **changes
        )
        super().__init__(policy=policy)
        self.relay_token = self.token().encode()

    def join(self, role: int, token: bytes | None = None) -> ChannelClient:
        """One more connection."""
        client = ChannelClient(self)
        self.run(0.1)
        client.allocate(token or self.relay_token, role=role)
        self.run(0.1)
        return client

    def ends(self, *, opened: bool = True) -> tuple[ChannelClient, ChannelClient]:
        """Both ends."""
        ends = self.join(DEVICE), self.join(PEER)
        if opened:
            for client in ends:
                client.open_channel()
            self.run(0.1)
        return ends

    def dropped(self) -> int:
        """Channel packets that were dropped without a word."""
        return self.relay.counters.input_dropped[InputDrop.CHANNEL]


class OpeningTests(SynchronousTestCase):
    """PROTOCOL §7: how a channel is opened and closed."""

    def test_hello_says_whether_channels_are_offered(self) -> None:
        for offered in (False, True):
            client = ScriptedClient(scene := Scene(channels=offered))
            scene.run(0.1)
            (features,) = struct.unpack("!I", client.hello[49:53])
            self.assertEqual(bool(features & 2), offered)

    def test_both_sides_get_the_same_random_id_and_another_allocation_another_one(self) -> None:
        scene = Scene()
        device, peer = scene.ends()
        self.assertEqual(device.values(CHANNEL), peer.values(CHANNEL))
        self.assertEqual(len(device.channel_id), 7)
        stranger = scene.join(DEVICE, scene.token(allocation_id=b"another one.....").encode())
        stranger.open_channel()
        scene.run(0.1)
        self.assertNotEqual(stranger.channel_id, device.channel_id)
        self.assertEqual(len(scene.relay.channels), 2)

    def test_asking_twice_gives_the_same_answer_twice(self) -> None:
        device, _ = (scene := Scene()).ends()
        device.open_channel()
        scene.run(0.1)
        self.assertEqual(device.values(CHANNEL), [device.channel_id] * 2)

    def test_a_relay_without_channels_says_no_and_the_session_goes_on(self) -> None:
        device, peer = (scene := Scene(channels=False)).ends()
        self.assertEqual((device.values(CHANNEL), len(device.values(ERROR))), ([], 1))
        device.send_datagram(b"still there")
        scene.run(0.1)
        self.assertEqual((peer.datagrams, device.closed, scene.relay.channels), ([b"still there"], None, {}))

    def test_before_allocate_it_is_a_protocol_error(self) -> None:
        for kind in (OPEN, CLOSE):
            client = ScriptedClient(scene := Scene())
            scene.run(0.1)
            client.send_control(raw.capsule(kind))
            scene.run(2)
            self.assertEqual(client.close_code, 0x01)

    def test_nothing_is_left_of_it_when_the_allocation_ends(self) -> None:
        scene = Scene()
        scene.ends()
        (allocation,) = scene.relay.table
        scene.relay.end(allocation, TerminationReason.RELEASED, scene.now(), scene.wall())
        self.assertEqual(scene.relay.channels, {})


class ForwardingTests(SynchronousTestCase):
    """PROTOCOL §7: what passes, and where to."""

    def test_packets_pass_unchanged_header_included_both_ways_and_in_order(self) -> None:
        device, peer = (scene := Scene()).ends()
        payloads = [b"", b"x", os.urandom(1200), *(b"%d" % number for number in range(50))]
        device.say(*payloads)
        peer.say(*reversed(payloads))
        scene.run(0.1)
        self.assertEqual(peer.channel_packets, [device.on_channel(payload) for payload in payloads])
        self.assertEqual(device.channel_packets, [device.on_channel(payload) for payload in reversed(payloads)])

    def test_nothing_passes_before_both_have_opened_it_or_after_one_has_closed_it(self) -> None:
        device, peer = (scene := Scene()).ends(opened=False)
        device.open_channel()
        scene.run(0.1)
        device.say(b"too early")
        scene.run(0.1)
        peer.open_channel()
        scene.run(0.1)
        device.say(b"now")
        scene.run(0.1)
        peer.send_control(raw.capsule(CLOSE))
        scene.run(0.1)
        device.say(b"too late")
        peer.say(b"not mine any more")
        scene.run(0.1)
        self.assertEqual((peer.channel_packets, device.channel_packets), ([device.on_channel(b"now")], []))
        self.assertEqual(scene.dropped(), 3)
        peer.open_channel()
        scene.run(0.1)
        device.say(b"again")
        scene.run(0.1)
        self.assertEqual(peer.channel_packets[1:], [device.on_channel(b"again")])

    def test_what_comes_from_anywhere_else_or_names_no_channel_is_dropped_without_a_word(self) -> None:
        device, peer = (scene := Scene()).ends()
        stranger = raw.Raw(scene.network)
        other = scene.join(DEVICE, scene.token(allocation_id=b"another one.....").encode())
        stranger.send(device.on_channel(b"spoofed"))
        other.send(device.on_channel(b"of another allocation"))
        device.send(b"\x05" + bytes(7) + b"unknown id")
        device.send(b"\x05")
        device.send(device.on_channel(b"")[:7])
        scene.run(0.1)
        self.assertEqual((device.channel_packets, peer.channel_packets, stranger.got), ([], [], []))
        self.assertEqual(scene.dropped(), 5)
        self.assertEqual(next(iter(scene.relay.table)).bytes_transferred, 0)

    def test_when_both_ends_have_the_same_address_nobody_knows_who_it_is_from(self) -> None:
        device, _peer = (scene := Scene()).ends()
        one, other = (connection for connection in scene.endpoint.all_connections())
        for connection in (one, other):
            vars(connection.quic)["_network_paths"][0].addr = (device.sockaddr, scene.network.hosts[RELAY_ADDRESS])
        self.assertEqual(one.route, other.route)
        device.say(b"x")
        scene.run(0.1)
        self.assertEqual(scene.dropped(), 1)

    def test_a_new_connection_opens_it_again_with_the_same_id_and_takes_it_over(self) -> None:
        device, peer = (scene := Scene()).ends()
        again = scene.join(PEER)
        device.say(b"still to the old one")
        scene.run(0.1)
        again.open_channel()
        scene.run(0.1)
        self.assertEqual(again.channel_id, device.channel_id)
        device.say(b"to the new one")
        peer.say(b"from the old one")
        again.say(b"from the new one")
        scene.run(0.1)
        self.assertEqual(peer.channel_packets, [device.on_channel(b"still to the old one")])
        self.assertEqual(again.channel_packets, [device.on_channel(b"to the new one")])
        self.assertEqual(device.channel_packets, [device.on_channel(b"from the new one")])

    def test_it_ends_with_its_connection(self) -> None:
        device, peer = (scene := Scene()).ends()
        peer.quic.close()
        peer.flush()
        scene.run(0.5)
        device.say(b"x")
        peer.say(b"y")
        scene.run(0.1)
        self.assertEqual((peer.channel_packets, device.channel_packets, scene.dropped()), ([], [], 2))

    def test_after_a_rebinding_it_passes_again_once_the_new_path_is_validated(self) -> None:
        device, peer = (scene := Scene()).ends()
        scene.network.attach(device.sockaddr)
        new = ("198.51.100.8", 60_000)
        vars(device)["_host"] = scene.network.attach(new, device)
        scene.network.filter = lambda data, source, to: data if to != new or data[0] == 5 else None
        device.say(b"QUIC does not know me here")
        device.quic.send_ping(1)
        device.flush()
        scene.run(0.05)
        device.say(b"nor yet")
        peer.say(b"to the old address")
        scene.run(0.05)
        self.assertEqual((peer.channel_packets, device.channel_packets), ([], []))
        scene.network.filter = lambda data, source, to: data
        scene.run(1)
        device.quic.send_ping(2)
        device.flush()
        scene.run(1)
        device.say(b"now")
        peer.say(b"hello there")
        scene.run(0.1)
        self.assertEqual(peer.channel_packets, [device.on_channel(b"now")])
        self.assertEqual(device.channel_packets, [device.on_channel(b"hello there")])


class LimitTests(SynchronousTestCase):
    """PROTOCOL §7: caps, quota and counters apply to the payload, as to any other."""

    def test_payload_bytes_count_together_with_those_of_datagrams(self) -> None:
        device, peer = (scene := Scene()).ends()
        device.say(bytes(100))
        peer.say(bytes(23), b"")
        device.send_datagram(bytes(1000))
        scene.run(0.1)
        self.assertEqual(next(iter(scene.relay.table)).bytes_transferred, 1123)
        counters = scene.relay.counters
        self.assertEqual((counters.packets_forwarded, counters.channel_packets, counters.bytes_forwarded), (4, 3, 1123))

    def test_the_quota_ends_it_to_the_byte(self) -> None:
        device, peer = (scene := Scene(tier=Tier("small", None, 1000, None))).ends()
        device.say(bytes(600), bytes(400))
        scene.run(0.1)
        device.say(b"x")
        scene.run(2)
        self.assertEqual(list(map(len, peer.channel_packets)), [608, 408])
        self.assertEqual((device.close_code, peer.close_code), (0x31, 0x31))

    def test_over_the_cap_packets_are_dropped_and_the_sender_is_told(self) -> None:
        device, peer = (scene := Scene(tier=Tier("slow", 10_000, None, None))).ends()
        device.say(*[bytes(1000)] * 100)
        scene.run(0.01)
        self.assertEqual(len(peer.channel_packets), 65)
        scene.run(1.5)
        self.assertEqual(scene.relay.counters.dropped_packets[DropCause.BANDWIDTH], 35)
        self.assertEqual([notice[0] for notice in device.notices()][-4:], [2, 7, 2, 7])


class TrainTests(SynchronousTestCase):
    """Trains, as UDP_GRO hands them over: passed on in one piece where that is right."""

    def setUp(self) -> None:
        self.scene = Scene()
        self.device, self.peer = self.scene.ends()

    def arrive(self, train: bytes, size: int) -> None:
        """A train from the device."""
        self.scene.endpoint.train_received(train, size, Path(self.device.sockaddr, self.scene.network.hosts[RELAY_ADDRESS]))
        self.scene.endpoint.batch_done()
        self.scene.run(0.1)

    def test_a_train_passes_in_one_piece(self) -> None:
        packets = [self.device.on_channel(bytes((number,)) * 92) for number in range(10)] + [self.device.on_channel(b"short")]
        sent = []
        host = self.scene.network.hosts[RELAY_ADDRESS]
        self.patch(host, "send_train", lambda train, size, to: sent.append((train, size, to)))
        self.arrive(b"".join(packets), 100)
        self.assertEqual(sent, [(b"".join(packets), 100, self.peer.sockaddr)])
        self.assertEqual(next(iter(self.scene.relay.table)).bytes_transferred, 925)
        self.assertEqual(self.scene.relay.counters.channel_packets, 11)

    def test_what_was_read_before_it_leaves_before_it(self) -> None:
        path = Path(self.device.sockaddr, self.scene.network.hosts[RELAY_ADDRESS])
        first, train = self.device.on_channel(b"first"), [self.device.on_channel(b"%03d" % number) for number in range(5)]
        self.scene.endpoint.datagram_received(first, path)
        self.arrive(b"".join(train), 11)
        self.assertEqual(self.peer.channel_packets, [first, *train])

    def test_a_train_of_several_kinds_is_taken_apart(self) -> None:
        mine = self.device.on_channel(bytes(92))
        self.arrive(mine + b"\x05" + bytes(99) + mine, 100)
        self.assertEqual(self.peer.channel_packets, [mine, mine])
        self.arrive(mine + b"\x40" + bytes(99) + mine, 100)
        self.assertEqual(self.peer.channel_packets, [mine] * 4)
        self.arrive(b"\x40" + bytes(99) + mine, 100)
        self.assertEqual(self.peer.channel_packets, [mine] * 5)
        self.arrive(mine + mine[:5], 100)
        self.assertEqual((len(self.peer.channel_packets), self.scene.dropped()), (6, 2))

    def test_a_train_that_the_cap_stops_in_the_middle_passes_as_far_as_it_may(self) -> None:
        (allocation,) = self.scene.relay.table
        allocation.set_limits(allocation.token, Tier("slow", 10_000, None, None), self.scene.now())
        packets = [self.device.on_channel(bytes(1000))] * 60
        self.arrive(b"".join(packets), 1008)
        self.arrive(b"".join(packets), 1008)
        self.assertEqual(len(self.peer.channel_packets), 66, "65,535 bytes at once, and a tenth of a second")

    def test_is_one_channel(self) -> None:
        packet = b"\x05abcdefgpayload."
        self.assertTrue(is_one_channel(packet * 7, 16))
        self.assertTrue(is_one_channel(packet * 7 + packet[:8], 16))
        self.assertFalse(is_one_channel(packet * 7 + packet[:7], 16))
        for index in range(8):
            other = packet[:index] + b"?" + packet[index + 1 :]
            self.assertFalse(is_one_channel(packet * 3 + other + packet, 16))


class IsolationTests(SynchronousTestCase):
    """R5.6: an error on one channel is that of one session."""

    def test_an_exception_closes_the_senders_session_and_no_other(self) -> None:
        scene = Scene(tier=Tier("", None, 1000, None))
        device, peer = scene.ends()
        self.patch(scene.relay, "quota_warning", explode)  # from within the way of a packet
        device.say(bytes(900))
        scene.run(2)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual((device.close_code, peer.close_code), (0x3F, None))
