"""Initials that belong to no connection, on the simulated network: who gets in, who gets which answer."""

from __future__ import annotations

import hashlib

from aioquic._buffer import BufferReadError
from aioquic.quic.configuration import QuicConfiguration

from tests import raw_quic as raw
from tests.door_support import ALWAYS, HELLO, DoorTestCase, is_retry
from tests.harness import RELAY_ADDRESS, World
from tests.raw_quic import Initial, Raw, ScriptedClient, leftovers
from zrc_relay.client.errors import ConnectFailed, RateLimited
from zrc_relay.core.admission import PATTERN, AdmissionSettings
from zrc_relay.core.codes import Role
from zrc_relay.core.counters import Handshake, InputDrop, Limit
from zrc_relay.core.sources import Rate
from zrc_relay.quic.endpoint import TIMEOUT_BUDGET
from zrc_relay.quic.link import RelayConnection
from zrc_relay.quic.retry import TOKEN_LIFETIME
from zrc_relay.quic.settings import EndpointSettings
from zrc_relay.quic.stateless import parse_long_header
from zrc_relay.quic.udp import SocketAddress

CONNECTION_REFUSED = 0x02
INVALID_TOKEN = 0x0B


class RetryTests(DoorTestCase):
    """R6.2, RFC 9000 §8.1.2: a client that is asked for it shows by a Retry token that it is there, and gets in."""

    def test_the_library_gets_in_after_a_retry(self) -> None:
        self.world = World(limits=ALWAYS)
        device, peer = self.world.pair()
        device.send(b"through the door")
        self.world.run(0.1)
        self.assertEqual(peer.got, [b"through the door"])
        self.assertEqual(self.world.relay.counters.retries_sent, 2)
        self.assertEqual(self.world.relay.counters.handshakes[Handshake.STARTED], 2)

    def test_stock_quic_of_both_versions_gets_in(self) -> None:
        self.world = World(limits=ALWAYS)
        for version in (raw.V1, raw.V2):
            client = ScriptedClient(self.world, supported_versions=[version], original_version=version)
            self.world.run(0.2)
            self.assertTrue(client.is_established, hex(version))
        self.assertEqual(self.world.relay.counters.retries_sent, 2)

    def test_it_costs_one_round_trip(self) -> None:
        times = []
        for limits in (AdmissionSettings(), ALWAYS):
            self.world = World(limits=limits, latency=0.05)
            client = ScriptedClient(self.world)
            while not client.is_established:
                self.world.run(0.001)
            times.append(self.world.now())
        self.assertEqual(round(times[1] - times[0], 2), 0.1)

    def test_nothing_is_kept_for_a_retry(self) -> None:
        self.world = World(limits=ALWAYS)
        stranger = Raw(self.world.network)
        for number in range(500):
            stranger.send(Initial(number.to_bytes(8, "big")).protect(HELLO))
        self.world.run(0.1)
        self.assertEqual(len(stranger.got), 500)
        self.assertTrue(all(map(is_retry, stranger.got)))
        self.assertEqual(leftovers(self.world), {})
        self.assertEqual(dict(self.world.relay.admission.tables), dict.fromkeys(dict(self.world.relay.admission.tables), 0))

    def test_a_client_that_was_asked_is_not_asked_again(self) -> None:
        self.world = World(limits=ALWAYS)
        self.world.network.record = True
        ScriptedClient(self.world)
        self.world.run(1)
        self.assertEqual(sum(is_retry(data) for data, source, _ in self.world.network.sent if source == RELAY_ADDRESS), 1)

    def test_the_address_is_validated_before_the_handshake_ends(self) -> None:
        # A certificate chain of more than three times 1200 bytes would otherwise wait for the client's next packet.
        self.world = World(limits=ALWAYS)
        ScriptedClient(self.world)
        self.world.run(2.5 * self.world.network.latency + 2 * self.world.network.latency)
        (connection,) = self.world.endpoint.all_connections()
        self.assertFalse(connection.established)
        self.assertIsNotNone(connection.quic.validated_address)

    def test_logs_know_the_connection_by_the_clients_own_first_id(self) -> None:
        self.world = World(limits=ALWAYS)
        ScriptedClient(self.world, first_id=b"my first id!")
        self.world.run(0.2)
        (connection,) = self.world.endpoint.all_connections()
        self.assertEqual(connection.name, b"my first id!".hex())

    def test_pressure_is_told_once_a_second_at_most(self) -> None:
        self.world = World(limits=ALWAYS)
        stranger = Raw(self.world.network)
        for number in range(100):
            stranger.send(Initial(number.to_bytes(8, "big")).protect(HELLO))
            self.world.run(0.03)
        self.assertEqual(self.events(Limit.HANDSHAKE_PRESSURE), [("retry", False)] * 3)
        self.assertEqual(self.limited(), {Limit.HANDSHAKE_PRESSURE: 100})


