"""The short way of a packet against the general one: the same packets in, the same state and the same bytes out."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf
from types import SimpleNamespace
from typing import Any, Final

from aioquic.quic import connection
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import DatagramFrameReceived
from aioquic.quic.recovery import MAX_ACK_RANGES
from aioquic.tls import Epoch
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.harness import certificate
from tests.properties.settings import EXAMPLES
from tests.raw_quic import varint
from zrc_relay.quic.congestion import Congestion, Pacer
from zrc_relay.quic.connection import MAX_DATAGRAM_FRAME, Connection
from zrc_relay.quic.egress import EgressQueue
from zrc_relay.quic.fastpath import MAX_ACK_DELAY, FastPath
from zrc_relay.quic.frames import padding_end
from zrc_relay.quic.ids import CONNECTION_ID_SIZE, ConnectionIds
from zrc_relay.quic.onertt import MAX_SENT_ACKS, PathState
from zrc_relay.quic.recent import ReceivedRanges, RecentPackets

HOME: Final = (("198.51.100.7", 1000), None)
ELSEWHERE: Final = (("203.0.113.9", 2000), None)
TICK: Final = 0.01
ESTIMATES: Final = (
    "last_eliciting_at", "max_ack_delay", "pto_count", "rtt_first_sample_at", "rtt_initialized", "rtt_latest", "rtt_min",
    "rtt_smoothed", "rtt_variance",
)
"""What ``PathState`` holds beside congestion control and pacer."""


class Source:
    """Bytes that are the same for both twins."""

    def __init__(self) -> None:
        self._next = 0

    def __call__(self, size: int) -> bytes:
        self._next += 1
        return self._next.to_bytes(size, "big")


def make_server(first_id: bytes) -> Connection:
    """A relay's end of a connection."""
    return Connection(
        configuration=certificate().configuration,
        ids=ConnectionIds(bytes(32), Source()),
        egress=EgressQueue(10_000_000, 1000.0, lambda _: None),
        max_streams=32,
        on_issued=lambda _: None,
        original_destination_connection_id=first_id,
    )


def make_client() -> QuicConnection:
    """A stock client."""
    return QuicConnection(
        configuration=QuicConfiguration(
            alpn_protocols=["zrc-relay"],
            verify_mode=ssl.CERT_NONE,
            max_datagram_frame_size=MAX_DATAGRAM_FRAME,
            max_datagram_size=1232,
        )
    )


def shake_hands(client: QuicConnection, server: Connection, now: float) -> None:
    """Carry packets to and fro until both have nothing to say."""
    client.connect(HOME, now)
    for _ in range(10):
        for data, _ in client.datagrams_to_send(now):
            server.receive_datagram(data, HOME, now)
        for data, _ in server.datagrams_to_send(now):
            client.receive_datagram(data, HOME, now)
        now += TICK
    for end in (client, server):
        while end.next_event() is not None:
            pass


def path_of(quic: Connection) -> PathState:
    """What a connection knows of its path."""
    found: PathState = vars(quic)["_recovery"].path
    return found


def transplant(source: Connection, target: Connection) -> None:
    """Make ``target`` the same connection as ``source``: keys, ids, packet numbers, estimates."""
    keys, other = vars(source)["_keys"], vars(target)["_keys"]
    for mine, theirs in ((other.recv, keys.recv), (other.send, keys.send)):
        mine.setup(cipher_suite=theirs.cipher_suite, secret=theirs.secret, version=theirs.version)
    for name in (
        "_host_cids", "host_cid", "_packet_number", "_close_at", "_spin_bit", "_spin_highest_pn", "_host_cid_seq",
    ):
        value = getattr(source, name)
        setattr(target, name, list(value) if isinstance(value, list) else value)
    target.one_rtt.acks_sent = source.one_rtt.acks_sent
    vars(target)["_peer_cid"] = replace(vars(source)["_peer_cid"])
    vars(target)["_peer_cid_available"] = [replace(spare) for spare in vars(source)["_peer_cid_available"]]
    mine, theirs = (vars(end)["_spaces"][Epoch.ONE_RTT] for end in (target, source))
    for name in ("expected_packet_number", "largest_received_packet", "largest_received_time", "largest_acked_packet"):
        setattr(mine, name, getattr(theirs, name))
    mine.ack_queue, mine.received_packets = ReceivedRanges(), RecentPackets()
    for held in theirs.ack_queue:
        for number in held:
            mine.ack_queue.add(number)
    for number in range(theirs.received_packets.highest + 1):
        if number in theirs.received_packets:
            mine.received_packets.add(number)
    for space in (mine, theirs):
        space.sent_packets.clear()
        space.ack_at = space.loss_time = None
        space.ack_eliciting_in_flight = 0
    for end in (source, target):
        path = path_of(end)
        path.congestion, path.pacer = Congestion(max_datagram_size=1232), Pacer(max_datagram_size=1232)
    for name in ESTIMATES:
        setattr(path_of(target), name, getattr(path_of(source), name))


