"""Clients that move: other ports, addresses and families, with traffic both ways, and packets that only pretend to have moved."""

from __future__ import annotations

from dataclasses import dataclass

from twisted.trial.unittest import SynchronousTestCase

from tests.harness import OPEN_TIER, RELAY_ADDRESS, RELAY_ID, Host, TestClient, World
from tests.raw_quic import DEVICE, Raw, ScriptedClient
from tests.relay_view import host_of, lossy, move, relay_end
from zrc_relay.client.notices import PeerLeft
from zrc_relay.core.codes import Role
from zrc_relay.core.relay import Policy
from zrc_relay.core.wire import Address
from zrc_relay.quic.udp import SocketAddress

BASE = 1232
FRESH_PTO = 0.2
"""Probe timeout in seconds of a path that nothing is known of (RFC 9002 §6.2.2, with the library's initial RTT of 100 ms)."""
NEW_PORT: SocketAddress = ("198.51.100.7", 40_000)
NEW_ADDRESS: SocketAddress = ("203.0.113.50", 40_001)
IPV6: SocketAddress = ("2001:db8::50", 40_002, 0, 0)
OTHER_IPV6: SocketAddress = ("2001:db8:1::50", 40_003, 0, 0)
IPV4: SocketAddress = ("203.0.113.51", 40_004)
RELAY_IPV6: SocketAddress = ("2001:db8::1", 4433, 0, 0)
SPOOFER: SocketAddress = ("203.0.113.66", 666)


def moves(world: World) -> list[str]:
    """Where sessions were reported to have moved, in order."""
    return [str(fields["remote"]) for name, fields in world.recorder.events if name == "session.moved"]


@dataclass
class Sent:
    """What one end sent, and when."""

    payloads: list[bytes]
    times: list[float]

    def lost(self, got: list[bytes]) -> list[float]:
        """When the payloads were sent that did not arrive."""
        return [time for payload, time in zip(self.payloads, self.times, strict=True) if payload not in set(got)]


class Traffic:
    """Both ends of an allocation send one payload every ``interval`` seconds."""

    def __init__(self, world: World, device: TestClient, peer: TestClient, *, interval: float = 0.004, size: int = 500) -> None:
        self.world = world
        self.ends = (device, peer)
        self.interval = interval
        self.size = size
        self.sent = (Sent([], []), Sent([], []))

    def run(self, seconds: float) -> None:
        """Let both send for so long."""
        end = self.world.now() + seconds
        while self.world.now() < end:
            for client, sent in zip(self.ends, self.sent, strict=True):
                payload = len(sent.payloads).to_bytes(4, "big") + bytes(self.size - 4)
                sent.payloads.append(payload)
                sent.times.append(self.world.now())
                client.send(payload)
            self.world.run(self.interval)

    def lost(self) -> tuple[list[float], list[float]]:
        """When the device's and the peer's payloads were sent that did not arrive."""
        device, peer = self.ends
        return self.sent[0].lost(peer.got), self.sent[1].lost(device.got)