class TokenTests(DoorTestCase):
    """R6.2: a token is good for one address, one connection id and a short time; another one is INVALID_TOKEN."""

    def setUp(self) -> None:
        self.world = World(limits=ALWAYS)
        self.client = Raw(self.world.network)
        self.client.send(Initial(b"first id").protect(HELLO))
        self.world.run(0.1)
        (retry,) = self.client.got
        header = parse_long_header(retry)
        if header is None:
            self.fail("a Retry has a long header")
        self.retry_id, self.token = header.source, retry[header.end : -16]
        self.client.got.clear()

    def check_refused(self, client: Raw, dcid: bytes) -> None:
        self.assertEqual(self.close_of(dcid, client.got), INVALID_TOKEN)
        self.assertEqual(leftovers(self.world), {})
        self.assertEqual(self.limited()[Limit.RETRY_INVALID], 1)
        self.assertEqual(self.events(Limit.RETRY_INVALID), [("refused", False)])
        self.assertEqual(self.world.relay.counters.connections_refused, 1)

    def test_it_lets_its_client_in(self) -> None:
        self.client.send(self.initial(self.retry_id, self.token))
        self.world.run(0.1)
        self.assertEqual(self.world.endpoint.connections, 1)
        self.assertEqual(self.events(Limit.RETRY_INVALID), [])

    def test_from_another_address(self) -> None:
        for sockaddr in (("203.0.113.10", 999), ("203.0.113.9", 1000)):
            self.setUp()
            thief = Raw(self.world.network, sockaddr)
            thief.send(self.initial(self.retry_id, self.token))
            self.world.run(0.1)
            self.check_refused(thief, self.retry_id)

    def test_with_another_connection_id(self) -> None:
        self.client.send(self.initial(b"first id", self.token))
        self.world.run(0.1)
        self.check_refused(self.client, b"first id")

    def test_too_late(self) -> None:
        self.world.run(TOKEN_LIFETIME)
        self.client.send(self.initial(self.retry_id, self.token))
        self.world.run(0.1)
        self.check_refused(self.client, self.retry_id)

    def test_one_that_was_made_up(self) -> None:
        self.client.send(self.initial(b"whatever", b"a token of somebody else"))
        self.world.run(0.1)
        self.check_refused(self.client, b"whatever")

    def test_refusals_have_a_rate(self) -> None:
        for number in range(20):
            self.client.send(self.initial(number.to_bytes(8, "big"), b"made up"))
        self.world.run(0.1)
        self.assertEqual(len(self.client.got), 5)
        self.assertEqual(self.events(Limit.RETRY_INVALID), [("refused", False)] * 5 + [("silence", False)] * 15)

    def test_a_packet_that_ends_in_its_token_is_dropped(self) -> None:
        whole = self.initial(self.retry_id, self.token)
        header = parse_long_header(whole)
        if header is None:
            self.fail("it has a header")
        self.client.send(whole[: header.end] + b"\x7f\xff" + bytes(1200))
        self.world.run(0.1)
        self.assertEqual(self.client.got, [])
        self.assertEqual(self.world.relay.counters.input_dropped[InputDrop.TRUNCATED], 1)


