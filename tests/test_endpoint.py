"""The endpoint: which packet goes where, how connections begin and end, and that nothing is left of them."""

from __future__ import annotations

import random
from math import inf
from typing import Any

from aioquic.quic.crypto import CryptoPair
from aioquic.quic.logger import QuicLoggerTrace
from aioquic.tls import CipherSuite, Epoch
from twisted.trial.unittest import SynchronousTestCase

from tests import raw_quic as raw
from tests.door_support import ALWAYS
from tests.harness import OPEN_TIER, RELAY_ADDRESS, RELAY_ID, World
from tests.raw_quic import Initial, Raw, ScriptedClient, leftovers
from tests.relay_view import relay_end
from zrc_relay.core.codes import ErrorCode, Role
from zrc_relay.core.counters import Handshake, InputDrop
from zrc_relay.core.failures import Failure
from zrc_relay.core.relay import Policy
from zrc_relay.quic import endpoint as endpoint_module
from zrc_relay.quic.connection import ACTIVE_IDS
from zrc_relay.quic.endpoint import TIMEOUT_BUDGET
from zrc_relay.quic.fastpath import MAX_ACK_DELAY
from zrc_relay.quic.link import RelayConnection
from zrc_relay.quic.routes import RETIRED_ID_LIFETIME
from zrc_relay.quic.settings import EndpointSettings
from zrc_relay.quic.udp import Path, SocketAddress
from zrc_relay.quic.wheel import SLOTS_PER_SECOND, Wheel

UNKNOWN_VERSION = 0x1A2A3A4A


def long_header(version: int, dcid: bytes, scid: bytes, *, first: int = 0xC0, size: int = 1200) -> bytes:
    """A long-header packet with nothing sensible behind the connection ids."""
    head = bytes((first,)) + version.to_bytes(4, "big") + bytes((len(dcid),)) + dcid + bytes((len(scid),)) + scid
    return head + random.Random(7).randbytes(size)[: max(0, size - len(head))]  # noqa: S311 - any bytes will do


def initial_keys(world: World, client: ScriptedClient) -> dict[int, CryptoPair]:
    """The relay's keys for Initial packets of ``client``, by version."""
    keys: dict[int, CryptoPair] = vars(relay_end(world, client).quic)["_cryptos_initial"]
    return keys