class MovingTests(SynchronousTestCase):
    """R5.3, issue "must show": the session goes on; at most the datagrams in flight are lost, in both directions."""

    def check(self, *places: SocketAddress, latency: float = 0.005, interval: float = 0.004, size: int = 500) -> None:
        world = World(latency=latency)
        device, peer = world.pair()
        world.run(1)
        traffic = Traffic(world, device, peer, interval=interval, size=size)
        moved_at = []
        for place in places:
            traffic.run(0.1 + 10 * latency)
            moved_at.append(world.now())
            move(world, device, place)
        traffic.run(0.1 + 10 * latency)
        world.run(10 * latency)
        from_device, to_device = traffic.lost()
        self.assertEqual(from_device, [], "what had left arrives, and the new address is served from its first packet on")
        # Lost is what the relay sent to the old address after the move and before the first packet from the new one came.
        margin = 2 * traffic.interval
        for time in to_device:
            self.assertTrue(any(moved - 2 * latency - margin <= time <= moved + margin for moved in moved_at), time)
        self.assertLessEqual(len(to_device), len(places) * (2 * latency / traffic.interval + 3))
        self.assertEqual(sorted(device.got), device.got, "in order")
        self.assertEqual(sorted(peer.got), peer.got)
        self.assertEqual(moves(world), [str(Address.of(place[0], place[1])) for place in places])
        self.assertEqual(relay_end(world, device).remote, Address.of(places[-1][0], places[-1][1]))
        self.assertEqual(world.relay.counters.path_changes, len(places))
        self.assertNotIn(PeerLeft(), peer.notices)
        self.assertEqual(sum(world.relay.counters.dropped_packets.values()), 0)

    def test_another_port(self) -> None:
        self.check(NEW_PORT)

    def test_another_address(self) -> None:
        self.check(NEW_ADDRESS)

    def test_from_ipv4_to_ipv6_and_back(self) -> None:
        self.check(IPV6, OTHER_IPV6, IPV4)

    def test_one_place_after_the_other(self) -> None:
        self.check(NEW_PORT, NEW_ADDRESS, IPV6, NEW_PORT, NEW_ADDRESS)

    def test_on_a_slow_path(self) -> None:
        self.check(NEW_ADDRESS, IPV6, latency=0.1, interval=0.02)

    def test_with_payloads_of_full_size(self) -> None:
        self.check(NEW_ADDRESS, IPV6, size=1100)

    def test_both_ends_at_once(self) -> None:
        world = World()
        device, peer = world.pair()
        world.run(1)
        traffic = Traffic(world, device, peer)
        traffic.run(0.1)
        move(world, device, NEW_ADDRESS)
        move(world, peer, IPV6)
        traffic.run(0.1)
        world.run(0.1)
        for lost in traffic.lost():
            self.assertLessEqual(len(lost), 2 * world.network.latency / traffic.interval + 3)
        self.assertEqual(world.relay.counters.path_changes, 2)

    def test_when_packets_are_lost_too(self) -> None:
        world = World()
        device, peer = world.pair()
        world.run(1)
        world.network.filter = lossy(0.1)
        traffic = Traffic(world, device, peer, interval=0.005)
        for place in (NEW_ADDRESS, IPV6, NEW_PORT):
            traffic.run(0.3)
            move(world, device, place)
        traffic.run(0.3)
        world.network.filter = lossy(0)
        world.run(2)
        self.assertEqual(relay_end(world, device).remote, Address.of(NEW_PORT[0], NEW_PORT[1]))
        device.got.clear()
        peer.send(b"found")
        world.run(0.1)
        self.assertEqual(device.got, [b"found"])

    def test_a_client_that_says_nothing_after_its_nat_forgot_it_is_found_by_its_keepalive(self) -> None:
        world = World()
        device, peer = world.pair()
        world.run(1)
        move(world, device, NEW_PORT)
        world.run(16)
        peer.send(b"where are you")
        world.run(0.1)
        self.assertEqual(device.got, [b"where are you"])
        self.assertEqual(moves(world), [str(Address.of(NEW_PORT[0], NEW_PORT[1]))])

    def test_control_goes_on_over_the_move(self) -> None:
        world = World()
        device, _ = world.pair()
        listed = device.list_relays()
        move(world, device, IPV6)
        listed_after = device.list_relays()
        world.run(1)
        for waiter in (listed, listed_after):
            self.assertEqual(len(self.successResultOf(waiter)), 1)

    def test_a_client_that_changes_its_connection_id_with_its_address_is_served(self) -> None:
        world = World()
        device, peer = world.pair()
        world.run(1)
        traffic = Traffic(world, device, peer)
        for place in (NEW_ADDRESS, IPV6, NEW_PORT):
            traffic.run(0.1)
            move(world, device, place)
            device.quic.change_connection_id()
        traffic.run(0.1)
        world.run(0.1)
        from_device, to_device = traffic.lost()
        self.assertEqual(from_device, [])
        self.assertLessEqual(len(to_device), 3 * (2 * world.network.latency / traffic.interval + 3))


