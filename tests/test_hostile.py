"""Hostile and clumsy clients: each gets a clear answer, costs little, and disturbs nobody else."""

from __future__ import annotations

import logging
import random
import tracemalloc
from typing import Any

from aioquic._buffer import Buffer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from twisted.trial.unittest import SynchronousTestCase

from tests import raw_quic as raw
from tests.harness import World
from tests.raw_quic import Initial, Raw, ScriptedClient, capsule, leftovers
from zrc_relay.client.errors import InternalError
from zrc_relay.client.notices import PeerLeft
from zrc_relay.core.codes import ErrorCode
from zrc_relay.core.counters import Handshake
from zrc_relay.quic.link import RelayConnection
from zrc_relay.quic.paths import MAX_ACK_FRAMES
from zrc_relay.quic.udp import SocketAddress


def device_key(world: World) -> Ed25519PrivateKey:
    """The pinned device's key, for ``cryptography``."""
    return Ed25519PrivateKey.from_private_bytes(bytes(world.device_key))


def peer_key(world: World) -> Ed25519PrivateKey:
    """The peer's key, for ``cryptography``."""
    return Ed25519PrivateKey.from_private_bytes(bytes(world.peer_key))


def good_token(world: World) -> bytes:
    """A token of the device for the peer, minted without the code under test."""
    return raw.mint(
        device_key(world),
        relay_id=world.policy.relay_id, allocation_id=b"an allocation id", peer_id=raw.identity(peer_key(world)),
        expires_at=int(world.wall()) + 3600,
    )


class CryptoFloodTests(SynchronousTestCase):
    """R6.9: what is buffered before the handshake is bounded in bytes and in fragments, and goes with the connection."""

    def setUp(self) -> None:
        self.world = World()
        self.stranger = Raw(self.world.network)
        self.initial = Initial(b"12345678")

    def send(self, *frames: bytes, packet_number: int = 0) -> None:
        self.stranger.send(self.initial.protect(b"".join(frames), packet_number=packet_number))
        self.world.run(0.02)

    def close_codes(self) -> set[int]:
        return {raw.transport_close_code(self.initial.open(data, is_client=False)) for data in self.stranger.got}

    def receiver(self) -> dict[str, Any]:
        """The reassembly buffer of the one connection that there is."""
        (connection,) = self.world.endpoint.all_connections()
        streams = vars(connection.quic).get("_crypto_streams", {})
        fields: dict[str, Any] = vars(next(iter(streams.values())).receiver)
        return fields

    def test_crypto_data_far_ahead_is_refused_with_its_code(self) -> None:
        self.send(raw.crypto_frame(17_000, b"x"))
        self.assertEqual(self.close_codes(), {raw.CRYPTO_BUFFER_EXCEEDED})

    def test_the_last_offset_of_all_is_refused_and_not_allocated(self) -> None:
        tracemalloc.start()
        try:
            self.send(raw.crypto_frame((1 << 62) - 2, b"x"))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        self.assertEqual(self.close_codes(), {raw.CRYPTO_BUFFER_EXCEEDED})
        self.assertLess(peak, 1_000_000)

    def test_an_offset_beyond_quics_numbers_is_refused(self) -> None:
        self.send(raw.crypto_frame((1 << 62) - 1, b"x"))
        self.assertEqual(len(self.close_codes()), 1)
        self.assertEqual(self.world.relay.counters.session_errors, 0)

    def test_a_thousand_one_byte_fragments_with_gaps_are_refused_at_the_sixty_fifth(self) -> None:
        fragments = [raw.crypto_frame(2 * number + 1, b"x") for number in range(1000)]
        for packet_number in range(5):
            self.send(*fragments[200 * packet_number : 200 * packet_number + 200], packet_number=packet_number)
        self.assertEqual(self.close_codes(), {raw.CRYPTO_BUFFER_EXCEEDED})

    def test_what_stays_below_the_bounds_is_kept_and_never_more(self) -> None:
        # 63 gaps and just below 16 KiB ahead: legitimate as far as anyone can tell.
        for number in range(9):
            frames = [raw.crypto_frame(1 + 260 * (7 * number + turn), b"x") for turn in range(7)]
            self.send(*frames, packet_number=number)
        receiver = self.receiver()
        self.assertEqual(len(receiver["_ranges"]), 63)
        self.assertLessEqual(len(receiver["_buffer"]), 16 * 1024)
        self.world.run(6)
        self.assertEqual(leftovers(self.world), {})

    def test_nothing_is_left_of_those_who_were_refused(self) -> None:
        self.send(raw.crypto_frame(17_000, b"x"))
        self.world.run(6)
        self.assertEqual(leftovers(self.world), {})
        self.assertEqual(self.world.relay.counters.handshakes[Handshake.FAILED], 1)

    def test_a_flood_of_hostile_initials_costs_bounded_memory(self) -> None:
        tracemalloc.start()
        try:
            for number in range(100):
                initial = Initial(number.to_bytes(8, "big"))
                self.stranger.send(initial.protect(raw.crypto_frame(16_000, b"x") + raw.crypto_frame(8_000, b"x")))
            self.world.run(0.05)
            used, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        self.assertLess(used / 100, 120_000, "a stock connection is some 75 kB, and at most 16 KiB may be buffered")

    def test_a_client_hello_in_many_shuffled_pieces_is_accepted(self) -> None:
        client = ScriptedClient(self.world, first_id=b"shuffled", start=False)
        initial = Initial(b"shuffled")
        pieces: list[bytes] = []

        def shuffle(data: bytes, source: SocketAddress, _to: SocketAddress) -> bytes | None:
            if source != client.sockaddr or pieces:
                return data
            frames = Buffer(data=initial.open(data, is_client=True))
            if (frames.pull_uint_var(), frames.pull_uint_var()) != (6, 0):
                msg = "the first frame should be the beginning of the ClientHello"
                raise AssertionError(msg)
            hello = frames.pull_bytes(frames.pull_uint_var())
            pieces.extend(raw.crypto_frame(at, hello[at : at + 12]) for at in range(0, len(hello), 12))
            random.Random(1).shuffle(pieces)  # noqa: S311 - the same order each time
            return initial.protect(b"".join(pieces), scid=vars(client.quic)["host_cid"])

        self.world.network.filter = shuffle
        client.connect()
        self.world.run(0.1)
        self.assertGreater(len(pieces), 20)
        self.assertTrue(client.is_established)

    def test_hostile_packets_write_no_lines_of_their_own(self) -> None:
        lines: list[logging.LogRecord] = []
        handler = logging.Handler()
        self.patch(handler, "emit", lines.append)
        self.patch(logging, "lastResort", handler)
        self.send(raw.crypto_frame(17_000, b"x"))
        self.assertEqual(self.close_codes(), {raw.CRYPTO_BUFFER_EXCEEDED})
        self.assertEqual(lines, [])