class FirstByteTests(SynchronousTestCase):
    """PROTOCOL §1, R5.6: the first byte decides; garbage is dropped, counted once, and disturbs nobody."""

    def setUp(self) -> None:
        self.world = World()
        self.device, self.peer = self.world.pair()
        self.raw = Raw(self.world.network)

    def check_pair(self) -> None:
        self.peer.got.clear()
        self.device.send(b"still here")
        self.world.run(0.1)
        self.assertEqual(self.peer.got, [b"still here"])
        self.assertEqual(self.world.relay.counters.session_errors, 0)

    def test_garbage_of_every_first_byte_and_many_sizes_is_counted_by_cause_and_leaves_nothing(self) -> None:
        counters = self.world.relay.counters
        before, connections, received = dict(counters.input_dropped), self.world.endpoint.connections, counters.packets_received
        self.raw.send(b"")
        for first in range(256):
            for size in (1, 2, 6, 7, 8, 21, 1199):
                self.raw.send(bytes((first,)) + self.world.random(size - 1))
            self.raw.send(bytes((first,)) + b"\xff" * 1500)
        self.world.run(0.1)
        self.assertEqual(counters.packets_received - received, 1 + 256 * 8)
        dropped = {cause: counters.input_dropped[cause] - before[cause] for cause in InputDrop}
        self.assertEqual(sum(dropped.values()), 1 + 256 * 8)
        self.assertEqual(dropped[InputDrop.FIRST_BYTE], (59 + 64) * 8)
        self.assertEqual(dropped[InputDrop.CHANNEL], 8)
        self.assertEqual(dropped[InputDrop.STUN], 4 * 8)
        self.assertEqual(dropped[InputDrop.UNKNOWN_CONNECTION], 64 * 8)
        self.assertEqual(self.world.endpoint.connections, connections)
        self.assertEqual(len(self.raw.got), counters.stateless_resets_sent, "nothing else is answered")
        self.check_pair()

    def test_garbage_to_the_id_of_a_live_connection_does_not_disturb_it(self) -> None:
        connection_id: bytes = vars(self.device.quic)["_peer_cid"].cid  # what an eavesdropper sees
        for first in (*range(64, 128), *range(192, 256)):
            for size in (0, 1, 20, 1200):
                self.raw.send(bytes((first,)) + connection_id + self.world.random(size))
                self.raw.send(long_header(raw.V1, connection_id, b"", first=first | 0xC0, size=size + 30))
        self.world.run(0.1)
        self.check_pair()

    def test_packets_changed_on_the_way_are_as_if_they_were_lost(self) -> None:
        rng = random.Random(3)  # noqa: S311 - the same packets each time
        changed = 0

        def corrupt(data: bytes, _source: SocketAddress, to: SocketAddress) -> bytes:
            nonlocal changed
            if to != RELAY_ADDRESS or rng.random() < 0.5:
                return data
            changed += 1
            at = rng.randrange(len(data))
            return data[:at] + bytes((data[at] ^ 1 << rng.randrange(8),)) + data[at + 1 :]

        self.world.network.filter = corrupt
        sent = [b"%d" % number for number in range(300)]
        for payload in sent:
            self.device.send(payload)
            self.world.run(0.005)
        self.world.network.filter = lambda data, _source, _to: data
        self.world.run(2)
        self.assertGreater(changed, 100)
        self.assertGreater(len(self.peer.got), 50)
        self.assertEqual([payload for payload in sent if payload in set(self.peer.got)], self.peer.got)
        self.check_pair()


