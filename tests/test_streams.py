"""Forwarded streams and oversize datagrams, between raw QUIC clients (PROTOCOL §6)."""

from __future__ import annotations

import hashlib
import random
from typing import Any

from aioquic.quic import events
from twisted.trial.unittest import SynchronousTestCase

from tests.harness import OPEN_TIER, RELAY_ID, World
from tests.raw_quic import DEVICE, PEER, ScriptedClient, varint
from zrc_relay.core.codes import DropCause
from zrc_relay.core.counters import StreamReset
from zrc_relay.core.relay import Policy
from zrc_relay.core.tiers import Tier
from zrc_relay.quic.settings import EndpointSettings
from zrc_relay.quic.streams import RECORDS_AT_ONCE, RECORDS_PER_SECOND

WINDOW = 256 * 1024
UNKNOWN_TYPE, NO_COUNTERPART, COUNTERPART_LOST = 0x7A726300, 0x7A726301, 0x7A726302


class StreamClient(ScriptedClient):
    """A raw client that remembers what happens to streams, and can stop reading.

    While ``stalled`` it gives no flow control credit: its windows are those of the handshake.
    """

    def __init__(self, world: World, **changes: Any) -> None:
        self.resets: dict[int, int] = {}
        self.stops: dict[int, int] = {}
        self.stalled = False
        self.answered: set[int] = set()
        super().__init__(world, **({"max_stream_data": WINDOW, "max_data": 64 * WINDOW} | changes))
        quic: Any = self.quic
        for name in ("_write_stream_limits", "_write_connection_limits"):
            setattr(quic, name, self._unless_stalled(getattr(quic, name)))

    def _unless_stalled(self, write: Any) -> Any:
        def maybe(**arguments: Any) -> None:
            if not self.stalled:
                write(**arguments)

        return maybe

    def allow_streams(self, bidirectional: int, unidirectional: int) -> None:
        """Before the handshake: how many streams the relay may open."""
        private = vars(self.quic)
        for name, count in (("_local_max_streams_bidi", bidirectional), ("_local_max_streams_uni", unidirectional)):
            private[name].value = private[name].sent = count

    def open(self, data: bytes = b"", *, unidirectional: bool = False, end: bool = False, kind: int | None = 0) -> int:
        """Open a stream of type ``kind`` (None: write none) with some data; returns its id."""
        stream_id = self.quic.get_next_available_stream_id(is_unidirectional=unidirectional)
        if not unidirectional and stream_id == 0:
            stream_id = 4
        self.write(stream_id, (b"" if kind is None else varint(kind)) + data, end=end)
        return stream_id

    def write(self, stream_id: int, data: bytes, *, end: bool = False) -> None:
        self.quic.send_stream_data(stream_id, data, end_stream=end)
        self.flush()

    def reset(self, stream_id: int, code: int) -> None:
        self.quic.reset_stream(stream_id, code)
        self.flush()

    def stop(self, stream_id: int, code: int) -> None:
        self.quic.stop_stream(stream_id, code)
        self.flush()

    def opened(self) -> list[int]:
        """The streams that the relay opened for forwarding, in order."""
        return sorted(stream_id for stream_id in self.streams if stream_id & 1 and stream_id != 3)

    def _take_events(self) -> None:
        next_event = self.quic.next_event

        def watched() -> events.QuicEvent | None:
            event = next_event()
            if isinstance(event, events.StreamReset):
                self.resets[event.stream_id] = event.error_code
            elif isinstance(event, events.StopSendingReceived):
                self.stops[event.stream_id] = event.error_code
            return event

        quic: Any = self.quic
        quic.next_event = watched
        try:
            super()._take_events()
        finally:
            quic.next_event = next_event


class Scene(World):
    """Two raw clients with an allocation."""

    def __init__(self, *, tier: Tier = OPEN_TIER, **settings: Any) -> None:
        policy = Policy(relay_id=RELAY_ID, instance_id=bytes(8), default_tier=tier, proving_roles=frozenset())
        super().__init__(policy=policy, settings=EndpointSettings(**settings))

    def ends(self, *, streams: tuple[int, int] = (128, 128), **changes: Any) -> tuple[StreamClient, StreamClient]:
        token = self.token(**changes).encode()
        made = []
        for role in (DEVICE, PEER):
            client = StreamClient(self, start=False)
            client.allow_streams(*streams)
            client.connect()
            self.run(0.1)
            client.allocate(token, role=role)
            made.append(client)
        self.run(0.1)
        return made[0], made[1]

    def held(self) -> int:
        """Stream bytes that the relay holds for both ends."""
        total = 0
        for connection in self.endpoint.all_connections():
            for stream in vars(connection.quic)["_streams"].values():
                total += len(vars(stream.sender)["_buffer"])
            for pipe in vars(connection.streams)["_inbound"].values():
                total += len(pipe.pending)
        return total