class FreshTests(SynchronousTestCase):
    """R5.3, RFC 9000 §9.4: congestion window, RTT and MTU are those of a path that nothing is known of."""

    def setUp(self) -> None:
        self.world = World()
        self.device, self.peer = self.world.pair()
        traffic = Traffic(self.world, self.device, self.peer, size=1000)
        traffic.run(0.5)
        self.end = relay_end(self.world, self.device)
        self.assertGreater(self.end.quic.congestion_window, 11 * BASE)
        self.assertLess(self.end.quic.probe_timeout, 0.1)
        self.assertGreater(self.end.max_payload, BASE)

    def arrive(self, place: SocketAddress) -> None:
        """The device's next packet comes from ``place``; look right when it has come."""
        move(self.world, self.device, place)
        self.device.send(b"from elsewhere")
        self.world.run(1.1 * self.world.network.latency)

    def test_after_a_move(self) -> None:
        for place in (NEW_PORT, NEW_ADDRESS, IPV6):
            self.arrive(place)
            self.assertEqual(self.end.quic.congestion_window, 10 * BASE)
            self.assertEqual(self.end.quic.probe_timeout, FRESH_PTO)
            self.assertLess(self.end.max_payload, BASE)
            self.world.run(1)
            self.assertLess(self.end.quic.probe_timeout, 0.1)
            self.assertGreater(self.end.max_payload, BASE)

    def test_packets_that_took_the_old_path_tell_nothing_of_the_new_one(self) -> None:
        home = self.device.host.sockaddr
        self.world.network.filter = lambda data, source, _to: None if source == home else data
        for _ in range(5):
            self.peer.send(bytes(1000))
        self.world.run(2.2 * self.world.network.latency)  # they have arrived; what acknowledges them leaves from elsewhere
        self.world.network.latency = 0.3
        self.arrive(NEW_ADDRESS)
        for _ in range(5):
            self.assertEqual(self.end.quic.probe_timeout, FRESH_PTO, "half of that round trip was on the old path")
            self.world.run(0.1)
        self.world.run(2)
        self.assertGreater(self.end.quic.probe_timeout, 0.6)

    def test_what_was_under_way_to_the_old_address_does_not_fill_the_new_window(self) -> None:
        for number in range(200):
            self.peer.send(number.to_bytes(4, "big") + bytes(996))
        self.world.run(2 * self.world.network.latency)
        self.arrive(NEW_ADDRESS)
        self.device.got.clear()
        self.world.run(0.1)
        self.peer.send(b"now")
        self.world.run(0.1)
        self.assertIn(b"now", self.device.got)

    def test_losses_on_the_old_path_do_not_shrink_the_new_window(self) -> None:
        for _ in range(10):
            self.peer.send(bytes(1000))
        self.world.run(1.1 * self.world.network.latency)
        self.arrive(NEW_ADDRESS)  # all ten are lost
        self.world.run(1)
        self.assertGreaterEqual(self.end.quic.congestion_window, 10 * BASE)