class ConnectionRateTests(DoorTestCase):
    """R6.2: a source that is over its rate is refused once it is validated, before a connection is made, or after."""

    def connect(self) -> ScriptedClient:
        client = ScriptedClient(self.world)
        self.world.run(0.2)
        return client

    def test_over_the_rate_a_validated_source_gets_connection_refused(self) -> None:
        self.world = World(limits=AdmissionSettings(connection_rate=Rate(3, 60)))
        clients = [self.connect() for _ in range(4)]
        self.assertEqual([client.is_established for client in clients], [True] * 3 + [False])
        self.world.run(2)  # stock QUIC tells of a close when its draining period is over
        refused = clients[3].closed
        if refused is None:
            self.fail("the fourth should be closed")
        self.assertEqual(refused.error_code, CONNECTION_REFUSED)
        self.assertIsNotNone(refused.frame_type, "by the transport")
        self.assertEqual(self.events(Limit.CONNECTION_RATE), [("retry", False), ("refused", True)])
        self.assertEqual(self.world.relay.counters.handshakes[Handshake.STARTED], 3)
        self.world.run(20)
        self.assertTrue(self.connect().is_established)

    def test_the_library_says_so_at_once(self) -> None:
        self.world = World(limits=AdmissionSettings(connection_rate=Rate(1, 60)))
        self.world.client(Role.DEVICE)
        self.world.run(0.2)
        late = self.world.client(Role.PEER)
        self.world.run(0.2)
        self.assertIsInstance(late.error, ConnectFailed)
        self.assertIn("no more connections from this address", str(late.error))

    def test_who_came_without_a_token_and_is_one_too_many_is_told_after_the_handshake(self) -> None:
        self.world = World(limits=AdmissionSettings(connection_rate=Rate(2, 60)))
        self.world.network.latency = 0.1
        late = [self.world.client(Role.DEVICE) for _ in range(2)]
        self.world.run(0.15)  # admitted, and on their way
        for number in range(2):  # two others with a token are faster
            self.world.relay.admission.decide(
                (32, 0xC6336407), validated=True, open_handshakes=number, now=self.world.now(), wall=self.world.wall()
            )
        self.world.run(1)
        for client in late:
            error = client.error
            if not isinstance(error, RateLimited):
                self.fail(f"{error!r} instead of RATE_LIMITED")
            self.assertGreater(error.retry_after, 0)
        self.assertEqual(self.limited(), {Limit.CONNECTION_RATE: 2})
        (first, _) = self.world.recorder.named("security.connection_rate")
        self.assertEqual((first["code"], first["validated"]), ("RATE_LIMITED", True))
        self.assertEqual(self.world.recorder.named("session.refused"), [])

    def test_another_source_is_not_concerned(self) -> None:
        self.world = World(limits=AdmissionSettings(connection_rate=Rate(1, 60)))
        self.connect()
        self.assertFalse(self.connect().is_established)
        other = self.world.client(Role.DEVICE, sockaddr=("203.0.113.77", 5000))
        self.world.run(0.2)
        self.assertIsNotNone(other.allocated)


class SpoofedSourceTests(DoorTestCase):
    """R6.2: a spoofed source neither spends its victim's budget nor gets it blocked."""

    VICTIM: SocketAddress = ("198.51.100.7", 7777)

    def setUp(self) -> None:
        self.world = World(limits=AdmissionSettings(connection_rate=Rate(30, 60)))

    def spoof(self, count: int) -> None:
        """Initials that name the victim as their source, from many of its ports."""
        for number in range(count):
            liar = Raw(self.world.network, (self.VICTIM[0], 20_000 + number))
            liar.send(Initial(number.to_bytes(8, "big")).protect(HELLO))

    def test_the_victim_gets_in(self) -> None:
        self.spoof(1000)
        victim = self.world.client(Role.DEVICE, sockaddr=self.VICTIM)
        self.world.run(0.5)
        self.assertIsNotNone(victim.allocated)
        self.world.run(6)
        self.spoof(1000)
        again = self.world.client(Role.PEER, sockaddr=(self.VICTIM[0], 7778))
        self.world.run(0.5)
        self.assertIsNotNone(again.allocated)

    def test_the_victim_is_spared_what_answers_make(self) -> None:
        # The first few handshakes are answered in full; then the pattern is known, and only Retries go there.
        for _ in range(12):
            self.spoof(1)
            self.world.run(6)
        self.assertEqual(self.events(Limit.AMPLIFICATION)[0], ("pattern", False))
        self.assertEqual(self.world.relay.counters.handshakes[Handshake.STARTED], PATTERN + 1)
        self.assertEqual(self.events(Limit.AMPLIFICATION)[1:], [("retry", False)] * (12 - PATTERN - 1))

    def test_no_event_about_it_says_that_its_source_is_validated(self) -> None:
        self.spoof(200)
        self.world.run(6)
        told = [fields for name, fields in self.world.recorder.events if name.startswith("security.")]
        self.assertGreater(len(told), 1)
        self.assertEqual({fields["validated"] for fields in told}, {False})