def some_bytes(size: int, seed: int = 1) -> bytes:
    """Bytes that are the same in each run."""
    return random.Random(seed).randbytes(size)  # noqa: S311 - test data


class MirrorTests(SynchronousTestCase):
    """R3.8: streams of both kinds and directions, with everything that can happen to them."""

    def test_a_unidirectional_stream_arrives_whole_type_included(self) -> None:
        scene = Scene()
        device, peer = scene.ends()
        data = some_bytes(300_000)
        device.open(data, unidirectional=True, end=True)
        scene.run(2)
        self.assertEqual(peer.opened(), [7])
        self.assertEqual(bytes(peer.streams[7]), b"\0" + data)
        self.assertIn(7, peer.finished)

    def test_a_bidirectional_stream_carries_both_ways_from_either_side(self) -> None:
        scene = Scene()
        for opener, other in (scene.ends(), scene.ends(allocation_id=b"b" * 16)[::-1]):
            question, answer = some_bytes(50_000, 2), some_bytes(70_000, 3)
            stream_id = opener.open(question, end=True)
            scene.run(1)
            (mirror,) = other.opened()
            self.assertEqual(bytes(other.streams[mirror]), b"\0" + question)
            self.assertIn(mirror, other.finished)
            other.write(mirror, answer, end=True)
            scene.run(1)
            self.assertEqual(bytes(opener.streams[stream_id]), answer)
            self.assertIn(stream_id, opener.finished)

    def test_a_reset_is_mirrored_with_its_code(self) -> None:
        scene = Scene()
        device, peer = scene.ends()
        stream_id = device.open(b"begin")
        scene.run(0.2)
        device.reset(stream_id, 77)
        scene.run(0.2)
        self.assertEqual(peer.resets, {1: 77})
        peer.reset(1, 78)
        scene.run(0.2)
        self.assertEqual(device.resets, {stream_id: 78})

    def test_stop_sending_is_answered_with_its_code_and_passed_on(self) -> None:
        scene = Scene()
        device, peer = scene.ends()
        stream_id = device.open(b"begin")
        scene.run(0.2)
        peer.stop(1, 55)
        scene.run(0.2)
        self.assertEqual(peer.resets, {1: 55})
        self.assertEqual(device.stops, {stream_id: 55})
        peer.write(1, b"the other direction goes on", end=True)
        scene.run(0.2)
        self.assertEqual(bytes(device.streams[stream_id]), b"the other direction goes on")

    def test_what_is_sent_after_a_stop_is_thrown_away(self) -> None:
        scene = Scene()
        device, peer = scene.ends()
        stream_id = device.open(b"begin")
        scene.run(0.2)
        scene.network.filter = lambda data, source, to: None if to == device.sockaddr else data
        peer.stop(1, 55)
        for _ in range(20):
            device.write(stream_id, some_bytes(10_000))  # does not hear of the stop
            scene.run(0.05)
        scene.network.filter = lambda data, source, to: data
        scene.run(2)
        self.assertEqual(bytes(peer.streams[1]), b"\0begin")
        self.assertEqual(scene.held(), 0)

    def test_without_a_counterpart_a_stream_is_refused(self) -> None:
        scene = Scene()
        device = StreamClient(scene)
        scene.run(0.1)
        device.allocate(scene.token().encode(), role=DEVICE)
        scene.run(0.1)
        two_way, one_way = device.open(b"x"), device.open(b"y", unidirectional=True)
        scene.run(0.2)
        self.assertEqual(device.resets, {two_way: NO_COUNTERPART})
        self.assertEqual(device.stops, {two_way: NO_COUNTERPART, one_way: NO_COUNTERPART})
        self.assertEqual(scene.relay.counters.streams_reset[StreamReset.NO_COUNTERPART], 2)

    def test_other_types_are_refused_without_a_word_to_the_other_side(self) -> None:
        scene = Scene()
        device, peer = scene.ends()
        first = device.open(b"x", kind=2)
        second = device.open(b"x", kind=1)  # oversize datagrams are unidirectional
        third = device.open(b"x", kind=0x4000, unidirectional=True)
        scene.run(0.2)
        self.assertEqual(device.resets, {first: UNKNOWN_TYPE, second: UNKNOWN_TYPE})
        self.assertEqual(set(device.stops), {first, second, third})
        self.assertEqual(peer.opened(), [])

    def test_the_type_may_come_byte_by_byte_and_in_a_longer_encoding(self) -> None:
        scene = Scene()
        device, peer = scene.ends()
        stream_id = device.open(b"\x80", kind=None)
        for byte in (b"\0", b"\0", b"\0", b"data"):
            scene.run(0.05)
            device.write(stream_id, byte)
        scene.run(0.2)
        self.assertEqual(bytes(peer.streams[1]), b"\x80\0\0\0data")

    def test_when_one_end_goes_its_streams_are_reset_at_the_other(self) -> None:
        scene = Scene()
        device, peer = scene.ends()
        mine = device.open(b"mine")
        scene.run(0.2)
        theirs = peer.open(b"theirs")
        one_way = device.open(b"one way", unidirectional=True)
        scene.run(0.2)
        peer.quic.close(error_code=0)
        peer.flush()
        scene.run(0.5)
        self.assertEqual(device.resets, {mine: COUNTERPART_LOST, 1: COUNTERPART_LOST})
        self.assertEqual(device.stops, {mine: COUNTERPART_LOST, 1: COUNTERPART_LOST, one_way: COUNTERPART_LOST})
        self.assertIsNone(device.closed)
        del theirs

    def test_both_ends_may_go_after_a_stream_was_sent_whole_that_was_never_acknowledged(self) -> None:
        scene = Scene(max_pending_streams=4)
        device, peer = scene.ends(streams=(1, 1))
        scene.network.filter = lambda data, source, to: None if peer.sockaddr in (source, to) else data
        device.open(b"mirrored", end=True)
        device.open(b"waits for the limit", end=True)
        waiting = device.open(b"waits, and is reset")
        device.reset(waiting, 7)
        scene.run(0.2)
        device.quic.close(error_code=0)
        device.flush()
        scene.run(5)
        self.assertEqual(scene.endpoint.connections, 1)
        scene.run(90)
        self.assertEqual((scene.endpoint.connections, scene.relay.counters.session_errors), (0, 0))

    def test_many_streams_at_once_keep_their_bytes_apart(self) -> None:
        scene = Scene()
        device, peer = scene.ends()
        sent = [some_bytes(20_000, seed) for seed in range(20)]
        for data in sent:
            device.open(data, end=True)
        scene.run(3)
        self.assertEqual([bytes(peer.streams[mirror])[1:] for mirror in peer.opened()], sent)

    def test_loss_changes_nothing(self) -> None:
        scene = Scene()
        device, peer = scene.ends()
        rng = random.Random(5)  # noqa: S311 - the same losses each time
        scene.network.filter = lambda data, source, to: None if rng.random() < 0.1 else data
        data = some_bytes(400_000)
        stream_id = device.open(data, end=True)
        scene.run(20)
        self.assertEqual(bytes(peer.streams[1]), b"\0" + data)
        del stream_id


