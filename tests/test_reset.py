"""Stateless resets: whom the relay tells that its connection is gone, and who believes it."""

from __future__ import annotations

import random

from twisted.trial.unittest import SynchronousTestCase

from tests import raw_quic as raw
from tests.harness import RELAY_ADDRESS, TestClient, World
from tests.raw_quic import Raw, ScriptedClient
from tests.relay_view import relay_end
from zrc_relay.core.counters import Handshake, InputDrop
from zrc_relay.core.relay import Relay
from zrc_relay.quic.connection import ACTIVE_IDS
from zrc_relay.quic.endpoint import Endpoint
from zrc_relay.quic.ids import RESET_TOKEN_SIZE, SECRET_SIZE, ConnectionIds
from zrc_relay.quic.routes import RETIRED_ID_LIFETIME
from zrc_relay.quic.settings import EndpointSettings
from zrc_relay.quic.strays import RESETS_PER_SECOND
from zrc_relay.quic.udp import Path

SMALLEST = 21
"""The smallest packet that a stateless reset may be, in bytes (RFC 9000 §10.3)."""
SECRET = bytes(range(SECRET_SIZE))


class ResetWorld(World):
    """A relay with a known secret, that can be started anew."""

    def __init__(self) -> None:
        super().__init__()
        self.restart(SECRET)

    def restart(self, secret: bytes) -> None:
        """The relay's process ends without a word and another one takes its place, with ``secret``."""
        timer = vars(self.endpoint)["_timer"]
        if timer is not None:
            timer.cancel()  # without its timer, and without a place on the network, it does nothing any more
        self.relay = Relay(self.policy, self.keys, self.recorder, now=self.now())
        ids = ConnectionIds(secret, self.random)
        self.endpoint = Endpoint(
            self.relay, self.credentials, EndpointSettings(), ids,
            clock=self.clock, now=self.now, wall=self.wall, random=self.random,
        )
        self.network.attach(RELAY_ADDRESS, self.endpoint)


def short_packet(connection_id: bytes, size: int, seed: int = 1) -> bytes:
    """A short-header packet of ``size`` bytes that nobody can open."""
    return b"\x41" + connection_id + random.Random(seed).randbytes(size)[: size - 1 - len(connection_id)]  # noqa: S311 - any will do


class Listener:
    """Takes the place of a client on the network: what comes is shown to the client's connection before it gets it."""

    def __init__(self, world: World, client: TestClient) -> None:
        self.recognised: list[bytes] = []
        self.others: list[bytes] = []
        self._client = client
        world.network.attach(client.host.sockaddr, self)

    def datagram_received(self, data: bytes, path: Path) -> None:
        """See ``Receiver``."""
        (self.recognised if self._client.quic.is_stateless_reset(data) else self.others).append(data)
        self._client.datagram_received(data, path)

    def batch_done(self) -> None:
        """See ``Receiver``."""
        self._client.batch_done()

    def send_blocked(self) -> None:
        """See ``Receiver``."""

    def makeConnection(self, transport: object) -> None:
        """See ``Receiver``."""

    def doStop(self) -> None:
        """See ``Receiver``."""