class FramesTests(SynchronousTestCase):
    """R5.6: no frame, of any type and content, in any packet, is more than the end of the connection that it came on."""

    def setUp(self) -> None:
        self.world = World()
        self.device, self.peer = self.world.pair()

    def check_pair(self) -> None:
        self.device.send(b"still here")
        self.world.run(0.1)
        self.assertEqual(self.peer.got, [b"still here"])
        self.assertEqual(self.world.relay.counters.session_errors, 0)

    def test_each_frame_type_with_random_content_in_an_initial(self) -> None:
        stranger = Raw(self.world.network)
        for kind in range(0x40):
            for size in (0, 3, 40):
                initial = Initial(self.world.random(8))
                frames = raw.crypto_frame(0, b"\x01") + raw.varint(kind) + self.world.random(size)
                stranger.send(initial.protect(frames))
        self.world.run(6.5)
        self.check_pair()
        self.assertEqual(leftovers(self.world)["_connections"], 2)

    def test_each_frame_type_with_random_content_on_an_established_connection(self) -> None:
        clients = 0
        for kind in (*range(0x40), 0xAF, 0x7FFF):
            for _ in range(4):
                client = ScriptedClient(self.world)
                self.world.run(0.03)
                clients += client.is_established
                for size in (0, 2, 9, 40):
                    client.send_frames(raw.varint(kind) + self.world.random(size))
                self.world.run(0.02)
                client.silence()
        self.assertGreater(clients, 200)
        self.check_pair()

    def test_a_datagram_full_of_ack_frames_ends_its_connection(self) -> None:
        """Each costs a look at all that is on its way, and a datagram has room for 230."""
        for count, ends in ((MAX_ACK_FRAMES, False), (MAX_ACK_FRAMES + 1, True)):
            client = ScriptedClient(self.world)
            self.world.run(0.2)
            client.send_frames(b"\x02\x00\x00\x00\x00" * count + b"\x01")
            self.world.run(0.2)
            self.assertEqual(client.closed is not None, ends)

    def test_frames_chosen_to_hurt(self) -> None:
        most = (1 << 62) - 1
        for frames in (
            b"\x04" + raw.varint(0) + raw.varint(0) + raw.varint(0),  # RESET_STREAM of the control stream
            b"\x04" + raw.varint(0) + raw.varint(0) + raw.varint(most),
            b"\x04" + raw.varint(3) + raw.varint(0) + raw.varint(0),  # ... of HELLO's, which is not the client's
            b"\x05" + raw.varint(0) + raw.varint(7),  # STOP_SENDING of control, then of HELLO
            b"\x05" + raw.varint(3) + raw.varint(7),
            b"\x05" + raw.varint(0) + raw.varint(7) + b"\x0a\x00" + raw.varint(2) + capsule(raw.LIST_RELAYS),
            b"\x0e\x00" + raw.varint(most - 1) + raw.varint(1) + b"x",  # STREAM far ahead
            b"\x0a" + raw.varint(4 * 1000) + raw.varint(1) + b"x",  # a stream beyond the limit
            b"\x0a" + raw.varint(1) + raw.varint(1) + b"x",  # a stream that only the relay could have opened
            b"\x19" + raw.varint(most),  # RETIRE_CONNECTION_ID never issued, then the one in use
            b"\x19" + raw.varint(0),
            b"\x18" + raw.varint(1) + raw.varint(2) + b"\x08" + bytes(24),  # NEW_CONNECTION_ID that retires itself
            b"\x18" + raw.varint(most) + raw.varint(most) + b"\x08" + bytes(24),
            b"\x18" + raw.varint(1) + raw.varint(0) + b"\x00" + bytes(16),
            b"\x02" + raw.varint(most) + raw.varint(0) + raw.varint(0) + raw.varint(0),  # ACK of what was never sent
            b"\x02" + raw.varint(0) + raw.varint(0) + raw.varint(0) + raw.varint(5),
            b"\x06" + raw.varint(0) + raw.varint(4) + b"\x0e\x00\x00\x00",  # CRYPTO after the handshake
            b"\x1e", b"\x07\x01x",  # HANDSHAKE_DONE and NEW_TOKEN from a client
            b"\x30", b"\x31\x00",  # DATAGRAM frames, empty
            b"\x31" + raw.varint(1000) + b"x",  # ... longer than its packet
            b"\x12" + raw.varint(most), b"\x10" + raw.varint(0),  # MAX_STREAMS too large, MAX_DATA that shrinks
            b"\x1a" + bytes(8), b"\x1b" + bytes(8),  # PATH_CHALLENGE, and a response to none
            b"\x1c" + raw.varint(most) + raw.varint(0) + raw.varint(5) + b"\xff\xfe\xfd\xfc\xfb",  # a close in no language
            b"\x1d" + raw.varint(most) + raw.varint(0),
        ):
            client = ScriptedClient(self.world)
            self.world.run(0.03)
            client.send_frames(frames)
            client.send_frames(b"\x01")
            self.world.run(0.05)
            client.silence()
        self.check_pair()
        self.world.run(40)
        self.assertEqual(leftovers(self.world)["_connections"], 2, "of the strangers nothing is left")


