"""Channels that hear nothing, channels that outlast their connection, and channels on real sockets, in the client library."""

from __future__ import annotations

from dataclasses import replace

from twisted.trial.unittest import SynchronousTestCase, TestCase

from tests.dialing import Dialer, Resilient, cut, restart
from tests.harness import TestClient, World
from tests.real_relay import PATIENCE, Setup, eventually
from tests.relay_view import move
from tests.test_client_channels import End, scene
from zrc_relay.client import Channel, ChannelClosed, ChannelRefused, ConnectionLost, NotConnected
from zrc_relay.client.vigil import BESIDE_PATIENCE, Advice, Vigil
from zrc_relay.core.codes import Role
from zrc_relay.core.counters import InputDrop
from zrc_relay.quic.udp import SocketAddress

NEW_PLACE: SocketAddress = ("203.0.113.50", 40_001)


def pings(world: World, client: TestClient) -> list[float]:
    """The times at which ``client`` sends QUIC packets from now on."""
    times: list[float] = []

    def note(data: bytes, source: SocketAddress, _to: SocketAddress) -> bytes:
        if source == client.host.sockaddr and data[0] != 5:
            times.append(world.now())
        return data

    world.network.filter = note
    return times


class SilenceTests(SynchronousTestCase):
    """PROTOCOL §7: a client that sends on a channel and hears nothing for 1 s sends a PING."""

    def test_the_vigil_asks_for_one_a_second_after_what_is_not_answered(self) -> None:
        vigil = Vigil(100.0)
        self.assertIsNone(vigil.deadline)
        self.assertTrue(vigil.sent_beside(200.0))
        self.assertFalse(vigil.sent_beside(200.9), "the first one counts")
        self.assertEqual(vigil.deadline, 200.0 + BESIDE_PATIENCE)
        self.assertEqual([vigil.advise(now, 0.1) for now in (200.9, 201.0, 201.1)], [Advice.NOTHING, Advice.PING, Advice.NOTHING])
        self.assertIsNone(vigil.deadline)

    def test_whatever_is_heard_puts_it_off(self) -> None:
        vigil = Vigil(100.0)
        for hear in (vigil.heard_beside, lambda: vigil.heard(200.5)):
            vigil.sent_beside(200.0)
            hear()
            self.assertIsNone(vigil.deadline)
            self.assertIs(vigil.advise(300.0, 0.1), Advice.NOTHING)
        self.assertTrue(vigil.sent_beside(300.0))
        self.assertEqual(vigil.deadline, 300.0 + BESIDE_PATIENCE)

    def sending(self, seconds: float, *, answers: bool) -> list[float]:
        """When the device sends QUIC packets while it sends on the channel, with or without an answer to each packet."""
        world, device, peer = scene()
        if answers:
            peer.channel.on_data = peer.channel.send
        begun = world.now()
        times = pings(world, device.client)
        while world.now() < begun + seconds:
            device.channel.send(b"x")
            world.run(0.05)
        return [round(time - begun, 1) for time in times]

    def test_one_that_hears_nothing_pings_each_second_and_one_that_is_answered_never(self) -> None:
        self.assertEqual(self.sending(0.95, answers=False), [])
        times = self.sending(5.5, answers=False)
        self.assertEqual(times[0], 1.0)
        self.assertLessEqual(len(times), 6, times)
        self.assertEqual(self.sending(5.5, answers=True), [])

    def test_one_that_sends_nothing_does_not_ping(self) -> None:
        world, device, peer = scene()
        times = pings(world, device.client)
        for _ in range(50):
            peer.channel.send(b"x")
            world.run(0.1)
        self.assertEqual(times, [])

    def test_after_a_rebinding_the_channel_works_again_within_seconds(self) -> None:
        world, device, peer = scene()
        # As behind an address translator that forgets: the device does not know that it has moved.
        move(world, device.client, NEW_PLACE)
        for number in range(30):
            device.channel.send(b"%d" % number)
            peer.channel.send(b"%d" % number)
            world.run(0.1)
        lost = 30 - len(peer.got)
        self.assertGreaterEqual(lost, 10, "nothing passes before QUIC has validated the new path")
        self.assertLessEqual(lost, 12)
        self.assertEqual(peer.got, [b"%d" % number for number in range(lost, 30)])
        self.assertLessEqual(30 - len(device.got), 12)
        self.assertEqual(world.relay.counters.path_changes, 1)
        self.assertFalse(device.client.is_closed)

    def test_a_relay_that_is_gone_is_noticed_by_one_that_only_uses_the_channel(self) -> None:
        world, device, _ = scene()
        cut(world)
        for _ in range(30):
            if not device.channel.is_closed:
                device.channel.send(b"x")
            world.run(0.1)
        self.assertIsInstance(device.client.error, ConnectionLost)
        self.assertTrue(device.channel.is_closed)