class SentTests(SynchronousTestCase):
    """RFC 9000 §10.3: what is answered with a reset, how often, and with how many bytes."""

    def setUp(self) -> None:
        self.world = ResetWorld()
        self.stranger = Raw(self.world.network)

    def answers(self, *packets: bytes) -> list[bytes]:
        """What comes back for ``packets``."""
        self.stranger.got.clear()
        for packet in packets:
            self.stranger.send(packet)
        self.world.run(0.1)
        return self.stranger.got

    def test_an_unknown_id_is_answered_with_its_token_at_the_end_of_what_looks_like_a_short_packet(self) -> None:
        (answer,) = self.answers(short_packet(b"unknown!", 100))
        self.assertEqual(answer[-RESET_TOKEN_SIZE:], ConnectionIds(SECRET, self.world.random).reset_token(b"unknown!"))
        self.assertEqual(answer[0] & 0xC0, 0x40)
        self.assertEqual(self.world.relay.counters.stateless_resets_sent, 1)

    def test_the_answer_is_always_smaller_than_what_it_answers(self) -> None:
        for size in range(SMALLEST + 1, 1300, 7):
            (answer,) = self.answers(short_packet(b"unknown!", size))
            self.assertIn(len(answer), range(SMALLEST, size))

    def test_what_is_too_small_for_that_is_not_answered(self) -> None:
        for size in range(9, SMALLEST + 1):
            self.assertEqual(self.answers(short_packet(b"unknown!", size)), [], size)
        self.assertEqual(self.world.relay.counters.input_dropped[InputDrop.UNKNOWN_CONNECTION], SMALLEST + 1 - 9)

    def test_two_relays_set_on_each_other_come_to_rest(self) -> None:
        packets, rounds = [short_packet(b"unknown!", 1300)], 0
        while packets:
            packets = self.answers(*packets)
            rounds += 1
            self.assertLess(rounds, 30)
        self.assertGreater(rounds, 2)

    def test_the_rest_of_it_is_different_each_time(self) -> None:
        answers = [self.answers(short_packet(b"unknown!", 100))[0] for _ in range(20)]
        self.assertEqual(len({answer[:-RESET_TOKEN_SIZE] for answer in answers}), 20)
        self.assertEqual(len({answer[-RESET_TOKEN_SIZE:] for answer in answers}), 1)

    def test_each_id_has_a_token_of_its_own(self) -> None:
        answers = self.answers(*(short_packet(b"%08d" % number, 100) for number in range(50)))
        self.assertEqual(len({answer[-RESET_TOKEN_SIZE:] for answer in answers}), 50)

    def test_at_most_so_many_are_sent_each_second(self) -> None:
        packets = [short_packet(b"%08d" % number, 100) for number in range(3 * RESETS_PER_SECOND)]
        self.world.run(2)
        self.assertEqual(len(self.answers(*packets)), RESETS_PER_SECOND)
        self.world.run(0.5)
        self.assertAlmostEqual(len(self.answers(*packets)), 0.6 * RESETS_PER_SECOND, delta=0.1 * RESETS_PER_SECOND)

    def test_those_that_were_not_sent_are_counted_as_what_they_are(self) -> None:
        packets = [short_packet(b"%08d" % number, 100) for number in range(2 * RESETS_PER_SECOND)]
        self.answers(*packets)
        counters = self.world.relay.counters
        self.assertEqual(counters.input_dropped[InputDrop.UNKNOWN_CONNECTION], len(packets))
        self.assertEqual(counters.stateless_resets_sent, RESETS_PER_SECOND)

    def test_long_headers_are_never_answered_with_one(self) -> None:
        for first in (0xC0, 0xE0, 0xF0):
            packet = bytes((first,)) + raw.V1.to_bytes(4, "big") + b"\x08unknown!\x00" + bytes(1200)
            self.answers(packet)
        self.assertEqual(self.world.relay.counters.stateless_resets_sent, 0)

    def test_the_ids_of_a_live_connection_are_never_reset(self) -> None:
        device, peer = self.world.pair()
        ids = [connection_id for client in (device, peer) for connection_id in relay_end(self.world, client).quic.own_ids]
        self.assertEqual(len(ids), 2 * ACTIVE_IDS)
        self.assertEqual(self.answers(*(short_packet(connection_id, 100) for connection_id in ids)), [])
        device.send(b"undisturbed")
        self.world.run(0.1)
        self.assertEqual(peer.got, [b"undisturbed"])

    def test_an_id_that_was_retired_lately_is_not_reset_and_after_a_while_it_is(self) -> None:
        client = ScriptedClient(self.world)
        self.world.run(0.2)
        old = vars(client.quic)["_peer_cid"].cid
        client.quic.change_connection_id()
        client.send_frames(b"\x01")
        self.world.run(0.1)
        self.assertNotIn(old, relay_end(self.world, client).quic.own_ids)
        self.assertEqual(self.answers(short_packet(old, 100)), [])
        self.world.run(RETIRED_ID_LIFETIME - 0.5)
        self.assertEqual(self.answers(short_packet(old, 100)), [])
        self.world.run(1)
        self.assertEqual(len(self.answers(short_packet(old, 100))), 1)

    def test_a_closing_connection_is_not_reset(self) -> None:
        device, _ = self.world.pair()
        ids = relay_end(self.world, device).quic.own_ids
        device.release()
        self.world.run(0.03)
        answers = self.answers(*(short_packet(connection_id, 100) for connection_id in ids))
        self.assertEqual(self.world.relay.counters.stateless_resets_sent, 0, answers)