class CapsuleTests(SynchronousTestCase):
    """PROTOCOL §2, §4: control input that breaks the rules closes the connection with the code that says which one."""

    def setUp(self) -> None:
        self.world = World()
        self.key = device_key(self.world)
        self.token = good_token(self.world)
        self.client = ScriptedClient(self.world)
        self.world.run(0.2)

    def allocate(self) -> None:
        self.client.allocate(self.token, self.key)
        self.world.run(0.1)
        self.assertEqual(len(self.client.values(raw.ALLOCATED)), 1)

    def check_closed(self, code: ErrorCode, after: float = 0.2) -> None:
        self.world.run(after)
        self.assertEqual(self.client.close_code, code)
        closed = self.client.closed
        self.assertTrue(closed is not None and closed.frame_type is None, "a close of the application, not of QUIC")
        self.assertEqual(self.world.relay.counters.refused[code], 1)
        self.assertEqual(len(self.world.relay.table), 0 if code is not ErrorCode.NO_ERROR else 1)

    def test_each_truncated_length_of_allocate_is_a_protocol_error(self) -> None:
        whole = raw.Allocation(raw.DEVICE, self.token, self.client.proof(self.token, self.key, raw.DEVICE)).value()
        for size in (0, 1, 2, 6, 22, 54, 233, 234, len(whole) - 1):
            client = ScriptedClient(self.world)
            self.world.run(0.1)
            client.send_control(capsule(raw.ALLOCATE, whole[:size]))
            self.world.run(1)
            self.assertEqual(client.close_code, ErrorCode.PROTOCOL_ERROR, size)
        self.assertEqual(len(self.world.relay.table), 0)

    def test_an_oversized_capsule_is_refused_before_its_bytes_arrive(self) -> None:
        self.client.send_control(raw.varint(raw.ALLOCATE) + raw.varint(4097))
        self.check_closed(ErrorCode.CONTROL_TOO_LARGE)

    def test_an_oversized_capsule_of_an_unknown_type_is_refused_too(self) -> None:
        self.client.send_control(raw.varint(0x7777) + raw.varint((1 << 62) - 1))
        self.check_closed(ErrorCode.CONTROL_TOO_LARGE)

    def test_allocate_cut_into_single_bytes_is_allocate(self) -> None:
        data = raw.Allocation(raw.DEVICE, self.token, self.client.proof(self.token, self.key, raw.DEVICE)).encode()
        for at in range(len(data)):
            self.client.send_control(data[at : at + 1])
            self.world.run(0.002)
        self.world.run(0.2)
        self.assertEqual(len(self.client.values(raw.ALLOCATED)), 1)

    def test_unknown_capsules_before_and_after_are_ignored_and_counted(self) -> None:
        self.client.send_control(capsule(0x4242, b"from the future") + capsule(raw.HELLO, b"\x01"))
        self.allocate()
        self.client.send_control(capsule(0x3FFF_FFFF_FFFF, bytes(4096)))
        self.world.run(0.2)
        self.assertIsNone(self.client.close_code)
        self.assertEqual(self.world.relay.counters.capsules_unknown, 3)

    def test_allocate_twice_is_a_protocol_error_and_the_other_side_only_hears_peer_left(self) -> None:
        other = ScriptedClient(self.world)
        self.allocate()
        other.allocate(self.token, peer_key(self.world), raw.PEER)
        self.world.run(0.1)
        self.client.allocate(self.token, self.key)
        self.world.run(0.2)
        self.assertEqual(self.client.close_code, ErrorCode.PROTOCOL_ERROR)
        self.assertIsNone(other.close_code)
        self.assertEqual(other.notices(), [b"\x04"])
        self.assertEqual(len(self.world.relay.table), 1)

    def test_an_allocate_made_before_hello_was_read_cannot_hold_a_valid_proof(self) -> None:
        client = ScriptedClient(self.world, start=False)
        # On the way with the client's own last flight: its proof can only be for a challenge that was guessed.
        proof = raw.public_bytes(self.key) + raw.prove(
            self.key, relay_id=self.world.policy.relay_id, certificate=self.client.certificate,
            token=self.token, challenge=bytes(32), role=raw.DEVICE,
        )
        client.quic.connect((("192.0.2.1", 4433), None), self.world.now())
        client.quic.send_stream_data(0, raw.Allocation(raw.DEVICE, self.token, proof).encode())
        client.flush()
        self.world.run(0.2)
        self.assertEqual(client.close_code, ErrorCode.PROOF_INVALID)
        self.assertEqual(len(self.world.relay.table), 0)

    def test_who_never_allocates_is_closed_after_ten_seconds(self) -> None:
        self.world.run(9.7)
        self.assertIsNone(self.client.close_code)
        self.check_closed(ErrorCode.ALLOCATE_TIMEOUT, after=0.6)

    def test_listing_relays_does_not_buy_more_time(self) -> None:
        for _ in range(12):
            self.world.run(0.9)
            self.client.send_control(capsule(raw.LIST_RELAYS))
        self.assertEqual(self.client.close_code, ErrorCode.ALLOCATE_TIMEOUT)

    def test_refresh_and_release_before_allocate_are_protocol_errors(self) -> None:
        for data in (capsule(raw.REFRESH, self.token), capsule(raw.RELEASE), capsule(raw.OPEN_CHANNEL)):
            client = ScriptedClient(self.world)
            self.world.run(0.1)
            client.send_control(data)
            self.world.run(1)
            self.assertEqual(client.close_code, ErrorCode.PROTOCOL_ERROR)

    def test_closing_the_control_stream_is_a_protocol_error(self) -> None:
        self.allocate()
        self.client.send_control(b"", end=True)
        self.world.run(0.2)
        self.assertEqual(self.client.close_code, ErrorCode.PROTOCOL_ERROR)

    def test_closing_the_control_stream_before_anything_was_said_is_a_protocol_error(self) -> None:
        self.client.send_control(b"", end=True)
        self.check_closed(ErrorCode.PROTOCOL_ERROR)

    def test_resetting_the_control_stream_is_a_protocol_error(self) -> None:
        self.allocate()
        self.client.quic.reset_stream(0, 7)
        self.client.flush()
        self.world.run(0.2)
        self.assertEqual(self.client.close_code, ErrorCode.PROTOCOL_ERROR)

    def test_refusing_control_output_is_a_protocol_error_and_disturbs_nobody(self) -> None:
        self.allocate()
        self.client.quic.stop_stream(0, 7)
        self.client.flush()
        other = ScriptedClient(self.world)
        self.world.run(0.1)
        other.allocate(self.token, peer_key(self.world), raw.PEER)
        self.world.run(0.5)
        self.assertEqual(self.client.close_code, ErrorCode.PROTOCOL_ERROR)
        self.assertEqual(len(other.values(raw.ALLOCATED)), 1)
        self.assertEqual(self.world.relay.counters.session_errors, 0)

    def test_a_request_whose_answer_is_refused_in_the_same_packet_is_no_error_of_the_relays(self) -> None:
        self.client.send_control(capsule(raw.LIST_RELAYS))
        self.world.run(0.1)
        self.client.send_frames(b"\x0e\x00\x02\x02" + capsule(raw.LIST_RELAYS) + b"\x05\x00\x07")
        self.check_closed(ErrorCode.PROTOCOL_ERROR, after=1)
        self.assertEqual(self.world.relay.counters.session_errors, 0)

    def test_more_than_fifty_capsules_a_second_are_too_many(self) -> None:
        self.client.send_control(capsule(0x4242) * 50)
        self.world.run(0.01)
        self.assertIsNone(self.client.close_code)
        self.client.send_control(capsule(0x4242) * 5)
        self.check_closed(ErrorCode.RATE_LIMITED)

    def test_who_does_not_read_control_output_is_not_read_further_and_costs_bounded_memory(self) -> None:
        self.allocate()
        # Control output can go nowhere: the client acknowledges nothing any more.
        self.world.network.filter = lambda data, _source, to: None if to == self.client.sockaddr else data
        connection = next(c for c in self.world.endpoint.all_connections() if c.session.allocation is not None)
        most = 0
        for _ in range(25):
            self.client.send_frames(b"\x01")
            data = capsule(raw.REFRESH, self.token) * 4
            self.client.quic.send_stream_data(0, data)
            self.client.flush()
            self.world.run(0.1)
            most = max(most, connection.control_backlog)
        self.assertLess(most, 64 * 1024)
        self.assertGreater(most, 0)

    def test_who_asks_and_gives_no_credit_for_the_answers_gets_a_bounded_number_and_then_rate_limited(self) -> None:
        # Issue "control abuse": LIST_RELAYS, refused REFRESHes and unknown capsules, each below the rate of capsules.
        for ask in (2 * capsule(raw.LIST_RELAYS), capsule(raw.REFRESH, bytes(180)), capsule(0x4242) + capsule(raw.LIST_RELAYS)):
            self.setUp()
            self.allocate()
            other = ScriptedClient(self.world)
            self.world.run(0.1)
            other.allocate(self.token, peer_key(self.world), raw.PEER)
            connection = next(c for c in self.world.endpoint.all_connections() if c.session.allocation is not None)
            self.patch(self.client.quic, "_write_stream_limits", lambda **_: None)
            self.patch(self.client.quic, "_write_connection_limits", lambda **_: None)
            stream = vars(self.client.quic)["_streams"][0]
            vars(stream)["max_stream_data_local"] = 1000  # what it has read so far, and nothing more is credited
            vars(connection.quic)["_streams"][0].max_stream_data_remote = 1000
            most = 0
            for _ in range(1200):
                if self.client.close_code is None and not connection.session.control_pending:
                    self.client.send_control(ask)
                self.world.run(0.045)
                most = max(most, connection.control_backlog)
            self.assertGreater(most, 16 * 1024)
            self.assertLess(most, 17 * 1024)
            self.assertEqual(self.client.close_code, ErrorCode.RATE_LIMITED)

    def test_other_versions_roles_and_addresses_have_their_codes(self) -> None:
        for code, changes in (
            (ErrorCode.VERSION, {"version": 2}),
            (ErrorCode.VERSION, {"version": 0}),
            (ErrorCode.PROTOCOL_ERROR, {"address": b"\x05"}),
            (ErrorCode.PROTOCOL_ERROR, {"address": b"\x06" + bytes(10) + b"\xff\xff" + bytes(4) + b"\x00\x01"}),
        ):
            client = ScriptedClient(self.world)
            self.world.run(0.1)
            client.allocate(self.token, self.key, **changes)
            self.world.run(1)
            self.assertEqual(client.close_code, code, changes)
        client = ScriptedClient(self.world)
        self.world.run(0.1)
        client.send_control(raw.Allocation(2, self.token).encode())
        self.world.run(1)
        self.assertEqual(client.close_code, ErrorCode.PROTOCOL_ERROR)

    def test_every_address_that_a_client_may_claim_is_taken(self) -> None:
        for number, address in enumerate((b"\0", b"\x04\x7f\0\0\x01\x11\x51", b"\x06" + bytes(15) + b"\x01\x00\x00")):
            client = ScriptedClient(self.world)
            self.world.run(0.1)
            client.allocate(self.token, self.key, address=address)
            self.world.run(0.1)
            self.assertEqual(len(client.values(raw.ALLOCATED)), 1, number)