class VersionNegotiationTests(SynchronousTestCase):
    """R5.1, RFC 9000 §6, RFC 9443: versions 1 and 2 are spoken, others answered by what is spoken here."""

    def setUp(self) -> None:
        self.world = World()
        self.raw = Raw(self.world.network)

    def answers_to(self, packet: bytes) -> list[bytes]:
        self.raw.got.clear()
        self.raw.send(packet)
        self.world.run(0.1)
        return self.raw.got

    def test_an_unknown_version_is_answered_with_the_versions_and_the_ids_swapped(self) -> None:
        (answer,) = self.answers_to(long_header(UNKNOWN_VERSION, b"destination", b"source"))
        self.assertEqual(answer[0] & 0xC0, 0xC0, "the fixed bit makes it QUIC for whoever demultiplexes by first byte")
        self.assertEqual(answer[1:5], bytes(4))
        self.assertEqual(answer[5:], b"\x06source\x0bdestination" + raw.V1.to_bytes(4, "big") + raw.V2.to_bytes(4, "big"))
        self.assertEqual(self.world.relay.counters.version_negotiations, 1)
        self.assertEqual(leftovers(self.world), {})

    def test_a_small_datagram_is_not_answered(self) -> None:
        self.assertEqual(self.answers_to(long_header(UNKNOWN_VERSION, b"destination", b"source", size=1199)), [])
        self.assertEqual(self.world.relay.counters.input_dropped[InputDrop.SMALL_INITIAL], 1)

    def test_version_negotiation_is_never_answered_so_two_relays_cannot_be_set_on_each_other(self) -> None:
        self.assertEqual(self.answers_to(long_header(0, b"destination", b"source")), [])
        (answer,) = self.answers_to(long_header(UNKNOWN_VERSION, b"destination", b"source"))
        self.assertEqual(self.answers_to(answer.ljust(1200, b"\0")), [])

    def test_ids_too_long_for_quic_are_dropped(self) -> None:
        self.assertEqual(self.answers_to(long_header(UNKNOWN_VERSION, bytes(21), b"")), [])
        self.assertEqual(self.answers_to(long_header(UNKNOWN_VERSION, b"", bytes(21))), [])
        self.assertEqual(self.world.relay.counters.input_dropped[InputDrop.TRUNCATED], 2)

    def test_clients_of_version_1_only_and_of_version_2_only_are_served_in_it(self) -> None:
        for version in (raw.V1, raw.V2):
            client = ScriptedClient(self.world, supported_versions=[version], original_version=version)
            self.world.run(0.2)
            self.assertTrue(client.is_established, hex(version))
            self.assertEqual(vars(client.quic)["_version"], version)
            self.assertEqual(list(initial_keys(self.world, client)), [version], "keys for what nobody speaks")

    def test_a_client_that_begins_with_version_1_and_would_rather_speak_2_is_served_in_2(self) -> None:
        client = ScriptedClient(self.world, supported_versions=[raw.V2, raw.V1], original_version=raw.V1)  # RFC 9368 §2.3
        self.world.run(0.2)
        self.assertTrue(client.is_established)
        self.assertEqual(vars(client.quic)["_version"], raw.V2)
        self.assertEqual(list(initial_keys(self.world, client)), [raw.V1, raw.V2])

    def test_of_the_ciphers_that_a_client_has_it_takes_the_cheapest(self) -> None:
        aes_128, aes_256 = CipherSuite.AES_128_GCM_SHA256, CipherSuite.AES_256_GCM_SHA384
        chacha = CipherSuite.CHACHA20_POLY1305_SHA256
        for offered, taken in (([chacha, aes_256, aes_128], aes_128), ([chacha, aes_256], aes_256), ([chacha], chacha)):
            client = ScriptedClient(self.world, cipher_suites=offered)
            self.world.run(0.2)
            self.assertTrue(client.is_established, offered)
            self.assertIs(vars(client.quic)["_cryptos"][Epoch.ONE_RTT].send.cipher_suite, taken)

    def test_both_sides_have_as_many_ids_of_the_other_as_the_relay_says(self) -> None:
        client = ScriptedClient(self.world)
        self.world.run(0.2)
        private, relays = vars(client.quic), relay_end(self.world, client).quic
        self.assertEqual(private["_remote_active_connection_id_limit"], ACTIVE_IDS)
        self.assertEqual(1 + len(private["_peer_cid_available"]), ACTIVE_IDS)
        self.assertEqual(1 + len(vars(relays)["_peer_cid_available"]), ACTIVE_IDS)
        self.assertEqual(len(relays.own_ids), ACTIVE_IDS)

    def test_a_client_that_begins_with_an_unknown_version_gets_to_one_that_both_speak(self) -> None:
        client = ScriptedClient(self.world, supported_versions=[raw.V1], original_version=raw.V1, start=False)
        changed: list[bytes] = []

        def as_unknown(data: bytes, _source: SocketAddress, to: SocketAddress) -> bytes:
            # A client from the future: its first packet has another version, the rest is as always.
            if to == RELAY_ADDRESS and not changed:
                changed.append(data)
                return data[:1] + UNKNOWN_VERSION.to_bytes(4, "big") + data[5:]
            return data

        self.world.network.filter = as_unknown
        client.connect()
        self.world.run(2)
        self.assertEqual(self.world.relay.counters.version_negotiations, 1)
        self.assertIn(bytes(4), [packet[1:5] for packet in client.got])