def state(quic: Connection, now: float) -> dict[str, Any]:
    """Everything that loss recovery, acknowledgement and the idle timer know."""
    private = vars(quic)
    space, path = private["_spaces"][Epoch.ONE_RTT], path_of(quic)
    found = {name: getattr(path, name) for name in ESTIMATES}
    found |= {name: getattr(quic, name) for name in ("_packet_number", "_close_at", "_spin_bit", "_spin_highest_pn", "_state")}
    for name in ("expected_packet_number", "largest_received_packet", "largest_acked_packet", "ack_eliciting_in_flight"):
        found[name] = getattr(space, name)
    found["loss_time"] = space.loss_time
    found["ranges"] = list(space.ack_queue)
    found["received"] = [number in space.received_packets for number in range(space.largest_received_packet + 2)]
    found["sent"] = [
        (number, packet.sent_time, packet.sent_bytes, packet.in_flight, packet.is_ack_eliciting)
        for number, packet in space.sent_packets.items()
    ]
    congestion, pacer = path.congestion, path.pacer
    found["congestion"] = (congestion.congestion_window, congestion.bytes_in_flight, congestion.ssthresh)
    pacer.update_bucket(now)  # what it holds is worked out when somebody asks
    found["pacer"] = (pacer.bucket_max, pacer.bucket_time, pacer.packet_time)
    found["phase"] = (private["_keys"].recv.key_phase, private["_keys"].updates)
    found["paths"] = [
        (path.addr, path.is_validated, path.bytes_sent if not path.is_validated else 0, path.validation_deadline)
        for path in private["_network_paths"]
    ]
    found["pacing"] = quic.one_rtt.pacing_at
    return found


def payloads_of(quic: Connection) -> list[bytes]:
    """The datagrams among the events that wait."""
    found = []
    while (event := quic.next_event()) is not None:
        if isinstance(event, DatagramFrameReceived):
            found.append(event.data)
    return found


class Twins:
    """A client, and two servers that are the same connection: one takes the short way where it can, one never."""

    def __init__(self) -> None:
        self.now = 100.0
        self.client, other = make_client(), make_client()
        self.short = make_server(self.client.original_destination_connection_id)
        self.general = make_server(other.original_destination_connection_id)
        shake_hands(self.client, self.short, self.now)
        shake_hands(other, self.general, self.now)
        self.now += 1.0
        transplant(self.short, self.general)
        self.fast = FastPath(self.short)
        self.address: Any = HOME
        self.taken_short = 0

    def arrive(self, packets: list[bytes], address: Any) -> tuple[list[bytes], list[bytes]]:
        """The packets reach both; returns the payloads that each found."""
        short: list[bytes] = []
        left = packets
        while left:
            found, rest = self.fast.receive(left, address, self.now)
            self.taken_short += len(left) - len(rest)
            short += found
            if rest:
                self.short.receive_datagram(rest[0], address, self.now)
                short += payloads_of(self.short)
            left = rest[1:]
        for packet in packets:
            self.general.receive_datagram(packet, address, self.now)
        return short, payloads_of(self.general)

    def arrive_at_client(self, packets: list[bytes]) -> None:
        """What the short way sent reaches the client."""
        for packet in packets:
            self.client.receive_datagram(packet, HOME, self.now)

    def acknowledge(self) -> None:
        """Both acknowledge now: when, is the one thing in which they differ on purpose."""
        due = [vars(end)["_spaces"][Epoch.ONE_RTT] for end in (self.short, self.general)]
        wanted = any(space.ack_at is not None for space in due)
        for space in due:
            space.ack_at = self.now - TICK if wanted else None

    def leave(self) -> tuple[list[bytes], list[bytes]]:
        """What each sends now."""
        self.acknowledge()
        short = [data for data, _ in self.short.datagrams_to_send(self.now)] if self.short.attention else self.fast.seal(self.now)
        return short, [data for data, _ in self.general.datagrams_to_send(self.now)]