class IsolationTests(SynchronousTestCase):
    """R5.6: an exception in the processing of one connection ends that one with INTERNAL, is counted, and touches no other."""

    def setUp(self) -> None:
        self.world = World()
        self.device, self.peer = self.world.pair()
        other = self.world.token(allocation_id=b"another one, yes")
        self.others = self.world.pair(other)

    def connection_of(self, sockaddr: SocketAddress) -> RelayConnection:
        found: list[RelayConnection] = [
            connection for connection in self.world.endpoint.all_connections() if connection.remote.port == sockaddr[1]
        ]
        return found[0]

    def check(self) -> None:
        self.world.run(0.3)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertIsInstance(self.device.error, InternalError)
        self.assertEqual(self.world.relay.counters.session_errors, 1)
        self.assertEqual(self.peer.notices[-1:], [PeerLeft()])
        self.assertFalse(self.peer.is_closed)
        left, right = self.others
        left.send(b"untouched")
        right.send(b"likewise")
        again = self.world.client(self.device.identity.role) if self.device.identity else None
        self.world.run(0.3)
        self.assertEqual((left.got, right.got), ([b"likewise"], [b"untouched"]))
        self.assertIsNotNone(again.allocated if again else None)

    @staticmethod
    def explode(*_: object) -> None:
        raise ZeroDivisionError

    def test_an_exception_while_a_datagram_is_forwarded(self) -> None:
        self.patch(self.connection_of(self.device.host.sockaddr).session, "datagrams_received", self.explode)
        self.device.send(b"x")
        self.check()

    def test_an_exception_while_a_capsule_is_handled(self) -> None:
        self.patch(self.connection_of(self.device.host.sockaddr).session, "control_received", self.explode)
        self.device.list_relays().addErrback(lambda _: None)
        self.check()

    def test_an_exception_in_quic_itself(self) -> None:
        self.patch(self.connection_of(self.device.host.sockaddr).quic, "receive_datagram", self.explode)
        self.device.list_relays().addErrback(lambda _: None)  # a stream: nothing for the short way
        self.check()

    def test_an_exception_while_it_is_flushed(self) -> None:
        self.patch(self.connection_of(self.device.host.sockaddr).quic, "get_timer", self.explode)
        self.device.list_relays().addErrback(lambda _: None)
        self.check()

    def test_an_exception_when_its_timer_fires(self) -> None:
        connection = self.connection_of(self.device.host.sockaddr)
        self.patch(connection, "timed_out", self.explode)
        self.world.endpoint.expect(connection, self.world.now() + 0.1)
        self.check()