class InitialTests(SynchronousTestCase):
    """RFC 9000 §7.2, §14.1: what begins a connection and what does not."""

    def setUp(self) -> None:
        self.world = World()
        self.raw = Raw(self.world.network)
        self.dropped = self.world.relay.counters.input_dropped

    def send(self, packet: bytes) -> None:
        self.raw.send(packet)
        self.world.run(0.05)

    def test_an_initial_in_a_datagram_below_1200_bytes_begins_nothing(self) -> None:
        self.send(Initial(b"12345678").protect(raw.crypto_frame(0, b"\x01"), size=1199))
        self.assertEqual(self.dropped[InputDrop.SMALL_INITIAL], 1)
        self.assertEqual(leftovers(self.world), {})

    def test_a_destination_id_below_8_bytes_begins_nothing(self) -> None:
        self.send(Initial(b"1234567").protect(raw.crypto_frame(0, b"\x01")))
        self.assertEqual(self.dropped[InputDrop.UNKNOWN_CONNECTION], 1)
        self.assertEqual(leftovers(self.world), {})

    def test_only_initials_begin_a_connection(self) -> None:
        for version, types in ((raw.V1, (0xD0, 0xE0, 0xF0)), (raw.V2, (0xC0, 0xE0, 0xF0))):
            for first in types:
                self.send(long_header(version, b"12345678", b"", first=first))
        self.assertEqual(self.dropped[InputDrop.UNKNOWN_CONNECTION], 6)
        self.assertEqual(leftovers(self.world), {})

    def test_an_initial_sent_twice_begins_one_connection(self) -> None:
        packet = Initial(b"12345678").protect(raw.crypto_frame(0, b"\x01"))
        self.send(packet)
        self.send(packet)
        self.assertEqual(self.world.endpoint.connections, 1)
        self.assertEqual(self.world.relay.counters.handshakes[Handshake.STARTED], 1)

    def test_hello_comes_with_the_first_flight(self) -> None:
        client = ScriptedClient(self.world)
        heard_at = None
        while heard_at is None:
            self.world.run(0.001)
            if client.streams.get(3):
                heard_at = self.world.now()
        self.assertLess(heard_at, 2.5 * self.world.network.latency, "HELLO waits for nothing of the client")
        self.assertIn(3, client.finished)

    def test_the_client_may_begin_its_first_id_with_the_routing_byte(self) -> None:
        client = ScriptedClient(self.world, first_id=b"\xab" + bytes(range(12)))
        self.world.run(0.2)
        self.assertTrue(client.is_established)

    def test_the_library_sends_the_routing_byte(self) -> None:
        self.world.network.record = True
        token = self.world.token()
        self.world.client(Role.DEVICE, token)
        packet = self.world.network.sent[0][0]
        self.assertEqual(packet[6], raw.routing_byte(token.allocation_id))
        self.assertGreaterEqual(packet[5], 9, "at least 8 random bytes follow it")


class HandshakeBoundsTests(SynchronousTestCase):
    """R6.9: half-open handshakes are bounded in number and in time, connections in number, and nothing is left of them."""

    def flood(self, world: World, count: int) -> None:
        stranger = Raw(world.network)
        for number in range(count):
            dcid = number.to_bytes(8, "big")
            stranger.send(Initial(dcid).protect(raw.crypto_frame(0, b"\x01\x00\x01\x00")))
        world.run(0.1)

    def test_a_handshake_that_comes_to_nothing_is_forgotten_after_its_timeout(self) -> None:
        world = World(settings=EndpointSettings(handshake_timeout=2.0))
        self.flood(world, 10)
        self.assertEqual(world.endpoint.connections, 10)
        world.run(1.8)
        self.assertEqual(world.endpoint.connections, 10)
        world.run(0.3)
        self.assertEqual(leftovers(world), {})
        self.assertEqual(world.relay.counters.handshakes[Handshake.TIMED_OUT], 10)

    def test_a_client_that_stops_in_the_middle_of_its_handshake_is_forgotten(self) -> None:
        world = World(settings=EndpointSettings(handshake_timeout=2.0))
        client = ScriptedClient(world)
        world.network.filter = lambda data, source, _to: data if source != client.sockaddr else None
        world.run(2.2)
        self.assertEqual(leftovers(world), {})

    def test_half_open_connections_are_bounded_and_the_next_client_gets_in_when_they_are_gone(self) -> None:
        self.patch(endpoint_module, "MAX_HANDSHAKES", 5)
        world = World(settings=EndpointSettings(handshake_timeout=2.0))
        device, peer = world.pair()
        self.flood(world, 20)
        self.assertEqual(world.endpoint.connections, 2 + 5)
        self.assertEqual(world.relay.counters.input_dropped[InputDrop.HANDSHAKES_FULL], 15)
        late = world.client(Role.DEVICE)
        device.send(b"established ones go on")
        world.run(0.1)
        self.assertEqual(peer.got, [b"established ones go on"])
        self.assertIsNone(late.allocated)
        world.run(4)
        self.assertIsNotNone(late.allocated, "its own retransmission came after the strangers were forgotten")

    def test_connections_are_bounded_in_all(self) -> None:
        world = World(settings=EndpointSettings(max_connections=2))
        device, _ = world.pair()
        third = world.client(Role.DEVICE)
        world.run(1)
        self.assertIsNone(third.allocated)
        self.assertGreaterEqual(world.relay.counters.input_dropped[InputDrop.CONNECTIONS_FULL], 1)
        device.close()
        world.run(4)
        self.assertIsNotNone(third.allocated)

    def test_a_relay_that_does_not_accept_drops_initials_and_serves_who_is_there(self) -> None:
        world = World()
        device, peer = world.pair()
        world.endpoint.accepting = False
        late = world.client(Role.DEVICE)
        device.send(b"x")
        world.run(1)
        self.assertEqual(peer.got, [b"x"])
        self.assertIsNone(late.allocated)
        self.assertGreaterEqual(world.relay.counters.input_dropped[InputDrop.STOPPING], 1)