@dataclass(frozen=True)
class Step:
    """One turn: what the client and the servers send, and what the network does to it."""

    up: tuple[int, ...]
    down: tuple[int, ...]
    extra: str
    lost: frozenset[int]
    twice: frozenset[int]
    reverse: bool
    elsewhere: bool
    acks_lost: bool
    delay: float


STEPS = st.builds(
    Step,
    up=st.lists(st.sampled_from((0, 1, 63, 64, 500, 1100, 1202)), max_size=6).map(tuple),
    down=st.lists(st.sampled_from((0, 1, 63, 64, 700, 1100, 1202)), max_size=8).map(tuple),
    extra=st.sampled_from(("", "", "", "ping", "stream", "client keys", "server keys", "unknown", "padding")),
    lost=st.frozensets(st.integers(0, 8), max_size=3),
    twice=st.frozensets(st.integers(0, 8), max_size=2),
    reverse=st.booleans(),
    elsewhere=st.sampled_from((False, False, False, False, False, True)),
    acks_lost=st.sampled_from((False, False, False, True)),
    delay=st.sampled_from((0.0, 0.001, 0.02, 0.3, 2.0)),
)


class DifferentialTests(SynchronousTestCase):
    """R3, RFC 9000, RFC 9002: the short way has no meaning of its own."""

    def play(self, steps: list[Step]) -> Twins:
        self.patch(connection, "os", os)
        twins = Twins()
        # Path challenges are random; of two servers the client would answer one only.
        self.patch(connection, "os", SimpleNamespace(urandom=bytes))
        self.assertEqual(state(twins.short, twins.now), state(twins.general, twins.now))
        for number, step in enumerate(steps):
            twins.now += TICK + step.delay
            self.turn(twins, step, number)
        return twins

    def turn(self, twins: Twins, step: Step, number: int) -> None:
        client = twins.client
        for size in step.up:
            client.send_datagram_frame(bytes((number % 256,)) * size)
        if step.extra == "ping":
            client.send_ping(number)
        elif step.extra == "stream":
            client.send_stream_data(8, b"mixed frames")
        elif step.extra == "server keys":
            for server in (twins.short, twins.general):
                server.request_key_update()
        elif step.extra == "client keys":
            client.request_key_update()
        packets = [data for data, _ in client.datagrams_to_send(twins.now)]
        kept = [
            packet
            for index, packet in enumerate(packets)
            for _ in range(2 if index in step.twice else 1)
            if index not in step.lost
        ]
        if step.reverse:
            kept.reverse()
        if step.extra == "padding":
            kept.append(bytes(40))
        short, general = twins.arrive(kept, ELSEWHERE if step.elsewhere else HOME)
        self.assertEqual(short, general)
        self.assertEqual(state(twins.short, twins.now), state(twins.general, twins.now))
        for server in (twins.short, twins.general):
            for size in step.down:
                server.send_payloads([bytes((number % 256,)) * min(size, server.max_payload)], twins.now)
        self.out(twins, step)
        timers = [server.get_timer() for server in (twins.short, twins.general)]
        self.assertEqual(*timers)
        if timers[0] is not None and timers[0] <= twins.now + step.delay:
            twins.now = timers[0] + 1e-6
            for server in (twins.short, twins.general):
                server.handle_timer(twins.now)
            self.out(twins, step)

    def out(self, twins: Twins, step: Step) -> None:
        sent, expected = twins.leave()
        for server in (twins.short, twins.general):
            if not server.egress:
                server.one_rtt.pacing_at = inf  # aioquic would wake up for nothing
        self.assertEqual(len(sent), len(expected))
        self.assertEqual(sent, expected)
        self.assertEqual(state(twins.short, twins.now), state(twins.general, twins.now))
        if not step.acks_lost:
            for index, packet in enumerate(sent):
                if index not in step.lost:
                    twins.client.receive_datagram(packet, HOME, twins.now)

    @settings(max_examples=EXAMPLES)
    @given(st.lists(STEPS, min_size=1, max_size=25))
    def test_both_ways_lead_to_the_same_state_and_the_same_packets(self, steps: list[Step]) -> None:
        self.play(steps)

    def test_ordinary_traffic_takes_the_short_way(self) -> None:
        nothing: frozenset[int] = frozenset()
        step = Step(
            (1100,) * 5, (1100,) * 5, "", nothing, nothing, reverse=False, elsewhere=False, acks_lost=False, delay=0.0,
        )
        twins = self.play([step] * 40)
        self.assertGreaterEqual(twins.taken_short, 40 * 5)