class LimitTests(SynchronousTestCase):
    """R3.8, R6.9: back-pressure, stream limits and credit."""

    def test_a_stalled_reader_costs_one_window_and_stops_its_sender(self) -> None:
        scene = Scene()
        device, peer = scene.ends()
        peer.stalled = True
        data = some_bytes(3_000_000)
        stream_id = device.open(data, end=True)
        scene.run(5)
        self.assertLessEqual(len(peer.streams[1]), WINDOW)
        self.assertLessEqual(scene.held(), WINDOW)
        unsent = len(vars(vars(device.quic)["_streams"][stream_id].sender)["_buffer"])
        self.assertGreater(unsent, len(data) - 3 * WINDOW)
        peer.stalled = False
        peer.quic.send_ping(1)
        peer.flush()
        scene.run(20)
        self.assertEqual(hashlib.sha256(peer.streams[1]).digest(), hashlib.sha256(b"\0" + data).digest())
        self.assertEqual(scene.held(), 0)

    def test_control_is_answered_while_every_stream_is_stalled(self) -> None:
        scene = Scene(max_streams=8)
        device, peer = scene.ends()
        for client in (device, peer):
            client.stalled = True
        for client in (device, peer):
            for _ in range(7):
                client.open(some_bytes(2 * WINDOW))
        scene.run(5)
        device.send_control(b"\x05\0")  # LIST_RELAYS
        peer.send_control(b"\x05\0")
        scene.run(0.1)
        self.assertEqual(len(device.values(0x17)), 1)
        self.assertEqual(len(peer.values(0x17)), 1)

    def test_streams_beyond_the_counterparts_limit_wait_and_then_go(self) -> None:
        scene = Scene()
        device, peer = scene.ends(streams=(2, 3))
        for number in range(5):
            device.open(b"%d" % number, end=True)
        scene.run(0.3)
        self.assertEqual(len(peer.opened()), 2)
        self.assertIsNone(peer.closed)
        for _ in range(6):
            scene.run(0.3)
            for mirror in peer.opened():
                if mirror not in peer.answered:
                    peer.answered.add(mirror)
                    peer.write(mirror, b"", end=True)
        self.assertEqual(sorted(bytes(peer.streams[mirror]) for mirror in peer.opened()), [b"\0%d" % n for n in range(5)])

    def test_beyond_the_bound_on_waiting_they_are_reset(self) -> None:
        scene = Scene(max_pending_streams=3)
        device, peer = scene.ends(streams=(0, 3))
        ids = [device.open(b"x") for _ in range(6)]
        scene.run(0.3)
        self.assertEqual(device.resets, dict.fromkeys(ids[3:], NO_COUNTERPART))
        self.assertEqual(scene.relay.counters.streams_reset[StreamReset.PENDING_LIMIT], 3)
        self.assertEqual(peer.opened(), [])

    def test_a_stream_reset_while_it_waits_is_never_opened(self) -> None:
        scene = Scene()
        device, peer = scene.ends(streams=(0, 3))
        stream_id = device.open(b"x")
        scene.run(0.2)
        device.reset(stream_id, 9)
        scene.run(0.2)
        self.assertEqual(device.resets, {stream_id: 9})
        peer.allow_streams(5, 5)
        scene.run(0.2)
        self.assertEqual(peer.opened(), [])
        self.assertIsNone(peer.closed)

    def test_rapid_open_and_reset_is_bounded_and_does_not_harm_the_counterpart(self) -> None:
        scene = Scene(max_streams=8, max_pending_streams=4)
        device, peer = scene.ends(streams=(2, 3))
        for round_ in range(60):
            stream_id = device.open(b"x" * 100, unidirectional=round_ % 2 == 0)
            scene.run(0.01)
            device.reset(stream_id, round_)
            scene.run(0.01)
        scene.run(1)
        self.assertIsNone(peer.closed)
        self.assertIsNone(device.closed)
        for connection in scene.endpoint.all_connections():
            self.assertLess(len(vars(connection.quic)["_streams"]), 24)
            self.assertLessEqual(len(vars(connection.streams)["_mirrors"]), 16)

    def test_the_client_gets_stream_credit_back_only_when_the_mirror_is_done(self) -> None:
        scene = Scene(max_streams=4)
        device, peer = scene.ends(streams=(128, 3))
        peer.stalled = True
        for _ in range(8):
            device.open(b"x" * 1000, unidirectional=True, end=True)
        scene.run(2)
        limit = vars(device.quic)["_remote_max_streams_uni"]
        self.assertLess(limit, 12)
        for _ in range(4):
            scene.run(0.5)
        self.assertLessEqual(len(peer.opened()), 2)  # three uni streams of which HELLO was one

    def test_a_sender_that_is_done_gets_its_credit_back(self) -> None:
        scene = Scene(max_streams=4)
        device, peer = scene.ends()
        for number in range(40):
            device.open(b"%d" % number, unidirectional=True, end=True)
        scene.run(5)
        self.assertEqual([bytes(peer.streams[mirror]) for mirror in peer.opened()], [b"\0%d" % n for n in range(40)])

    def test_caps_delay_streams_and_lose_nothing(self) -> None:
        scene = Scene(tier=Tier("", 100_000, None, None))
        device, peer = scene.ends()
        data = some_bytes(500_000)
        begin = scene.now()
        device.open(data, end=True)
        while 1 not in peer.finished and scene.now() < begin + 30:
            scene.run(0.1)
        self.assertEqual(bytes(peer.streams[1]), b"\0" + data)
        self.assertGreaterEqual(scene.now() - begin, (500_001 - 65_535) / 100_000)
        self.assertLess(scene.now() - begin, 8)
        self.assertEqual(sum(scene.relay.counters.dropped_packets.values()), 0)

    def test_a_quota_is_used_to_the_byte_and_then_the_allocation_ends(self) -> None:
        scene = Scene()
        device, peer = scene.ends(quota_bytes=100_000)
        device.open(some_bytes(150_000))
        scene.run(1)
        self.assertEqual((device.close_code, peer.close_code), (0x31, 0x31))
        self.assertLessEqual(len(peer.streams[1]), 100_000)
        tombstone = scene.relay.table.tombstone((scene.token().device_id, scene.token().allocation_id), scene.wall())
        assert tombstone is not None  # noqa: S101 - for the type checker
        self.assertEqual(tombstone.bytes_transferred, 100_000)


