"""Lives of connections and allocations through the endpoint: vanishing, coming back, draining, moving, losses, many at once."""

from __future__ import annotations

import random

from twisted.trial.unittest import SynchronousTestCase

from tests import raw_quic as raw
from tests.harness import EPOCH, RELAY_ADDRESS, TestClient, World
from tests.raw_quic import ScriptedClient, leftovers
from zrc_relay.client.errors import AllocationIdle, ConnectFailed, ConnectionLost, Draining
from zrc_relay.client.notices import MaxPayloadChanged, NoticeEvent, PeerJoined, PeerLeft, RelayDraining
from zrc_relay.core.codes import ErrorCode, Role
from zrc_relay.core.wire import Address
from zrc_relay.quic.udp import Path, SocketAddress


def heard(client: TestClient) -> list[NoticeEvent]:
    """The notices of a client but for those about the path's MTU, which come when the search for it has got somewhere."""
    return [notice for notice in client.notices if not isinstance(notice, MaxPayloadChanged)]


class EndOfLifeTests(SynchronousTestCase):
    """R2.6, R2.7, issue "stopping": clients that vanish, drain, and closing everything."""

    def test_a_client_that_vanishes_is_noticed_and_its_allocation_goes(self) -> None:
        world = World()
        device, peer = world.pair()
        gone_at = world.now()
        world.network.filter = lambda data, source, to: data if device.host.sockaddr not in (source, to) else None
        while PeerLeft() not in peer.notices:
            world.run(0.5)
            self.assertLess(world.now() - gone_at, 31.0, "quic_idle_timeout is 30 s")
        left_at = world.now()
        self.assertFalse(peer.peer_present)
        world.run(29.0)
        self.assertEqual(len(world.relay.table), 1)
        self.assertFalse(peer.is_closed)
        world.run(left_at + 31.5 - world.now())
        self.assertEqual(len(world.relay.table), 0)
        self.assertIsInstance(peer.error, AllocationIdle)
        world.run(5)
        self.assertEqual(leftovers(world), {})

    def test_a_client_that_comes_back_finds_its_allocation_and_its_count(self) -> None:
        world = World()
        device, peer = world.pair()
        device.send(b"12345")
        world.run(0.1)
        device.close()
        world.run(20)
        self.assertEqual(heard(peer), [PeerLeft()])
        again = world.client(Role.DEVICE)
        world.run(0.2)
        self.assertEqual(again.allocated.bytes_transferred if again.allocated else None, 5)
        self.assertIsInstance(heard(peer)[-1], PeerJoined)
        peer.send(b"welcome back")
        world.run(0.1)
        self.assertEqual(again.got, [b"welcome back"])
        self.assertEqual(world.relay.counters.allocations_created, 1)

    def test_drain_tells_everyone_and_refuses_new_ones_while_data_goes_on(self) -> None:
        world = World()
        device, peer = world.pair()
        world.relay.drain(world.wall() + 30)
        late = world.client(Role.DEVICE)
        device.send(b"still forwarded")
        world.run(0.3)
        notice = RelayDraining(int(EPOCH + 30), ())
        self.assertIsInstance(heard(device)[0], PeerJoined)
        self.assertEqual([heard(device)[1:], heard(peer)], [[notice], [notice]])
        self.assertEqual(peer.got, [b"still forwarded"])
        self.assertIsInstance(late.error, Draining)
        self.assertEqual(world.relay.counters.refused[ErrorCode.DRAINING], 1)

    def test_close_all_gives_each_client_the_code_and_leaves_nothing(self) -> None:
        world = World()
        device, peer = world.pair()
        half_open = ScriptedClient(world)
        world.endpoint.close_all(ErrorCode.DRAINING, "the relay stops")
        half_open.silence()
        world.run(1)
        self.assertIsInstance(device.error, Draining)
        self.assertIsInstance(peer.error, Draining)
        world.run(5)
        self.assertEqual(leftovers(world), {})

    def test_a_client_of_a_relay_that_has_forgotten_it_knows_at_once(self) -> None:
        world = World()
        device, peer = world.pair()
        world.endpoint.stop()
        device.send(b"does anyone know me?" * 5)
        world.run(0.1)
        self.assertIsInstance(device.error, ConnectionLost)
        self.assertIn("does not know", str(device.error))
        self.assertFalse(peer.is_closed, "it has not asked")

    def test_only_the_right_token_resets_a_connection(self) -> None:
        world = World()
        device, _ = world.pair()
        for _ in range(100):
            device.datagram_received(b"\x41" + world.random(60), Path(RELAY_ADDRESS, device.host))
            device.batch_done()
        self.assertFalse(device.is_closed)

    def test_a_stopped_endpoint_sends_nothing_and_has_no_timer(self) -> None:
        world = World()
        world.pair()
        world.network.record = True
        world.endpoint.stop()
        world.run(0.3)
        self.assertEqual([packet for packet, source, _ in world.network.sent if source == RELAY_ADDRESS], [])
        self.assertEqual(leftovers(world), {})
        self.assertIsNone(vars(world.endpoint)["_timer"])