class ResilienceTests(SynchronousTestCase):
    """Issue "channels": after a reconnection the channel is opened again, and the user's object stays valid."""

    def ends(self) -> tuple[World, Resilient, Channel, End, list[bytes]]:
        """A resilient device with a channel, and what came by it, and the peer."""
        world = World()
        device = Resilient(world, Role.DEVICE)
        world.run(0.3)
        got: list[bytes] = []
        opening = device.open_channel(got.append)
        peer = world.client(Role.PEER)
        world.run(0.3)
        return world, device, self.successResultOf(opening), End(peer), got

    def test_it_is_opened_again_by_itself(self) -> None:
        world, device, channel, peer, got = self.ends()
        peer.channel.send(b"before")
        channel.send(b"before")
        world.run(0.1)
        device.dialer.made[0].give_up(ConnectionLost("a test pulls the plug"))
        self.assertEqual((channel.is_open, channel.is_closed), (False, False))
        channel.send(b"dropped")
        channel.send_many([b"dropped", b"too"])
        self.assertEqual((channel.max_payload, device.stats.datagrams_dropped), (0, 3))
        world.run(1)
        self.assertEqual((device.reconnections, channel.is_open), (1, True))
        peer.channel.send(b"after")
        channel.send(b"after")
        world.run(0.1)
        self.assertEqual((got, peer.got), ([b"before", b"after"], [b"before", b"after"]))
        self.assertIs(self.successResultOf(device.open_channel()), channel)

    def test_also_after_the_relay_was_restarted(self) -> None:
        world, device, channel, _, got = self.ends()
        restart(world)
        channel.send(b"nobody is there")
        world.run(5)
        self.assertEqual((device.reconnections, channel.is_open), (1, True))
        peer = world.client(Role.PEER)
        world.run(0.3)
        again = End(peer)
        again.channel.send(b"after")
        world.run(0.1)
        self.assertEqual(got, [b"after"])

    def test_one_that_was_closed_stays_closed(self) -> None:
        world, device, channel, _, _ = self.ends()
        device.dialer.made[0].give_up(ConnectionLost("a test pulls the plug"))
        channel.close()
        world.run(1)
        self.assertEqual((device.reconnections, world.relay.counters.channels_opened), (1, 2))
        with self.assertRaises(ChannelClosed):
            channel.send(b"x")
        opening = device.open_channel()
        world.run(0.1)
        self.assertTrue(self.successResultOf(opening).is_open)

    def test_one_that_is_closed_while_it_is_opened_again_is_closed_at_the_relay(self) -> None:
        world, device, channel, peer, got = self.ends()
        device.dialer.made[0].give_up(ConnectionLost("a test pulls the plug"))
        while device.connection is None:
            world.run(0.001)
        self.assertFalse(channel.is_open)
        channel.close()
        world.run(0.1)
        peer.channel.send(b"to nobody")
        world.run(0.1)
        self.assertEqual((got, device.stats.strays), ([], 0), "the relay does not even pass it on")
        self.assertEqual(world.relay.counters.input_dropped[InputDrop.CHANNEL], 1)
        self.assertFalse(channel.is_open)

    def test_another_can_be_asked_for_at_once(self) -> None:
        world, device, channel, peer, _ = self.ends()
        device.dialer.made[0].give_up(ConnectionLost("a test pulls the plug"))
        while device.connection is None:
            world.run(0.001)
        channel.close()
        got: list[bytes] = []
        opening = device.open_channel(got.append)
        world.run(0.1)
        another = self.successResultOf(opening)
        peer.channel.send(b"to the other one")
        world.run(0.1)
        self.assertEqual((got, another.is_open, channel.is_closed), ([b"to the other one"], True, True))

    def test_a_relay_that_offers_none_any_more_ends_it(self) -> None:
        world, device, channel, _, _ = self.ends()
        world.relay.policy = replace(world.relay.policy, channels=False)
        device.dialer.made[0].give_up(ConnectionLost("a test pulls the plug"))
        world.run(1)
        self.assertEqual((device.reconnections, channel.is_closed), (1, True))
        with self.assertRaises(ChannelRefused):
            channel.send(b"x")

    def test_losing_the_next_connection_before_the_answer_changes_nothing(self) -> None:
        world, device, channel, _, _ = self.ends()
        for number in range(2):
            device.dialer.made[number].give_up(ConnectionLost("a test pulls the plug"))
            while device.connection is None:
                world.run(0.001)
        world.run(1)
        self.assertTrue(channel.is_open)

    def test_while_there_is_no_connection_none_can_be_opened(self) -> None:
        world = World()
        device = Resilient(world, Role.DEVICE)
        world.run(0.3)
        cut(world)
        device.dialer.made[0].give_up(ConnectionLost("a test pulls the plug"))
        with self.assertRaises(NotConnected):
            device.open_channel()

    def test_it_ends_when_the_connection_is_over_for_good(self) -> None:
        _, device, channel, _, _ = self.ends()
        device.close()
        with self.assertRaises(ConnectionLost):
            channel.send(b"x")
        with self.assertRaises(ConnectionLost):
            device.open_channel()

    def test_the_channel_of_a_plain_connection_ends_with_it_though_there_is_another_connection(self) -> None:
        world = World()
        dialer = Dialer(world)
        device = Resilient(world, Role.DEVICE, dialer=dialer)
        world.run(0.3)
        plain = dialer.made[0].open_channel()
        world.run(0.1)
        dialer.made[0].give_up(ConnectionLost("a test pulls the plug"))
        world.run(1)
        self.assertEqual((device.reconnections, self.successResultOf(plain).is_closed), (1, True))


class SocketTests(TestCase):
    """Issue "channels": on real sockets, where packets travel in trains."""

    timeout = 2 * PATIENCE

    async def test_trains_and_single_packets_arrive_in_order(self) -> None:
        setup = Setup(self)
        service = setup.service()
        device, peer = await setup.pair()
        at_device: list[bytes] = []
        at_peer: list[bytes] = []
        one = await device.relay.open_channel(at_device.append)
        other = await peer.relay.open_channel(at_peer.append)
        for start in range(0, 200, 40):
            train = [b"%04d" % number * 60 for number in range(start, start + 40)]
            one.send_many([*train, b"a shorter one"])
            other.send(b"%d" % start)
            await eventually(lambda: at_peer[-1:] == [b"a shorter one"], "the end of a train")
            self.assertEqual(at_peer, [*train, b"a shorter one"])
            at_peer.clear()
        await eventually(lambda: len(at_device) == 5, "the packets of the peer")
        self.assertEqual(at_device, [b"0", b"40", b"80", b"120", b"160"])
        self.assertEqual(service.relay.counters.channel_packets, 210)