class ValidationTests(SynchronousTestCase):
    """R5.3, RFC 9000 §8.2, §9.3: an address counts only once it was validated, and little is sent to it before."""

    def setUp(self) -> None:
        self.world = World()
        self.device, self.peer = self.world.pair()
        self.world.run(2)
        self.end = relay_end(self.world, self.device)
        self.home = self.end.remote
        self.world.network.record = True

    def sent_to(self, place: SocketAddress) -> list[bytes]:
        """What the relay has sent there."""
        return [data for data, source, to in self.world.network.sent if source == RELAY_ADDRESS and to == place]

    def spoof(self, payload: bytes) -> None:
        """The device's packet with ``payload`` comes from the spoofer first, and then from the device."""
        spoofer = Raw(self.world.network, SPOOFER)
        self.spoofer = spoofer
        captured: list[bytes] = []

        def overtake(data: bytes, source: SocketAddress, to: SocketAddress) -> bytes | None:
            if source != self.device.host.sockaddr or captured:
                return data
            captured.append(data)
            spoofer.send(data)
            self.world.clock.callLater(0.001, self.world.network.send, data, Host(self.world.network, source), to)
            return None

        self.world.network.filter = overtake
        self.device.send(payload)
        self.world.run(3 * self.world.network.latency)
        self.world.network.filter = lambda data, _source, _to: data
        self.assertEqual(self.peer.got[-1], payload, "the packet itself is good")
        self.assertGreater(len(spoofer.got), 0, "it was answered there")

    def test_the_address_is_the_old_one_until_the_new_one_has_answered(self) -> None:
        move(self.world, self.device, NEW_ADDRESS)
        self.device.send(b"x")
        for _ in range(5):
            self.world.run(0.5 * self.world.network.latency)
            self.assertEqual((self.end.remote, moves(self.world)), (self.home, []))
        self.world.run(2 * self.world.network.latency)
        self.assertEqual(self.end.remote, Address.of(NEW_ADDRESS[0], NEW_ADDRESS[1]))
        self.assertEqual(moves(self.world), [str(self.end.remote)])
        self.assertEqual(self.world.relay.counters.path_changes, 1)

    def test_an_address_that_never_answers_does_not_become_the_clients(self) -> None:
        self.spoof(b"secret")
        for _ in range(8):
            self.world.run(0.25)
            self.assertEqual(self.end.remote, self.home)
        self.assertEqual((moves(self.world), self.world.relay.counters.path_changes), ([], 0))

    def test_a_silent_client_is_found_again_at_its_old_address_within_a_second(self) -> None:
        self.spoof(b"secret")
        self.world.run(1)
        self.peer.send(b"for the device")
        self.world.run(0.1)
        self.assertEqual(self.device.got[-1:], [b"for the device"])

    def test_one_that_talks_is_found_again_with_its_next_packet(self) -> None:
        self.spoof(b"secret")
        self.device.send(b"I am here")
        self.world.run(1.1 * self.world.network.latency)
        self.peer.send(b"for the device")
        self.world.run(2.2 * self.world.network.latency)
        self.assertEqual(self.device.got[-1:], [b"for the device"])

    def test_again_and_again_spoofed_it_still_is(self) -> None:
        for number in range(20):
            self.spoof(b"%d" % number)
            self.world.run(0.05)
        self.world.run(1)
        self.peer.send(b"for the device")
        self.world.run(0.1)
        self.assertEqual(self.device.got[-1:], [b"for the device"])
        self.assertEqual((self.end.remote, moves(self.world)), (self.home, []))

    def test_at_most_three_times_what_came_from_there_is_sent_there(self) -> None:
        self.spoof(b"secret")
        for number in range(100):
            self.peer.send(number.to_bytes(2, "big") + bytes(1000))
            self.world.run(0.01)
        received = sum(len(data) for data, source, _ in self.world.network.sent if source == SPOOFER)
        self.assertLessEqual(sum(map(len, self.sent_to(SPOOFER))), 3 * received)

    def test_the_window_is_fresh_again_when_the_old_address_is_used_again(self) -> None:
        Traffic(self.world, self.device, self.peer, size=1000).run(0.3)
        self.assertGreater(self.end.quic.congestion_window, 20 * BASE)
        self.spoof(b"secret")
        self.world.run(1)
        self.assertLessEqual(self.end.quic.congestion_window, 12 * BASE)

    def test_a_packet_replayed_later_moves_nothing(self) -> None:
        captured: list[bytes] = []
        self.device.send(b"once")
        self.world.run(0.1)
        captured = [data for data, source, _ in self.world.network.sent if source == self.device.host.sockaddr]
        spoofer = Raw(self.world.network, SPOOFER)
        for data in captured:
            spoofer.send(data)
        self.world.run(1)
        self.assertEqual(spoofer.got, [])
        self.assertEqual((self.end.remote, self.peer.got), (self.home, [b"once"]))


class ReachedTests(SynchronousTestCase):
    """R5.1: answers leave from the address of the relay that the client reached, also after it moved to another of them."""

    def setUp(self) -> None:
        policy = Policy(relay_id=RELAY_ID, instance_id=bytes(8), default_tier=OPEN_TIER, proving_roles=frozenset())
        self.world = World(policy=policy)
        self.world.network.attach(RELAY_IPV6, self.world.endpoint)
        token = self.world.token()
        self.client = ScriptedClient(self.world)
        self.peer = self.world.client(Role.PEER, token)
        self.world.run(0.1)
        self.client.allocate(token.encode(), role=DEVICE)
        self.world.run(1)

    def reach(self, relay: SocketAddress, place: SocketAddress) -> None:
        """From now on the client lives at ``place`` and sends to ``relay``."""
        move(self.world, self.client, place)
        host, network = host_of(self.client), self.world.network

        def send(data: bytes) -> None:
            network.send(data, host, relay)

        self.patch(self.client, "send", send)

    def test_from_one_family_to_the_other_and_back(self) -> None:
        end = relay_end(self.world, self.client)
        self.world.network.record = True
        for relay, place in ((RELAY_IPV6, IPV6), (RELAY_ADDRESS, IPV4), (RELAY_IPV6, OTHER_IPV6)):
            self.reach(relay, place)
            self.world.network.sent.clear()
            self.client.send_datagram(b"from %s" % place[0].encode())
            self.world.run(0.5)
            self.peer.send(b"to %s" % place[0].encode())
            self.world.run(0.5)
            self.assertEqual(self.peer.got[-1], b"from %s" % place[0].encode())
            self.assertEqual(self.client.datagrams[-1], b"to %s" % place[0].encode())
            self.assertEqual({source for _, source, to in self.world.network.sent if to == place}, {relay})
            self.assertEqual(end.local, Address.of(relay[0], relay[1]))
        self.assertIsNone(self.client.closed)