class AnswersTests(SynchronousTestCase):
    """R2.3, PROTOCOL §4, §5: what a client is told."""

    def test_each_client_hears_the_address_that_the_relay_sees_and_the_one_it_reached(self) -> None:
        world = World()
        client = world.client(Role.DEVICE, sockaddr=("198.51.100.200", 54321))
        world.run(0.3)
        self.assertEqual(client.observed_addr, Address.of("198.51.100.200", 54321))
        allocated = client.allocated
        self.assertEqual(allocated.relay_addr if allocated else None, Address.of(*RELAY_ADDRESS))

    def test_an_ipv6_client_is_seen_by_its_address(self) -> None:
        world = World()
        client = world.client(Role.DEVICE, sockaddr=("2001:db8::7", 54321, 0, 0))
        world.run(0.3)
        self.assertEqual(client.observed_addr, Address.of("2001:db8::7", 54321))

    def test_a_mapped_address_is_told_as_ipv4(self) -> None:
        world = World()
        client = world.client(Role.DEVICE, sockaddr=("::ffff:198.51.100.3", 54321, 0, 0))
        world.run(0.3)
        self.assertEqual(client.observed_addr, Address.of("198.51.100.3", 54321))

    def test_list_relays_is_answered_before_allocate_with_this_relay(self) -> None:
        world = World()
        client = ScriptedClient(world)
        world.run(0.2)
        client.send_control(raw.capsule(raw.LIST_RELAYS))
        world.run(0.1)
        entry = bytes(8) + b"\x04\xc0\x00\x02\x01\x11\x51" + b"\x00\x00\x00"
        self.assertEqual(client.values(raw.RELAYS), [b"\x01" + bytes((len(entry),)) + entry])

    def test_a_client_of_another_protocol_gets_no_connection(self) -> None:
        world = World()
        client = ScriptedClient(world, alpn_protocols=["h3"])
        world.run(1)
        self.assertFalse(client.is_established)
        self.assertEqual(client.close_code, 0x178, "no_application_protocol")
        world.run(5)
        self.assertEqual(leftovers(world), {})

    def test_a_client_that_moves_to_another_address_keeps_its_session(self) -> None:
        world = World()
        device, peer = world.pair()
        old, new = device.host.sockaddr, ("198.51.100.99", 4321)
        world.network.attach(new, device)

        def rebind(data: bytes, _source: SocketAddress, to: SocketAddress) -> bytes | None:
            return None if to == old else data

        world.network.filter = rebind
        device.host.sockaddr = new
        for number in range(20):
            device.send(b"%d" % number)
            world.run(0.05)
        peer.send(b"to the new address")
        world.run(0.5)
        self.assertIn(b"19", peer.got)
        self.assertEqual(device.got, [b"to the new address"])
        self.assertFalse(device.is_closed)
        self.assertNotIn(PeerLeft(), peer.notices)


class LossTests(SynchronousTestCase):
    """R3.1: with a tenth of all packets lost in both directions, handshake and control still work."""

    def test_handshake_refresh_listing_and_release_work_with_a_tenth_lost(self) -> None:
        world = World(seed=5)
        rng = random.Random(11)  # noqa: S311 - the same losses each time
        world.network.filter = lambda data, _source, _to: None if rng.random() < 0.1 else data
        finished = 0
        for number in range(15):
            token = world.token(allocation_id=bytes((number,)) * 16)
            device, peer = world.client(Role.DEVICE, token), world.client(Role.PEER, token)
            world.run(4)
            self.assertIsNotNone(device.allocated, device.error)
            self.assertIsNotNone(peer.allocated, peer.error)
            longer = world.token(allocation_id=bytes((number,)) * 16, expires_at=token.expires_at + 100)
            refreshed, listed = device.refresh(longer), peer.list_relays()
            world.run(3)
            self.assertEqual(self.successResultOf(refreshed).expires_at, longer.expires_at)
            self.assertEqual(len(self.successResultOf(listed)), 1)
            released = peer.release()
            world.run(3)
            self.assertIsNone(self.successResultOf(released))
            # What says so to the other side may be lost, too; then its next keepalive is answered by a stateless reset.
            world.run(0 if device.is_closed else 15)
            self.assertTrue(device.is_closed)
            finished += 1
        self.assertEqual(finished, 15)
        world.run(10)
        self.assertEqual(len(world.relay.table), 0)
        self.assertEqual(leftovers(world), {})


class ManyAllocationsTests(SynchronousTestCase):
    """R4.4, R3.1: many allocations at once, each with both ends exchanging data, all bytes right (the rest: ``make prove``)."""

    def test_a_hundred_allocations_exchange_data_and_none_gets_anothers(self) -> None:
        world = World()
        pairs = []
        for number in range(100):
            token = world.token(allocation_id=bytes((number,)) * 16)
            pairs.append((world.client(Role.DEVICE, token), world.client(Role.PEER, token)))
            world.run(0.002)
        world.run(0.3)
        self.assertEqual(len(world.relay.table), 100)
        expected = [tuple([world.random(100 + number) for _ in range(5)] for _ in range(2)) for number in range(100)]
        for turn in range(5):
            for (device, peer), (down, up) in zip(pairs, expected, strict=True):
                device.send(up[turn])
                peer.send(down[turn])
            world.run(0.02)
        world.run(0.2)
        for (device, peer), (down, up) in zip(pairs, expected, strict=True):
            self.assertEqual((device.got, peer.got), (down, up))


class RefusedHandshakeTests(SynchronousTestCase):
    """A client whose handshake cannot succeed is told, as a typed error of the library."""

    def test_a_relay_that_never_answers_is_not_waited_for_longer_than_quic_waits(self) -> None:
        world = World()
        world.network.filter = lambda _data, _source, _to: None
        client = world.client(Role.DEVICE)
        world.run(40)
        self.assertIsInstance(client.error, ConnectFailed)