class ConnectionIdTests(SynchronousTestCase):
    """RFC 9000 §5.1, R6.9: every issued id leads to its connection, retired ones only for a while, and the table is bounded."""

    def test_a_client_that_changes_the_relays_id_again_and_again_is_served_on_each(self) -> None:
        world = World()
        client = ScriptedClient(world)
        world.run(0.2)
        seen = set()
        for number in range(25):
            client.quic.change_connection_id()
            seen.add(vars(client.quic)["_peer_cid"].cid)
            client.send_control(raw.capsule(raw.LIST_RELAYS))
            world.run(0.2)
            self.assertEqual(len(client.values(raw.RELAYS)), number + 1)
        self.assertEqual(len(seen), 25)
        self.assertLess(leftovers(world)["_route_table"], ACTIVE_IDS + RETIRED_ID_LIFETIME / 0.2 + 3)
        world.run(RETIRED_ID_LIFETIME + 0.5)
        self.assertEqual(leftovers(world)["_route_table"], ACTIVE_IDS)

    def test_late_packets_to_a_retired_id_are_known_for_a_while_and_then_a_strangers(self) -> None:
        world = World()
        client = ScriptedClient(world)
        world.run(0.2)
        old = vars(client.quic)["_peer_cid"].cid
        client.quic.change_connection_id()
        client.send_control(raw.capsule(raw.LIST_RELAYS))
        world.run(0.1)
        unknown = world.relay.counters.input_dropped
        before = unknown[InputDrop.UNKNOWN_CONNECTION]
        client.send(b"\x40" + old + bytes(30))
        world.run(0.1)
        self.assertEqual(unknown[InputDrop.UNKNOWN_CONNECTION], before)
        world.run(RETIRED_ID_LIFETIME + 0.5)
        client.send(b"\x40" + old + bytes(30))
        world.run(0.1)
        self.assertEqual(unknown[InputDrop.UNKNOWN_CONNECTION], before + 1)

    def test_ids_differ_in_every_byte_from_connection_to_connection(self) -> None:
        world = World()
        clients = [ScriptedClient(world) for _ in range(20)]
        world.run(0.3)
        ids = [vars(client.quic)["_peer_cid"].cid for client in clients]
        self.assertEqual({len(connection_id) for connection_id in ids}, {8})
        for position in range(8):
            self.assertGreater(len({connection_id[position] for connection_id in ids}), 10)

    def test_nothing_is_left_of_a_connection_that_was_closed(self) -> None:
        world = World()
        device, peer = world.pair()
        self.assertEqual(leftovers(world)["_connections"], 2)
        device.close()
        peer.close()
        world.run(RETIRED_ID_LIFETIME + 1)
        self.assertEqual(leftovers(world), {})


