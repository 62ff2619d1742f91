"""Connections on which nothing happens: kept alive, closed with a word, or noticed to be dead."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tests.harness import OPEN_TIER, RELAY_ID, World
from tests.raw_quic import DEVICE, ScriptedClient, leftovers
from tests.relay_view import cut_off, lossy, relay_end
from zrc_relay.client.notices import PeerLeft
from zrc_relay.core.codes import ErrorCode, Role
from zrc_relay.core.relay import Policy
from zrc_relay.quic.udp import Path

IDLE_TIMEOUT = 30.0
"""``quic_idle_timeout`` of the scenes, in seconds."""


def unproven(latency: float = 0.005) -> World:
    """A relay that wants no proofs."""
    return World(policy=Policy(relay_id=RELAY_ID, instance_id=bytes(8), default_tier=OPEN_TIER, proving_roles=frozenset()),
                 latency=latency)


class KeepAliveTests(SynchronousTestCase):
    """R5.4: the library's keepalive holds a session on which nothing else happens."""

    def test_nobody_says_anything_for_ten_minutes_and_everything_is_as_before(self) -> None:
        world = World()
        device, peer = world.pair()
        world.run(5)
        world.recorder.events.clear()
        notices = len(device.notices), len(peer.notices)
        world.run(600)
        self.assertEqual((len(device.notices), len(peer.notices)), notices)
        self.assertEqual(world.recorder.events, [])
        device.send(b"still")
        peer.send(b"here")
        world.run(0.1)
        self.assertEqual((device.got, peer.got), ([b"here"], [b"still"]))

    def test_it_costs_a_packet_or_two_each_interval(self) -> None:
        world = World()
        world.pair()
        world.run(30)
        world.network.record = True
        world.run(300)
        clients = [data for data, source, _ in world.network.sent if source[0] != "192.0.2.1"]
        self.assertGreaterEqual(len(clients), 2 * (300 / 15 - 1))
        self.assertLessEqual(len(clients), 2 * 2 * 300 / 7.5)

    def test_it_does_when_every_tenth_packet_is_lost(self) -> None:
        world = World()
        device, peer = world.pair()
        world.network.filter = lossy(0.1, seed=3)
        world.run(600)
        self.assertFalse(device.is_closed)
        self.assertFalse(peer.is_closed)
        self.assertNotIn(PeerLeft(), device.notices + peer.notices)


class IdleCloseTests(SynchronousTestCase):
    """R5.5: a client that says nothing for ``quic_idle_timeout``, but listens, is told so with IDLE."""

    def check(self, latency: float) -> None:
        world = unproven(latency)
        client = ScriptedClient(world)
        world.run(0.5 + 6 * latency)
        client.allocate(world.token().encode(), role=DEVICE)
        world.run(0.5 + 6 * latency)
        began = world.now()
        self.assertEqual(len(client.values(0x11)), 1)
        while client.closed is None:
            world.run(0.5)
            self.assertLess(world.now() - began, IDLE_TIMEOUT + 5)
        self.assertEqual((client.closed.error_code, client.closed.frame_type), (ErrorCode.IDLE, None), client.closed)
        self.assertGreater(world.now() - began, IDLE_TIMEOUT - 3)
        self.assertEqual(world.relay.counters.connections_closed[ErrorCode.IDLE], 1)
        world.run(5)
        self.assertEqual(leftovers(world), {})

    def test_on_a_fast_path(self) -> None:
        self.check(0.005)

    def test_on_slow_paths(self) -> None:
        for latency in (0.05, 0.1, 0.3):
            self.check(latency)

    def test_the_other_end_hears_of_it_at_once(self) -> None:
        world = unproven()
        token = world.token()
        device, peer = ScriptedClient(world), world.client(Role.PEER, token)
        world.run(0.5)
        device.allocate(token.encode(), role=DEVICE)
        world.run(0.5)
        while PeerLeft() not in peer.notices:
            world.run(0.1)
            self.assertLess(world.now(), IDLE_TIMEOUT + 1)
        self.assertGreater(world.now(), IDLE_TIMEOUT - 1)
        self.assertFalse(peer.is_closed)

    def test_what_is_sent_to_a_silent_client_does_not_keep_it(self) -> None:
        world = unproven()
        token = world.token()
        device, peer = ScriptedClient(world), world.client(Role.PEER, token)
        world.run(0.5)
        device.allocate(token.encode(), role=DEVICE)
        world.run(0.5)
        # It gets everything and acknowledges nothing.
        world.network.filter = lambda data, source, _to: None if source == device.sockaddr else data
        while PeerLeft() not in peer.notices:
            peer.send(b"are you there")
            world.run(0.25)
            self.assertLess(world.now(), IDLE_TIMEOUT + 1)
        self.assertEqual(device.close_code, None)
        world.run(1)
        self.assertEqual(device.close_code, ErrorCode.IDLE)


class DeadTests(SynchronousTestCase):
    """R2.6: a client that is gone is noticed within ``quic_idle_timeout``, whatever is sent to it."""

    def check(self, interval: float, size: int) -> None:
        world = World()
        device, peer = world.pair()
        world.run(3)
        cut_off(world, device)
        gone = world.now()
        while PeerLeft() not in peer.notices:
            peer.send(bytes(size))
            world.run(interval)
            self.assertLess(world.now() - gone, IDLE_TIMEOUT + 0.5)
        self.assertGreater(world.now() - gone, IDLE_TIMEOUT - 10)
        world.run(10)
        self.assertEqual(world.endpoint.connections, 1)
        self.assertFalse(peer.is_closed)

    def test_while_the_other_end_keeps_sending(self) -> None:
        self.check(0.1, 1000)

    def test_while_the_other_end_sends_now_and_then(self) -> None:
        self.check(3.0, 10)

    def test_packets_that_are_not_authentic_do_not_keep_it_alive(self) -> None:
        world = World()
        device, peer = world.pair()
        end = relay_end(world, device)
        cut_off(world, device)
        gone = world.now()
        while PeerLeft() not in peer.notices:
            path = Path(device.host.sockaddr, device.host)
            for connection_id in end.quic.own_ids:
                world.endpoint.datagram_received(b"\x41" + connection_id + world.random(100), path)
            world.endpoint.batch_done()
            world.run(1)
            self.assertLess(world.now() - gone, IDLE_TIMEOUT + 1.5)

    def test_it_may_come_back_while_the_old_connection_is_still_there(self) -> None:
        world = World()
        device, peer = world.pair()
        cut_off(world, device)
        world.run(5)
        again = world.client(Role.DEVICE)
        world.run(0.2)
        self.assertIsNotNone(again.allocated)
        peer.send(b"welcome")
        world.run(0.1)
        self.assertEqual(again.got, [b"welcome"])
        world.run(60)
        self.assertNotIn(PeerLeft(), peer.notices)
        peer.send(b"still")
        world.run(0.1)
        self.assertEqual(again.got[-1:], [b"still"])