class DrainingTests(SynchronousTestCase):
    """RFC 9000 §10.2.2: who has closed a connection gets nothing more of it, and of it nothing but the ids is kept."""

    def setUp(self) -> None:
        """A pair of clients."""
        self.world = ResetWorld()
        self.device, self.peer = self.world.pair()

    def closed(self) -> list[bytes]:
        """The ids of the device's connection, which the device has closed."""
        ids = relay_end(self.world, self.device).quic.own_ids
        self.device.close()
        self.world.run(0.006)
        return ids

    def test_the_connection_is_let_go_at_once_and_the_other_one_is_not(self) -> None:
        gone = relay_end(self.world, self.device)
        self.closed()
        self.assertEqual(self.world.endpoint.all_connections(), [relay_end(self.world, self.peer)])
        self.assertEqual(vars(gone.quic).get("_cryptos"), None)
        self.assertEqual(self.world.recorder.names().count("session.lost"), 1)

    def test_late_packets_are_not_answered_and_after_a_while_they_are_strangers(self) -> None:
        answers = Raw(self.world.network, ("198.51.100.7", 5000))
        ids = self.closed()
        for rest, expected in ((RETIRED_ID_LIFETIME - 0.5, 0), (1, 0), (0, len(ids))):
            for connection_id in ids:
                answers.send(short_packet(connection_id, 100))
            self.world.run(0.02)
            self.assertEqual(len(answers.got), expected)
            self.world.run(rest)
        self.assertEqual(len(ids), ACTIVE_IDS)
        self.assertEqual(self.world.relay.counters.stateless_resets_sent, len(ids))

    def test_they_are_known_for_that_long_even_if_one_was_retired_before(self) -> None:
        client = ScriptedClient(self.world)
        self.world.run(0.05)
        first = relay_end(self.world, client).first_destination_id
        self.world.run(RETIRED_ID_LIFETIME - 0.3)  # the id that the client chose was retired when the handshake was complete
        client.quic.close()
        client.flush()
        self.world.run(1.5)
        answers = Raw(self.world.network, ("198.51.100.7", 5000))
        answers.send(raw.Initial(first, raw.V1).protect(b"\x01", packet_number=9))
        self.world.run(0.02)
        self.assertEqual((answers.got, self.world.endpoint.handshaking), ([], 0))

    def test_after_that_the_client_may_choose_the_id_of_its_first_packet_again(self) -> None:
        for _ in range(2):
            client = ScriptedClient(self.world, first_id=b"\x07chosen-by-it")
            self.world.run(0.1)
            self.assertTrue(client.is_established)
            client.quic.close()
            client.flush()
            self.world.run(RETIRED_ID_LIFETIME + 0.5)
        self.assertEqual(self.world.endpoint.connections, 2)

    def test_one_that_gives_up_before_the_handshake_is_complete_has_failed_once(self) -> None:
        client = ScriptedClient(self.world)
        self.world.network.filter = lambda data, _source, to: None if to == client.sockaddr else data
        self.world.run(0.01)
        client.quic.close()
        client.flush()
        self.world.run(1)
        counters = self.world.relay.counters
        self.assertEqual(self.world.endpoint.connections, 2)
        self.assertEqual((counters.handshakes[Handshake.FAILED], counters.handshakes[Handshake.TIMED_OUT]), (1, 0))


class RestartTests(SynchronousTestCase):
    """R5.9: a relay that was started anew with the same secret resets the connections of its earlier life; clients believe it."""

    def restarted(self, secret: bytes) -> tuple[ResetWorld, TestClient, Listener]:
        """A relay started anew while a client was connected, that says something then."""
        world = ResetWorld()
        device, _ = world.pair()
        world.run(1)
        listener = Listener(world, device)
        world.restart(secret)
        device.send(bytes(100))
        world.run(0.1)
        return world, device, listener

    def test_with_the_same_secret_the_client_recognises_the_reset(self) -> None:
        world, _, listener = self.restarted(SECRET)
        self.assertGreaterEqual(world.relay.counters.stateless_resets_sent, 1)
        self.assertEqual(len(listener.recognised), world.relay.counters.stateless_resets_sent)

    def test_with_another_secret_it_does_not_believe_it(self) -> None:
        world, device, listener = self.restarted(bytes(SECRET_SIZE))
        self.assertGreaterEqual(world.relay.counters.stateless_resets_sent, 1)
        self.assertEqual(listener.recognised, [])
        self.assertFalse(device.is_closed)

    def test_it_is_recognised_on_each_id_that_the_client_may_use(self) -> None:
        world = ResetWorld()
        device, _ = world.pair()
        ids = ConnectionIds(SECRET, world.random)
        end = relay_end(world, device).quic
        for number in range(10):
            current: bytes = vars(device.quic)["_peer_cid"].cid
            for connection_id in (current, *end.own_ids):
                self.assertTrue(device.quic.is_stateless_reset(bytes(27) + ids.reset_token(connection_id)), number)
            device.quic.change_connection_id()
            device.send(b"with another id")
            world.run(0.2)
            self.assertNotEqual(vars(device.quic)["_peer_cid"].cid, current)
            self.assertFalse(device.quic.is_stateless_reset(bytes(27) + ids.reset_token(current)), "it was retired")

    def test_nothing_else_is_taken_for_one(self) -> None:
        world = ResetWorld()
        device, _ = world.pair()
        token = ConnectionIds(SECRET, world.random).reset_token(vars(device.quic)["_peer_cid"].cid)
        quic = device.quic
        self.assertTrue(quic.is_stateless_reset(bytes(SMALLEST - RESET_TOKEN_SIZE) + token))
        self.assertFalse(quic.is_stateless_reset(bytes(SMALLEST - RESET_TOKEN_SIZE - 1) + token), "too small to be a packet")
        self.assertFalse(quic.is_stateless_reset(bytes(20) + token + b"\0"), "the token is at the end")
        self.assertFalse(quic.is_stateless_reset(b""))
        for bit in range(8 * RESET_TOKEN_SIZE):
            changed = (int.from_bytes(token, "big") ^ 1 << bit).to_bytes(RESET_TOKEN_SIZE, "big")
            self.assertFalse(quic.is_stateless_reset(bytes(20) + changed))

    def test_before_the_relay_was_heard_nothing_is(self) -> None:
        world = ResetWorld()
        world.network.filter = lambda _data, _source, _to: None
        client = TestClient(world, None, None, start=True)
        world.run(0.1)
        for packet in (bytes(43), b"\x41" + bytes(42), world.random(43)):
            self.assertFalse(client.quic.is_stateless_reset(packet))