class DeadlineTests(SynchronousTestCase):
    """RFC 9000 §13.2.1: an acknowledgement is sent in time, also when what leaves has no room for it."""

    def test_an_acknowledgement_that_did_not_fit_is_a_deadline(self) -> None:
        twins = Twins()
        twins.client.send_datagram_frame(bytes(100))
        packets = [data for data, _ in twins.client.datagrams_to_send(twins.now)]
        twins.fast.receive(packets, HOME, twins.now)
        self.assertFalse(twins.short.attention)
        twins.short.send_payloads([bytes(twins.short.max_payload)], twins.now)
        [packet] = twins.fast.seal(twins.now)
        self.assertGreater(len(packet), twins.short.max_payload)
        due = twins.fast.ack_at
        self.assertTrue(twins.now < due <= twins.now + MAX_ACK_DELAY)
        self.assertFalse(twins.fast.has_sooner_deadline(due, twins.now))

    def test_what_ends_a_backoff_brings_the_probe_nearer(self) -> None:
        twins = Twins()
        twins.short.send_payloads([b"x"], twins.now)
        twins.arrive_at_client(twins.fast.seal(twins.now))
        path_of(twins.short).pto_count = 3
        twins.fast.receive([data for data, _ in twins.client.datagrams_to_send(twins.now + 0.1)], HOME, twins.now + 0.1)
        self.assertEqual(path_of(twins.short).pto_count, 0)
        self.assertTrue(twins.short.attention)


class KeptTests(SynchronousTestCase):
    """R5.2: what a peer leaves unacknowledged is bounded, also where no congestion window does that."""

    def acknowledge_often(self, send: Callable[[Twins, float], object], count: int) -> Twins:
        """The server acknowledges so many packets, and the client never does."""
        twins = Twins()
        vars(vars(twins.client)["_loss"])["_cc"].congestion_window = 10**9  # it hears nothing, and goes on
        for _ in range(count):
            twins.now += 0.03
            twins.client.send_datagram_frame(b"x")
            twins.fast.receive([data for data, _ in twins.client.datagrams_to_send(twins.now)], HOME, twins.now)
            twins.now += 0.03
            send(twins, twins.now)
        return twins

    def check(self, twins: Twins) -> None:
        space = vars(twins.short)["_spaces"][Epoch.ONE_RTT]
        self.assertGreater(twins.short.one_rtt.packet_number, MAX_SENT_ACKS + 100)
        kept = [packet for packet in space.sent_packets.values() if not packet.in_flight]
        self.assertTrue(MAX_SENT_ACKS - 100 < len(kept) <= MAX_SENT_ACKS)
        flight = path_of(twins.short).congestion.bytes_in_flight
        self.assertEqual(flight, sum(packet.sent_bytes for packet in space.sent_packets.values() if packet.in_flight))

    def test_acknowledgements_that_are_never_acknowledged_are_bounded(self) -> None:
        self.check(self.acknowledge_often(lambda twins, now: twins.fast.seal(now), MAX_SENT_ACKS + 200))

    def test_on_the_general_way_as_well(self) -> None:
        self.check(self.acknowledge_often(lambda twins, now: twins.short.datagrams_to_send(now), MAX_SENT_ACKS + 200))


