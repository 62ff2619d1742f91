"""How much goes to an address that has shown nothing, on the simulated network."""

from __future__ import annotations

from collections.abc import Callable

from twisted.trial.unittest import SynchronousTestCase

from tests.door_support import ALWAYS, HELLO, DoorTestCase
from tests.harness import RELAY_ADDRESS, World
from tests.raw_quic import Initial, Raw, ScriptedClient, leftovers
from zrc_relay.core import stun
from zrc_relay.core.admission import AdmissionSettings
from zrc_relay.quic.door import reply
from zrc_relay.quic.udp import Path, SocketAddress


class AmplificationTests(DoorTestCase):
    """R6.4, RFC 9000 §8.1: never more than three times goes to an address that is not validated, whatever comes from there."""

    def setUp(self) -> None:
        self.world = World(limits=AdmissionSettings())
        self.stranger = Raw(self.world.network)
        self.sent = 0

    def send(self, data: bytes) -> None:
        self.sent += len(data)
        self.stranger.send(data)

    def check(self, *, seconds: float = 20.0, answered: bool = True) -> None:
        step = 0.05
        for _ in range(int(seconds / step)):
            self.world.run(step)
            self.assertLessEqual(sum(map(len, self.stranger.got)), 3 * self.sent)
        self.assertEqual(bool(self.stranger.got), answered)
        self.assertEqual(leftovers(self.world), {})

    def client_hello(self, dcid: bytes = b"12345678") -> bytes:
        """The Initial of a real client, which is answered with a certificate, again and again."""
        packets: list[bytes] = []
        client = ScriptedClient(self.world, first_id=dcid, start=False)
        take: Callable[[bytes], None] = packets.append
        self.patch(client, "send", take)
        client.connect()
        client.silence()
        return packets[0]

    def test_a_handshake_that_is_not_continued(self) -> None:
        self.send(self.client_hello())
        self.check()

    def test_a_padded_datagram(self) -> None:
        self.send(self.client_hello() + bytes(250))
        self.check()

    def test_coalesced_packets(self) -> None:
        first = self.client_hello()
        self.send(first + first)
        self.send(first + b"\x40" + bytes(100))
        self.send(first + first[:600])
        self.check()

    def test_truncated_ones(self) -> None:
        first = self.client_hello()
        for size in (1, 6, 7, 30, 600, 1199):
            self.send(first[:size])
        self.check(answered=False)

    def test_truncated_ones_to_a_handshake_that_began(self) -> None:
        first = self.client_hello()
        self.send(first)
        self.world.run(0.1)
        for size in (7, 30, 600, 1199):
            self.send(first[:size])
        self.check()

    def test_a_replayed_one(self) -> None:
        first = self.client_hello()
        for _ in range(50):
            self.send(first)
            self.world.run(0.02)
        self.check()

    def test_a_replayed_one_after_its_connection_is_forgotten(self) -> None:
        first = self.client_hello()
        for _ in range(15):
            self.send(first)
            self.world.run(6)
        self.check()

    def test_one_that_breaks_the_rules_and_small_packets_to_what_is_closing(self) -> None:
        self.send(self.client_hello())
        self.world.run(0.1)
        self.send(Initial(b"12345678").protect(b"\xff" * 20, packet_number=5))
        for number in range(300):
            self.send(b"\xc0\0\0\0\x01\x0812345678\0" + bytes((number & 255,)))
        self.check()

    def test_under_pressure(self) -> None:
        self.world = World(limits=ALWAYS)
        self.stranger = Raw(self.world.network)
        for number in range(20):
            self.send(Initial(number.to_bytes(8, "big")).protect(HELLO))
            self.send(self.initial(number.to_bytes(8, "big"), b"made up"))
        self.check()

    def test_versions_nobody_speaks_resets_and_stun(self) -> None:
        for number in range(200):
            self.send(b"\xc0\x1a\x2a\x3a\x4a\x14" + bytes(20) + b"\x14" + bytes(20) + bytes(1200))
            self.send(b"\x40" + number.to_bytes(8, "big") + bytes(number % 30))
            self.send(stun.binding_request(bytes(12)))
        self.check()

    def test_a_client_that_moves_to_an_address_that_is_not_its_own(self) -> None:
        device, peer = self.world.pair()
        old = device.host.sockaddr
        victim = Raw(self.world.network, ("203.0.113.77", 7777))
        came = went = 0

        def reflect(data: bytes, source: SocketAddress, to: SocketAddress) -> bytes | None:
            nonlocal came, went
            if source == old and to == RELAY_ADDRESS and not came:
                came += len(data)
                self.world.network.hosts[("203.0.113.77", 7777)].send(data, to)
                return None
            if to == ("203.0.113.77", 7777):
                went += len(data)
            return data

        self.world.network.filter = reflect
        device.send(b"x")
        for _ in range(200):
            peer.send(bytes(1000))
            self.world.run(0.01)
            self.assertLessEqual(went, 3 * came)
        self.assertGreater(len(victim.got), 0)


class ReplyTests(SynchronousTestCase):
    """R6.4: the one way to an address that has no connection compares sizes."""

    def test_an_answer_of_three_times_the_size_goes_and_a_longer_one_does_not(self) -> None:
        world = World()
        client = Raw(world.network)
        path = Path(("203.0.113.9", 999), world.network.hosts[RELAY_ADDRESS])
        for size in (0, 29, 30, 31, 1000):
            reply(10, bytes(size), path)
        world.run(0.1)
        self.assertEqual(list(map(len, client.got)), [0, 29, 30])
