"""Lists of networks, and STUN, on the simulated network: who is served, who gets which answer."""

from __future__ import annotations

from tests.door_support import HELLO, DoorTestCase
from tests.harness import World
from tests.raw_quic import Initial, Raw, ScriptedClient, leftovers
from zrc_relay.core import stun
from zrc_relay.core.admission import AdmissionSettings
from zrc_relay.core.cidr import Access, AccessLists, Entry, Network
from zrc_relay.core.codes import ErrorCode, Role
from zrc_relay.core.counters import InputDrop, Limit
from zrc_relay.core.sources import Rate
from zrc_relay.quic.udp import SocketAddress


class ListTests(DoorTestCase):
    """R6.3: the lists hold for who comes, who is there, and who moves."""

    def setUp(self) -> None:
        self.lists = AccessLists()
        self.world = World(lists=self.lists)

    def block(self, text: str, seconds: float = 60) -> None:
        until = self.world.wall() + seconds
        self.assertTrue(self.lists.add(Entry(Network.parse(text), Access.BLOCK, until), self.world.wall()))

    def test_who_is_blocked_gets_silence(self) -> None:
        self.block("203.0.113.0/24")
        stranger = Raw(self.world.network)
        stranger.send(Initial(b"12345678").protect(HELLO))
        stranger.send(self.initial(b"12345678", b"a token"))
        stranger.send(stun.binding_request(bytes(12)))
        self.world.run(0.1)
        self.assertEqual(stranger.got, [])
        self.assertEqual(self.limited(), {Limit.BLOCKED: 3})
        self.assertEqual(self.events(Limit.BLOCKED), [("silence", False)] * 3)
        self.assertEqual(leftovers(self.world), {})

    def test_sessions_of_a_source_that_becomes_blocked_are_ended_and_told_for_how_long(self) -> None:
        device = self.world.client(Role.DEVICE)
        peer = self.world.client(Role.PEER, sockaddr=("203.0.113.50", 5000))
        unbound = ScriptedClient(self.world)
        self.world.run(0.5)
        self.block("203.0.113.50", seconds=100)
        self.world.run(0.5)
        error = peer.error
        if error is None:
            self.fail("it should be ended")
        self.assertEqual(getattr(error, "code", None), ErrorCode.BLOCKED)
        self.assertIn(getattr(error, "retry_after", 0), range(98, 101))
        self.assertIsNone(device.error)
        self.assertFalse(device.peer_present)
        self.assertIsNone(unbound.closed)
        self.assertEqual(self.limited(), {Limit.BLOCKED: 1})
        (event,) = self.world.recorder.named("security.blocked")
        self.assertEqual((event["code"], event["validated"]), ("BLOCKED", True))
        self.block("198.51.100.8")
        self.world.run(0.5)
        self.assertEqual(unbound.close_code, ErrorCode.BLOCKED, "also who has not allocated yet")

    def test_who_moves_to_a_blocked_address_is_ended(self) -> None:
        device, peer = self.world.pair()
        self.block("203.0.113.0/24")
        moved = self.world.network.attach(("203.0.113.50", 5000), device)
        old = device.host.sockaddr

        # The client does not know that its address changes.
        def rebind(data: bytes, source: SocketAddress, to: SocketAddress) -> bytes | None:
            if source == old:
                moved.send(data, to)
                return None
            return data

        self.world.network.filter = rebind
        device.send(b"from elsewhere")
        self.world.run(1)
        self.assertEqual(getattr(device.error, "code", None), ErrorCode.BLOCKED)
        self.assertIsNone(peer.error)

    def test_who_becomes_blocked_during_the_handshake_does_not_get_through(self) -> None:
        self.world.network.latency = 0.3  # so that the sweep that looks for such sessions comes while it is none
        client = self.world.client(Role.DEVICE)
        self.world.run(0.35)
        self.assertEqual(self.world.endpoint.connections, 1)
        self.block("198.51.100.0/24")
        self.world.run(2)
        self.assertEqual(getattr(client.error, "code", None), ErrorCode.BLOCKED)

    def test_others_are_not_looked_at_again_when_nothing_changes(self) -> None:
        self.world.pair()
        asked: list[object] = []
        self.patch(self.world.relay, "recheck", asked.append)
        self.world.run(2)
        self.assertEqual(asked, [])
        self.block("192.0.2.99")
        self.world.run(0.5)
        self.assertEqual(len(asked), 2)


class StunTests(DoorTestCase):
    """PROTOCOL §8: STUN on the same port, rate limited per source, off the connections' way."""

    def ask(self, host: str = "203.0.113.9", count: int = 1) -> list[bytes]:
        client = Raw(self.world.network, (host, 999))
        for _ in range(count):
            client.send(stun.binding_request(b"transaction!"))
        self.world.run(0.1)
        return client.got

    def test_a_client_learns_its_address(self) -> None:
        self.world = World()
        (answer,) = self.ask()
        self.assertEqual(str(stun.mapped_address(answer, b"transaction!")), "203.0.113.9:999")
        self.assertEqual(self.world.relay.counters.stun_answered, 1)
        self.assertEqual(leftovers(self.world), {})

    def test_beyond_its_rate_a_source_gets_silence(self) -> None:
        self.world = World(limits=AdmissionSettings(stun_rate=Rate(60, 60)))
        self.assertEqual(len(self.ask(count=70)), 60)
        self.assertEqual(self.limited(), {Limit.STUN_RATE: 10})
        self.assertEqual(self.events(Limit.STUN_RATE), [("silence", False)] * 10)
        self.assertEqual(len(self.ask("203.0.113.10")), 1)

    def test_it_spends_no_connection(self) -> None:
        self.world = World(limits=AdmissionSettings(stun_rate=Rate(1, 60), connection_rate=Rate(1, 60)))
        self.ask("198.51.100.7", count=50)
        client = self.world.client(Role.DEVICE)
        self.world.run(0.2)
        self.assertIsNotNone(client.allocated)

    def test_garbage_is_counted_and_gets_nothing(self) -> None:
        self.world = World()
        client = Raw(self.world.network)
        client.send(b"\0" * 20)
        client.send(b"\1\1" + bytes(30))
        self.world.run(0.1)
        self.assertEqual((client.got, self.world.relay.counters.input_dropped[InputDrop.STUN]), ([], 2))