class OversizeTests(SynchronousTestCase):
    """R3.4, PROTOCOL §6: payloads that do not fit a DATAGRAM."""

    def test_a_record_that_fits_leaves_as_a_datagram(self) -> None:
        scene = Scene()
        device, peer = scene.ends()
        payloads = [b"", b"a", some_bytes(1000)]
        device.open(b"".join(varint(len(p)) + p for p in payloads), kind=1, unidirectional=True)
        scene.run(0.3)
        self.assertEqual(peer.datagrams, payloads)
        self.assertEqual(peer.opened(), [])

    def test_a_record_that_does_not_fit_leaves_on_the_relays_own_stream(self) -> None:
        scene = Scene()
        device, peer = scene.ends()
        payloads = [some_bytes(size, size) for size in (2000, 30_000, 65_535)]
        stream_id = device.open(kind=1, unidirectional=True)
        for payload in payloads:
            device.write(stream_id, varint(len(payload)) + payload)
            scene.run(0.3)
        scene.run(1)
        self.assertEqual(bytes(peer.streams[7]), b"\1" + b"".join(varint(len(p)) + p for p in payloads))
        self.assertNotIn(7, peer.finished)

    def test_a_datagram_too_big_for_the_way_out_becomes_a_record(self) -> None:
        scene = Scene()
        token = scene.token().encode()
        device, peer = StreamClient(scene), StreamClient(scene, max_datagram_frame_size=500)
        scene.run(0.1)
        device.allocate(token, role=DEVICE)
        peer.allocate(token, role=PEER)
        scene.run(0.1)
        device.send_datagram(b"x" * 1000)
        device.send_datagram(b"small")
        scene.run(0.3)
        self.assertEqual(peer.datagrams, [b"small"])
        self.assertEqual(bytes(peer.streams[7]), b"\1" + varint(1000) + b"x" * 1000)

    def test_records_count_and_are_capped_like_datagrams(self) -> None:
        scene = Scene(tier=Tier("", 1000, None, None))
        device, peer = scene.ends()
        record = varint(30_000) + bytes(30_000)
        device.open(record * 4, kind=1, unidirectional=True)
        scene.run(1)
        (allocation,) = scene.relay.table
        self.assertEqual(allocation.bytes_transferred, 60_000)
        self.assertEqual(scene.relay.counters.dropped_packets[DropCause.BANDWIDTH], 2)
        self.assertEqual(len(peer.streams[7]), 1 + 2 * len(record))

    def test_a_record_longer_than_a_datagram_can_be_is_a_protocol_error(self) -> None:
        scene = Scene()
        device, peer = scene.ends()
        device.open(varint(65_536), kind=1, unidirectional=True)
        scene.run(0.5)
        self.assertEqual(device.close_code, 0x01)
        self.assertIsNone(peer.closed)

    def test_a_flood_of_tiny_records_is_slowed_down_by_flow_control_and_not_lost(self) -> None:
        scene = Scene()
        device, peer = scene.ends()
        count = 1_500_000
        stream_id = device.open(bytes(count), kind=1, unidirectional=True)
        scene.run(1)
        self.assertLessEqual(len(peer.datagrams), RECORDS_PER_SECOND + 2 * RECORDS_AT_ONCE)
        self.assertGreater(len(peer.datagrams), RECORDS_PER_SECOND * 0.8)
        unsent = len(vars(vars(device.quic)["_streams"][stream_id].sender)["_buffer"])
        self.assertGreater(unsent, count - 3 * WINDOW)

    def test_a_reader_that_stalls_costs_what_the_queue_may_hold(self) -> None:
        scene = Scene(egress_queue_bytes=200_000)
        device, peer = scene.ends()
        peer.stalled = True
        stream_id = device.open(kind=1, unidirectional=True)
        for _ in range(60):
            device.write(stream_id, varint(60_000) + bytes(60_000))
            scene.run(0.1)
        self.assertLessEqual(scene.held(), 200_000)
        self.assertGreater(scene.relay.counters.dropped_packets[DropCause.EGRESS_QUEUE], 10)