class DiscardedKeysTests(SynchronousTestCase):
    """RFC 9001 §4.9.1: once the handshake is complete, a packet under Initial keys, which anybody can make, does nothing."""

    def test_of_any_version(self) -> None:
        for version in (raw.V1, raw.V2):
            for frames in (b"\x1c\x0a\x00\x00", b"\x01", raw.crypto_frame(0, bytes(40))):
                world = World()
                client = ScriptedClient(world)
                world.run(0.2)
                (connection,) = world.endpoint.all_connections()
                before = connection.quic.idle_deadline
                packet = raw.Initial(connection.first_destination_id, version).protect(
                    frames, packet_number=77, dcid=vars(client.quic)["_peer_cid"].cid
                )
                Raw(world.network, ("198.51.100.7", 5000)).send(packet)
                world.run(0.02)
                self.assertFalse(connection.finished)
                self.assertEqual((connection.remote.host, connection.quic.idle_deadline), (client.sockaddr[0], before))


class AbandonedTests(SynchronousTestCase):
    """R4.3: a handshake that nobody goes on with may be a reflection's; one that came back with a Retry token cannot."""

    def test_one_that_came_by_retry_was_not_abandoned_whatever_else_comes(self) -> None:
        world = World(limits=ALWAYS)
        world.network.filter = lambda data, _, to: None if to != RELAY_ADDRESS and world.endpoint.connections else data
        ScriptedClient(world)
        world.run(0.1)
        (connection,) = world.endpoint.all_connections()
        packet = raw.Initial(connection.first_destination_id, raw.V1).protect(b"\x01", packet_number=500)
        Raw(world.network, ("203.0.113.9", 5000)).send(packet)
        world.run(0.02)
        self.assertFalse(connection.is_abandoned)


class GoneTests(SynchronousTestCase):
    """R5.6: an error that is about a session whose connection is gone ends what else it is about, and nothing more."""

    def test_the_other_connections_are_closed_and_time_goes_on(self) -> None:
        world = World()
        device, _ = world.pair()
        sessions = tuple(each.session for each in world.endpoint.all_connections())
        device.close()
        world.run(0.02)
        third = ScriptedClient(world)
        world.run(0.02)
        world.relay.failures.append(Failure("what fails", ValueError("of our own"), sessions))
        world.run(1)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)
        self.assertEqual(world.endpoint.all_connections(), [relay_end(world, third)])


class ClosingTests(SynchronousTestCase):
    """RFC 9000 §10.2.1: a closing relay repeats its close for the 1st, 2nd, 4th, 8th ... packet, then forgets."""

    def test_the_close_is_repeated_ever_more_rarely_and_then_the_connection_is_gone(self) -> None:
        world = World(latency=0.0001)
        client = ScriptedClient(world)
        world.run(0.5)
        answers: list[bytes] = []

        def lose_answers(data: bytes, _source: SocketAddress, to: SocketAddress) -> bytes | None:
            if to == client.sockaddr:
                answers.append(data)
                return None
            return data

        client.send_control(raw.capsule(raw.ALLOCATE, b"\x01"))
        world.network.filter = lose_answers
        # The close waits for its control output to be acknowledged or not; there is none, so it is there at once.
        world.run(0.002)
        closes = [len(answers)]
        for _ in range(20):
            client.send_frames(b"\x01")
            world.run(0.0004)
            closes.append(len(answers))
        repeated = [number for number in range(1, 21) if closes[number] > closes[number - 1]]
        self.assertEqual(repeated, [1, 2, 4, 8, 16])
        self.assertEqual(len(set(answers[-5:])), 1, "the packet that was kept")
        world.run(5)
        self.assertEqual(leftovers(world), {})

    def test_the_repeated_close_reaches_a_client_that_missed_the_first(self) -> None:
        world = World()
        client = ScriptedClient(world)
        world.run(0.5)
        lost: list[bytes] = []

        def lose_the_first(data: bytes, _source: SocketAddress, to: SocketAddress) -> bytes | None:
            if to == client.sockaddr and len(lost) < 1:
                lost.append(data)
                return None
            return data

        world.network.filter = lose_the_first
        client.send_control(raw.capsule(raw.ALLOCATE, b"\x01"))
        world.run(0.5)
        self.assertEqual(client.close_code, ErrorCode.PROTOCOL_ERROR)