class FloodTests(DoorTestCase):
    """Issue "must show", on the simulated network: a flood of Initials from anywhere costs bounded state and nobody's session."""

    def test_connections_stay_bounded_and_everything_is_as_before_afterwards(self) -> None:
        self.world = World(limits=AdmissionSettings(), settings=EndpointSettings(handshake_timeout=2.0))
        device, peer = self.world.pair()
        self.world.run(5)
        before = leftovers(self.world)
        most = 0
        for number in range(3000):
            stranger = Raw(self.world.network, (f"127.{number >> 8}.{number & 255}.9", 999))
            stranger.send(Initial(hashlib.sha256(b"%d" % number).digest()[:8]).protect(HELLO))
            if number % 100 == 0:
                device.send(b"%d" % number)
                self.world.run(0.02)
                most = max(most, self.world.endpoint.connections)
        self.world.run(0.1)
        self.assertEqual(len(peer.got), 30)
        self.assertLessEqual(most, 2 + 64)
        late = self.world.client(Role.DEVICE)
        self.world.run(0.2)
        self.assertIsNotNone(late.allocated)
        late.close()
        self.world.run(6)
        self.assertEqual(leftovers(self.world), before)


class HandshakeCostTests(DoorTestCase):
    """R6.9, issue "hostile handshakes": what one handshake, and many at once, may cost."""

    def test_the_fragments_of_a_handshake_are_counted_repeated_ones_too(self) -> None:
        self.world = World()
        client = Raw(self.world.network)
        initial = Initial(b"12345678")
        frames = raw.crypto_frame(5, b"x") * 100
        for number in range(2):
            client.send(initial.protect(frames, packet_number=number))
        self.world.run(0.02)
        closes = [packet for packet in client.got if self.is_close(initial, packet)]
        self.assertEqual(closes, [])
        client.send(initial.protect(frames, packet_number=2))
        self.world.run(0.02)
        (close,) = [packet for packet in client.got if self.is_close(initial, packet)]
        self.assertEqual(raw.transport_close_code(initial.open(close, is_client=False)), raw.CRYPTO_BUFFER_EXCEEDED)

    def is_close(self, initial: Initial, packet: bytes) -> bool:
        try:
            raw.transport_close_code(initial.open(packet, is_client=False))
        except (ValueError, BufferReadError):
            return False
        return True

    def test_handshakes_that_time_out_together_leave_room_for_packets_between_them(self) -> None:
        self.world = World()
        stranger = Raw(self.world.network)
        for number in range(100):
            stranger.send(Initial(number.to_bytes(8, "big")).protect(HELLO))
        self.world.run(0.01)
        turns = [0]  # the first wake-up is on its way already
        take_turn, time_out = self.world.endpoint._timed_out, RelayConnection.timed_out  # noqa: SLF001 - what one wake-up does

        def turn() -> None:
            turns.append(0)
            take_turn()

        def timed_out(connection: RelayConnection, now: float, wall: float) -> None:
            turns[-1] += 1
            self.world.clock.rightNow += 0.001
            time_out(connection, now, wall)

        self.patch(self.world.endpoint, "_timed_out", turn)
        self.patch(RelayConnection, "timed_out", timed_out)
        self.world.run(6)
        self.assertGreaterEqual(sum(turns), 100)
        self.assertLessEqual(max(turns), TIMEOUT_BUDGET / 0.001 + 1)
        self.assertEqual(leftovers(self.world), {})


class CertificateTests(DoorTestCase):
    """R6.2: what a Retry does to the checks of a client."""

    def test_a_client_whose_first_id_was_changed_on_the_way_does_not_believe_the_relay(self) -> None:
        # RFC 9000 §7.3: the original id is in the token and comes back in the transport parameters.
        self.world = World(limits=ALWAYS)
        client = ScriptedClient(self.world, start=False)
        vars(client.quic)["_original_destination_connection_id"] = b"another1"
        self.assertIsInstance(client.quic.configuration, QuicConfiguration)
        client.connect()
        self.world.run(1)
        self.assertFalse(client.is_established)