class UnderstandingTests(SynchronousTestCase):
    """What the short way does not know is left alone: nothing of the packet is done, and the general way gets it whole."""

    def packet(self, twins: Twins, frames: bytes) -> bytes:
        private = vars(twins.client)
        pair = private["_cryptos"][Epoch.ONE_RTT]
        number = private["_packet_number"]
        private["_packet_number"] += 1
        header = bytes((0x41 | pair.key_phase << 2,)) + private["_peer_cid"].cid + (number & 0xFFFF).to_bytes(2, "big")
        return bytes(pair.encrypt_packet(header, frames.ljust(4, b"\0"), number))

    def test_frames_that_are_cut_off_or_unknown(self) -> None:
        datagram = b"\x31\x05hello"
        for frames in (
            datagram + b"\x31\x20short", datagram + b"\x31", datagram + b"\x31\x40", datagram + b"\x02\x01",
            datagram + b"\x1c\0\0\0",
            datagram + b"\x02" + varint(3) + varint(0) + varint(0) + varint(9), datagram + b"\x06\0\x01x", datagram + b"\x40\x31",
        ):
            twins = Twins()
            before = state(twins.short, twins.now)
            payloads, rest = twins.fast.receive([self.packet(twins, frames)], HOME, twins.now)
            self.assertEqual((payloads, len(rest)), ([], 1), frames)
            self.assertEqual(state(twins.short, twins.now), before, frames)

    def test_a_packet_that_holds_nothing_is_left(self) -> None:
        twins = Twins()
        private = vars(twins.client)
        pair, number = private["_cryptos"][Epoch.ONE_RTT], twins.client._packet_number  # noqa: SLF001 - a client that is wrong
        header = bytes((0x43 | pair.key_phase << 2,)) + private["_peer_cid"].cid + number.to_bytes(4, "big")
        packet = bytes(pair.encrypt_packet(header, b"", number))
        self.assertEqual(twins.fast.receive([packet], HOME, twins.now), ([], [packet]))

    def test_acknowledgements_of_what_was_never_sent_or_of_very_many_pieces_are_left(self) -> None:
        twins = Twins()
        sent = twins.short.one_rtt.packet_number
        pieces = varint(200) + varint(0) + varint(MAX_ACK_RANGES) + varint(0) + varint(0) * 2 * MAX_ACK_RANGES
        for frames, is_left in (
            (varint(sent - 1) + varint(0) * 3, False), (varint(sent) + varint(0) * 3, True), (pieces, True),
        ):
            twins = Twins()
            if frames is pieces:
                twins.short.one_rtt.packet_number = 1000
            _, rest = twins.fast.receive([self.packet(twins, b"\x02" + frames)], HOME, twins.now)
            self.assertEqual(bool(rest), is_left, frames)

    def test_padding_ends_where_the_zeros_end(self) -> None:
        for data, position, end in ((b"", 0, 0), (b"\0\0\1", 0, 2), (b"\0\0\1\0", 2, 2), (b"\1\0\0", 1, 3)):
            self.assertEqual(padding_end(data, position), end)

    def test_known_frames_in_any_mixture(self) -> None:
        twins = Twins()
        frames = b"\0\0\x01\x31\x01a\0\x31\x40\x01b\x01\x31\0\x30rest"
        payloads, rest = twins.fast.receive([self.packet(twins, frames)], HOME, twins.now)
        self.assertEqual((payloads, rest), ([b"a", b"b", b"", b"rest"], []))

    def test_a_packet_for_another_id_or_too_short_is_left(self) -> None:
        twins = Twins()
        packet = self.packet(twins, b"\x30" + bytes(100))
        other = packet[:1] + bytes(CONNECTION_ID_SIZE) + packet[1 + CONNECTION_ID_SIZE :]
        for strange in (other, packet[:20]):
            self.assertEqual(twins.fast.receive([strange, packet], HOME, twins.now), ([], [strange, packet]))

    def test_a_packet_that_does_not_open_is_dropped_and_the_next_is_not(self) -> None:
        twins = Twins()
        broken = bytearray(self.packet(twins, b"\x30first"))
        broken[-1] ^= 1
        payloads, rest = twins.fast.receive([bytes(broken), self.packet(twins, b"\x30second")], HOME, twins.now)
        self.assertEqual((payloads, rest), ([b"second"], []))