class BatchTests(SynchronousTestCase):
    """A batch is done pair by pair: nobody's packets wait for those of all others to be opened (docs/architecture.md)."""

    def hold(self, world: World) -> list[tuple[bytes, SocketAddress]]:
        """Keep what is sent to the relay from now on; returns where."""
        arrived: list[tuple[bytes, SocketAddress]] = []

        def keep(data: bytes, source: SocketAddress, to: SocketAddress) -> bytes | None:
            if to != RELAY_ADDRESS:
                return data
            arrived.append((data, source))
            return None

        world.network.filter = keep
        return arrived

    def arrive(self, world: World, arrived: list[tuple[bytes, SocketAddress]]) -> None:
        """All of it reaches the relay in one batch."""
        relay = world.network.hosts[RELAY_ADDRESS]
        for data, source in arrived:
            world.endpoint.datagram_received(data, Path(source, relay))
        world.endpoint.batch_done()

    def test_what_one_pair_has_sent_leaves_before_the_next_pairs_packets_are_opened(self) -> None:
        world = World()
        pairs = [world.pair(world.token(allocation_id=bytes((number,)) * 16)) for number in range(2)]
        world.run(1.0)
        arrived = self.hold(world)
        for device, _ in pairs:
            device.send(bytes(1000))
        world.run(0.001)
        (second,) = [each for each in world.endpoint.all_connections() if each.route[0] == pairs[1][0].host.sockaddr]
        before: list[list[SocketAddress]] = []
        receive = second.receive_batch

        def look(*arguments: Any) -> None:
            before.append([to for _, _, to in world.network.sent])
            receive(*arguments)

        self.patch(second, "receive_batch", look)
        world.network.record = True
        self.arrive(world, arrived)
        self.assertEqual(before, [[pairs[0][1].host.sockaddr]])
        self.assertEqual(world.network.sent[-1][2], pairs[1][1].host.sockaddr)

    def test_an_acknowledgement_that_found_no_room_leaves_in_time(self) -> None:
        """RFC 9000 §13.2.1: within max_ack_delay, though what left before was full."""
        world = World()
        device, peer = world.pair()
        world.run(1.0)
        space = vars(relay_end(world, device).quic)["_spaces"][Epoch.ONE_RTT]
        # Both in one batch, and what goes to the device is there first. Nothing reaches the relay after it.
        arrived = self.hold(world)
        peer.send(bytes(relay_end(world, device).max_payload))
        device.send(b"asks for an acknowledgement")
        world.run(0.001)
        self.arrive(world, arrived)
        self.assertLess(space.acks_at, inf)  # still owed: there was no room
        world.run(MAX_ACK_DELAY + 0.001)
        self.assertEqual(space.acks_at, inf)
        self.assertEqual(len(device.got), 1)

    def test_what_came_the_general_way_is_acknowledged_in_time(self) -> None:
        """RFC 9000 §13.2.1, when the connection is on the short way again by then."""
        world = World(policy=Policy(relay_id=RELAY_ID, instance_id=bytes(8), default_tier=OPEN_TIER, proving_roles=frozenset()))
        device = ScriptedClient(world)
        world.run(0.05)
        device.allocate(world.token().encode(), role=raw.DEVICE)
        for _ in range(30):
            device.quic.send_datagram_frame(b"x")
            device.flush()
            world.run(0.03)
        connection = relay_end(world, device)
        self.assertIsNotNone(connection._fast)  # noqa: SLF001 - or this is no test
        space = vars(connection.quic)["_spaces"][Epoch.ONE_RTT]
        for step in range(3):
            device.quic.send_stream_data(0, b"\x80")  # the begin of something, which is not answered
            device.flush()
            for _ in range(100):
                world.run(0.0005)
                if space.acks_at < inf:
                    break
            self.assertLess(space.acks_at, inf)  # it has come
            world.run(0.005)
            self.assertEqual(space.acks_at, inf)
            world.run(step / 100)

    def test_what_is_owed_when_a_recording_begins_or_ends_is_acknowledged_in_time(self) -> None:
        """RFC 9000 §13.2.1: the short way has owed it, and does not go on."""
        world = World()
        device, _ = world.pair()
        world.run(1.0)
        connection = relay_end(world, device)
        space = vars(connection.quic)["_spaces"][Epoch.ONE_RTT]
        for trace in (QuicLoggerTrace(is_client=False, odcid=b"12345678"), None):
            for _ in range(100):
                device.send(b"asks for an acknowledgement")
                world.run(1.5 * world.network.latency)
                if space.acks_at < inf:
                    break
            connection.record(trace)
            self.hold(world)
            world.run(MAX_ACK_DELAY + 0.002)
            self.assertEqual(space.acks_at, inf)
            world.network.filter = lambda data, *_: data

    def test_a_probe_timeout_that_shrinks_is_kept(self) -> None:
        """RFC 9002 §6.2.1: what is on its way is probed when the timeout says so, and not when a longer one of before did."""
        world = World(latency=0.1)
        device, peer = world.pair()
        world.run(1.0)
        connection = relay_end(world, device)
        space = vars(connection.quic)["_spaces"][Epoch.ONE_RTT]
        world.network.latency = 0.005
        seen = 0
        for _ in range(200):
            peer.send(b"x" * 100)
            world.run(0.004)
            fast = connection._fast  # noqa: SLF001 - the connection itself does not say when it will probe
            if fast is not None and space.ack_eliciting_in_flight and not connection.quic.attention:
                self.assertLess(connection.wakes_at, fast.recovery_deadline(0.0) + 0.002)
                seen += 1
        self.assertGreater(seen, 50)

    def test_a_slow_connection_is_not_looked_at_at_a_probe_timeout_that_is_over(self) -> None:
        """It has given up the place for it when what was on its way was acknowledged."""
        world = World()
        device, peer = world.pair()
        world.run(1.0)
        connection = relay_end(world, device)
        space = vars(connection.quic)["_spaces"][Epoch.ONE_RTT]
        given_up = 0
        for _ in range(20):
            peer.send(b"x" * 100)
            was_on_its_way = False
            for _ in range(60):
                world.run(0.001)
                soon = (world.now() + 1.0) * SLOTS_PER_SECOND
                if space.ack_eliciting_in_flight:
                    was_on_its_way = True
                    self.assertLess(connection.slot, soon)
                elif was_on_its_way:
                    self.assertGreater(connection.slot, soon)
                    given_up += 1
                    break
            world.run(0.2)
        self.assertGreater(given_up, 10)

    def test_however_long_it_takes_to_find_who_is_due_they_have_their_turn(self) -> None:
        world = World()

        class Slow(Wheel[RelayConnection]):
            def due(self, now: float) -> tuple[list[RelayConnection], list[RelayConnection]]:
                world.clock.rightNow += 2 * TIMEOUT_BUDGET
                return super().due(now)

        vars(world.endpoint)["_deadlines"] = Slow()
        world.pair()
        world.network.filter = lambda *_: None
        world.run(120.0)
        self.assertEqual(world.endpoint.connections, 0)

    def test_what_is_due_when_a_batch_ends_does_not_wait_for_the_reactor(self) -> None:
        world = World()
        device, _ = world.pair()
        world.run(1.0)
        device.send(bytes(1000))
        world.run(0.006)  # it has arrived, and its acknowledgement may wait a little
        world.network.record = True
        world.clock.rightNow += 0.1  # and nothing was called in that time
        world.endpoint.batch_done()
        self.assertIn(device.host.sockaddr, [to for _, _, to in world.network.sent])
