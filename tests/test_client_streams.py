"""Streams of the client library: Twisted's transports, producers and consumers over a relay (PROTOCOL §6; R3.8)."""

from __future__ import annotations

import hashlib
import random
from io import BytesIO
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.internet.interfaces import IConsumer, IHalfCloseableProtocol, IPushProducer, ITransport
from twisted.internet.protocol import Protocol
from twisted.internet.task import Cooperator
from twisted.protocols.basic import FileSender, LineOnlyReceiver
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.client import FileBodyProducer
from zope.interface import implementer  # type: ignore[import-untyped]
from zope.interface.verify import verifyObject  # type: ignore[import-untyped]

from tests.harness import TestClient, World
from zrc_relay.client import ConnectionLost, RelayStream, StreamCode, StreamReset, StreamStopped, TooManyStreams
from zrc_relay.client.stream_halves import HIGH_WATER, LOW_WATER
from zrc_relay.client.stream_table import MAX_WAITING
from zrc_relay.client.trust import MAX_STREAMS, STREAM_WINDOW
from zrc_relay.core.codes import Role, StreamError


class Gatherer(Protocol):
    """Keeps what arrives, and how it ended."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.pieces: list[int] = []
        self.reason: BaseException | None = None
        self.ends = 0

    def dataReceived(self, data: bytes) -> None:
        self.data += data
        self.pieces.append(len(data))

    def connectionLost(self, reason: Failure = Failure(ConnectionDone())) -> None:  # noqa: B008 - as Twisted has it
        self.reason = reason.value
        self.ends += 1


@implementer(IHalfCloseableProtocol)
class HalfGatherer(Gatherer):
    """One that can be half closed, and remembers it."""

    def __init__(self) -> None:
        super().__init__()
        self.read_ends = 0
        self.write_ends = 0

    def readConnectionLost(self) -> None:  # noqa: N802 - Twisted's name
        self.read_ends += 1

    def writeConnectionLost(self) -> None:  # noqa: N802 - Twisted's name
        self.write_ends += 1


class Pusher:
    """A push producer that writes a piece whenever it is pumped and may."""

    def __init__(self, stream: RelayStream) -> None:
        self.stream = stream
        self.calls: list[str] = []
        self.paused = False
        self.written = 0

    def pump(self, piece: bytes) -> bool:
        if not self.paused:
            self.stream.write(piece)
            self.written += len(piece)
        return not self.paused

    def pauseProducing(self) -> None:  # noqa: N802 - Twisted's name
        self.paused = True
        self.calls.append("pause")

    def resumeProducing(self) -> None:  # noqa: N802 - Twisted's name
        self.paused = False
        self.calls.append("resume")

    def stopProducing(self) -> None:  # noqa: N802 - Twisted's name
        self.calls.append("stop")


class Scene(World):
    """A device and a peer that takes every stream, with a ``Gatherer`` attached unless ``attach`` is None."""

    def __init__(self, attach: type[Gatherer] | None = Gatherer, **changes: Any) -> None:
        super().__init__(**changes)
        self.accepted: list[RelayStream] = []
        self.attach = attach
        self.device, self.peer = self.pair()
        self.peer.on_stream = self.accept

    def accept(self, stream: RelayStream) -> None:
        self.accepted.append(stream)
        if self.attach is not None:
            stream.attach(self.attach())

    def open(self, protocol: Gatherer | None = None, *, unidirectional: bool = False) -> tuple[RelayStream, RelayStream]:
        """A stream of the device, and its other end at the peer."""
        count = len(self.accepted)
        stream = self.device.open_stream(unidirectional=unidirectional)
        if protocol is not None:
            stream.attach(protocol)
        self.run(0.05)
        if len(self.accepted) != count + 1:
            msg = f"{len(self.accepted) - count} streams have arrived"
            raise AssertionError(msg)
        return stream, self.accepted[-1]


def leftovers(client: TestClient) -> dict[str, int]:
    """Everything that the streams of a client still hold on to."""
    streams = vars(vars(client)["_streams"])
    waiting = sum(map(len, streams["_waiting"].values()))
    held = {name: len(streams[name]) for name in ("_streams", "_heads", "_records", "_done_with")} | {"_waiting": waiting}
    return {name: count for name, count in held.items() if count}


class TransportTests(SynchronousTestCase):
    """R3.8, issue "client library": a stream is a transport like any other of Twisted's."""

    def test_it_provides_what_twisted_asks_of_transports_consumers_and_producers(self) -> None:
        near, far = Scene().open()
        for stream in (near, far):
            for interface in (ITransport, IConsumer, IPushProducer):
                self.assertTrue(verifyObject(interface, stream))

    def test_bytes_arrive_both_ways_without_the_type(self) -> None:
        scene = Scene()
        answer = Gatherer()
        near, far = scene.open(answer)
        near.write(b"question")
        far.write(b"answer")
        near.writeSequence([b", ", b"and", b" more"])
        scene.run(0.1)
        self.assertEqual(far.protocol.data, b"question, and more")
        self.assertEqual(answer.data, b"answer")

    def test_the_other_end_hears_of_a_stream_before_anything_is_written(self) -> None:
        _, far = Scene().open()
        self.assertFalse(far.is_opener)
        self.assertTrue(far.is_writable)

    def test_both_ends_may_open(self) -> None:
        scene = Scene()
        taken: list[RelayStream] = []
        scene.device.on_stream = taken.append
        stream = scene.peer.open_stream()
        stream.write(b"from the peer")
        scene.run(0.1)
        there = Gatherer()
        taken[0].attach(there)
        scene.run(0.1)
        self.assertEqual(there.data, b"from the peer")

    def test_when_both_have_said_fin_both_hear_connection_done_once(self) -> None:
        scene = Scene(HalfGatherer)
        answer = HalfGatherer()
        near, far = scene.open(answer)
        near.write(b"all I have")
        near.loseWriteConnection()
        near.write(b"too late")
        scene.run(0.1)
        self.assertEqual((far.protocol.data, far.protocol.read_ends, far.protocol.reason), (b"all I have", 1, None))
        far.write(b"all I have to answer")
        scene.run(0.1)
        self.assertEqual((answer.data, answer.read_ends), (b"all I have to answer", 0))
        far.loseWriteConnection()
        scene.run(0.2)
        for stream in (near, far):
            self.assertIsInstance(stream.protocol.reason, ConnectionDone)
            self.assertEqual(stream.protocol.ends, 1)
            self.assertEqual(stream.protocol.read_ends, 1)
        self.assertEqual([leftovers(scene.device), leftovers(scene.peer)], [{}, {}])

    def test_a_protocol_that_cannot_be_half_closed_ends_when_what_it_wrote_has_left(self) -> None:
        class Echo(Gatherer):
            def dataReceived(self, data: bytes) -> None:
                super().dataReceived(data)
                transport: Any = self.transport
                transport.write(data)

        scene = Scene(Echo)
        answer = Gatherer()
        near, far = scene.open(answer)
        text = scene.random(300_000)
        near.write(text)
        near.loseWriteConnection()
        scene.run(1)
        self.assertEqual(answer.data, text)
        self.assertIsInstance(answer.reason, ConnectionDone)
        self.assertIsInstance(far.protocol.reason, ConnectionDone)

    def test_a_stream_of_one_direction_carries_bytes_in_that_direction_only(self) -> None:
        scene = Scene()
        near, far = scene.open(unidirectional=True)
        self.assertTrue(near.is_writable and not far.is_writable)
        with self.assertRaises(RuntimeError):
            far.write(b"the wrong way")
        near.write(b"this way")
        near.loseConnection()
        closed = near.when_closed()
        scene.run(0.2)
        self.assertEqual(far.protocol.data, b"this way")
        self.assertIsInstance(far.protocol.reason, ConnectionDone)
        self.assertIsNone(self.successResultOf(closed))
        self.assertEqual([leftovers(scene.device), leftovers(scene.peer)], [{}, {}])

    def test_lose_connection_delivers_what_was_written_and_stops_the_other_end_in_peace(self) -> None:
        scene = Scene()
        mine = Gatherer()
        near, far = scene.open(mine)
        text = scene.random(200_000)
        near.write(text)
        near.loseConnection()
        self.assertTrue(near.disconnecting)
        far.write(b"nobody reads this any more")
        scene.run(0.5)
        self.assertEqual(far.protocol.data, text)
        self.assertEqual(mine.data, b"")
        for protocol in (mine, far.protocol):
            self.assertIsInstance(protocol.reason, ConnectionDone)
        self.assertEqual([leftovers(scene.device), leftovers(scene.peer)], [{}, {}])

    def test_the_ends_have_addresses(self) -> None:
        scene = Scene()
        near, far = scene.open()
        self.assertEqual(near.getHost().role, Role.DEVICE)
        self.assertEqual(near.getPeer(), far.getHost())
        self.assertEqual(far.getPeer(), near.getHost())
        self.assertEqual(near.getHost().allocation_id, scene.device.allocation_id)

    def test_protocols_of_twisted_run_over_it(self) -> None:
        class Lines(LineOnlyReceiver):
            def lineReceived(self, line: bytes) -> None:
                transport: Any = self.transport
                transport.write(line.upper() + b"\r\n")

        scene = Scene(None)
        answer = Gatherer()
        near, far = scene.open(answer)
        far.attach(Lines())
        near.write(b"one\r\ntw")
        scene.run(0.1)
        near.write(b"o\r\n")
        scene.run(0.1)
        self.assertEqual(answer.data, b"ONE\r\nTWO\r\n")

    def test_what_arrives_before_a_protocol_is_attached_waits_for_it(self) -> None:
        scene = Scene(None)
        near, far = scene.open()
        near.write(b"early")
        near.loseWriteConnection()
        scene.run(0.1)
        late = Gatherer()
        far.attach(late)
        self.assertEqual(late.data, b"", "not from within attach")
        scene.run(0.1)
        self.assertEqual(late.data, b"early")
        self.assertIsInstance(late.reason, ConnectionDone)
        with self.assertRaises(RuntimeError):
            far.attach(Gatherer())

    def test_a_stream_that_is_over_tells_a_protocol_that_comes_too_late(self) -> None:
        scene = Scene()
        near, far = scene.open()
        far.abortConnection()
        scene.run(0.2)
        late = Gatherer()
        near.attach(late)
        self.assertIsInstance(late.reason, StreamReset)

    def test_a_megabyte_each_way_is_the_same_at_the_other_end_on_a_network_that_loses(self) -> None:
        scene = Scene()
        answer = Gatherer()
        near, far = scene.open(answer)
        rng = random.Random(7)  # noqa: S311 - the same losses each time
        scene.network.filter = lambda data, _source, _to: None if rng.random() < 0.02 else data
        there, back = scene.random(1_000_000), scene.random(1_000_000)
        near.write(there)
        far.write(back)
        scene.run(60)
        self.assertEqual(hashlib.sha256(far.protocol.data).digest(), hashlib.sha256(there).digest())
        self.assertEqual(hashlib.sha256(answer.data).digest(), hashlib.sha256(back).digest())


class FailureTests(SynchronousTestCase):
    """PROTOCOL §6: resets, stops and the relay's own codes arrive as typed errors."""

    def test_abort_is_a_reset_at_the_other_end(self) -> None:
        scene = Scene()
        mine = Gatherer()
        near, far = scene.open(mine)
        near.abortConnection()
        scene.run(0.2)
        self.assertIsInstance(mine.reason, ConnectionAborted)
        self.assertIsInstance(far.protocol.reason, StreamReset)
        self.assertEqual(far.protocol.reason.code, StreamCode.ABORTED)
        self.assertEqual([leftovers(scene.device), leftovers(scene.peer)], [{}, {}])

    def test_an_application_may_reset_with_a_code_of_its_own(self) -> None:
        scene = Scene()
        near, far = scene.open()
        near.reset(4242)
        scene.run(0.2)
        self.assertEqual((type(far.protocol.reason), far.protocol.reason.code), (StreamReset, 4242))
        self.assertIsNone(far.protocol.reason.relay_code)
        self.assertIn("0x1092", str(far.protocol.reason))

    def test_a_stop_with_a_code_ends_the_senders_stream_with_it(self) -> None:
        scene = Scene()
        mine = Gatherer()
        near, far = scene.open(mine)
        far.stop(77)
        closed = near.when_closed()
        scene.run(0.2)
        self.assertEqual((type(mine.reason), getattr(mine.reason, "code", None)), (StreamStopped, 77))
        self.failureResultOf(closed, StreamStopped)

    def test_a_stop_without_one_says_that_no_more_is_wanted_and_the_answer_still_comes(self) -> None:
        scene = Scene(HalfGatherer)
        mine = HalfGatherer()
        near, far = scene.open(mine)
        far.stop()
        scene.run(0.1)
        self.assertEqual((mine.write_ends, near.is_writable, mine.reason), (1, False, None))
        near.write(b"into the void")
        far.write(b"I have read enough")
        far.loseWriteConnection()
        scene.run(0.2)
        self.assertEqual(mine.data, b"I have read enough")
        self.assertIsInstance(mine.reason, ConnectionDone)
        self.assertEqual([leftovers(scene.device), leftovers(scene.peer)], [{}, {}])

    def test_truncated_data_never_looks_whole(self) -> None:
        scene = Scene(HalfGatherer)
        near, far = scene.open()
        near.write(b"half a mess")
        scene.run(0.1)
        near.reset(0)
        scene.run(0.2)
        self.assertEqual(far.protocol.read_ends, 0)
        self.assertIsInstance(far.protocol.reason, StreamReset)

    def test_without_a_counterpart_the_relay_says_so(self) -> None:
        world = World()
        device = world.client(Role.DEVICE)
        world.run(0.3)
        mine = Gatherer()
        device.open_stream().attach(mine)
        world.run(0.2)
        self.assertIsInstance(mine.reason, StreamReset)
        self.assertIs(getattr(mine.reason, "relay_code", None), StreamError.NO_COUNTERPART)
        self.assertIn("not there", str(mine.reason))
        self.assertEqual(leftovers(device), {})

    def test_when_the_other_end_loses_its_connection_the_relay_says_so(self) -> None:
        scene = Scene()
        both, one = Gatherer(), Gatherer()
        scene.open(both)
        scene.open(one, unidirectional=True)
        scene.peer.close()
        scene.run(0.5)
        self.assertIs(getattr(both.reason, "relay_code", None), StreamError.COUNTERPART_LOST)
        self.assertIsInstance(one.reason, StreamStopped)
        self.assertIs(getattr(one.reason, "relay_code", None), StreamError.COUNTERPART_LOST)

    def test_an_end_that_takes_no_streams_refuses_them(self) -> None:
        scene = Scene()
        scene.peer.on_stream = None
        mine = Gatherer()
        scene.device.open_stream().attach(mine)
        one_way = scene.device.open_stream(unidirectional=True)
        closed = one_way.when_closed()
        scene.run(0.3)
        self.assertEqual(getattr(mine.reason, "code", None), StreamCode.REFUSED)
        self.failureResultOf(closed, StreamStopped)
        self.assertEqual([leftovers(scene.device), leftovers(scene.peer)], [{}, {}])

    def test_a_protocol_that_raises_loses_its_stream_and_nothing_else(self) -> None:
        class Clumsy(Gatherer):
            def dataReceived(self, data: bytes) -> None:
                super().dataReceived(data)
                msg = "a bug of the application"
                raise LookupError(msg)

        scene = Scene(Clumsy)
        mine = Gatherer()
        near, far = scene.open(mine)
        scene.attach = Gatherer
        other, other_end = scene.open()
        near.write(b"x")
        other.write(b"y")
        scene.run(0.2)
        self.assertIsInstance(far.protocol.reason, LookupError)
        self.assertIsInstance(mine.reason, StreamReset)
        self.assertEqual(other_end.protocol.data, b"y")
        self.assertEqual(len(self.flushLoggedErrors(LookupError)), 1)

    def test_an_on_stream_that_raises_loses_the_stream_and_nothing_else(self) -> None:
        scene = Scene()

        def clumsy(stream: RelayStream) -> None:
            del stream
            msg = "a bug of the application"
            raise LookupError(msg)

        scene.peer.on_stream = clumsy
        mine = Gatherer()
        scene.device.open_stream().attach(mine)
        scene.run(0.2)
        self.assertEqual(getattr(mine.reason, "code", None), StreamCode.ABORTED)
        self.assertEqual(len(self.flushLoggedErrors(LookupError)), 1)
        scene.device.send(b"still there")
        scene.run(0.1)
        self.assertEqual(scene.peer.got, [b"still there"])

    def test_closing_the_connection_ends_its_streams_here_and_there(self) -> None:
        scene = Scene()
        mine = Gatherer()
        scene.open(mine)
        far = scene.accepted[0]
        scene.device.close()
        self.assertIsInstance(mine.reason, ConnectionLost)
        scene.run(0.3)
        self.assertIs(getattr(far.protocol.reason, "relay_code", None), StreamError.COUNTERPART_LOST)
        with self.assertRaises(ConnectionLost):
            scene.device.open_stream()

    def test_closing_the_connection_from_within_a_protocol_is_safe(self) -> None:
        class Leaver(Gatherer):
            client: TestClient

            def dataReceived(self, data: bytes) -> None:
                super().dataReceived(data)
                self.client.close()

        scene = Scene(None)
        near, far = scene.open()
        others = [scene.open() for _ in range(3)]
        near.write(b"go")
        scene.run(0.1)
        leaver = Leaver()
        leaver.client = scene.peer
        far.attach(leaver)
        scene.run(0.5)
        self.assertEqual(leaver.data, b"go")
        self.assertIsInstance(leaver.reason, ConnectionLost)
        self.assertTrue(scene.peer.is_closed)
        self.assertTrue(all(stream.is_closed for pair in others for stream in pair))

    def test_before_it_is_allocated_a_connection_opens_no_stream(self) -> None:
        world = World()
        client = world.client(Role.DEVICE)
        with self.assertRaises(ConnectionLost):
            client.open_stream()


class ProducerTests(SynchronousTestCase):
    """Issue "client library": consumer and producer, so that push and pull producers work."""

    def test_a_push_producer_is_paused_above_256_kib_and_resumed_below_64(self) -> None:
        scene = Scene(None)
        near, far = scene.open()
        pusher = Pusher(near)
        near.registerProducer(pusher, streaming=True)
        piece = bytes(16 * 1024)
        for _ in range(400):
            pusher.pump(piece)
            self.assertLessEqual(near.buffered, HIGH_WATER + len(piece))
            scene.run(0.01)
        self.assertEqual(pusher.calls, ["pause"])
        stopped_at = pusher.written
        self.assertLessEqual(stopped_at, 3 * STREAM_WINDOW + HIGH_WATER, "windows of both hops and our own buffer")
        reader = Gatherer()
        far.attach(reader)
        scene.run(2)
        self.assertEqual(pusher.calls, ["pause", "resume"])
        self.assertLess(near.buffered, LOW_WATER)
        self.assertEqual(len(reader.data), stopped_at)

    def test_a_file_sent_by_a_pull_producer_arrives(self) -> None:
        scene = Scene()
        near, far = scene.open()
        content = scene.random(3_000_000)
        sent = FileSender().beginFileTransfer(BytesIO(content), near)
        peak = 0
        for _ in range(400):
            scene.run(0.02)
            peak = max(peak, near.buffered)
        self.assertEqual(self.successResultOf(sent), content[-1:])
        near.loseConnection()
        scene.run(0.5)
        self.assertEqual(hashlib.sha256(far.protocol.data).digest(), hashlib.sha256(content).digest())
        self.assertLessEqual(peak, HIGH_WATER + FileSender.CHUNK_SIZE)

    def test_a_body_producer_of_twisted_web_arrives(self) -> None:
        scene = Scene()
        near, far = scene.open()
        content = scene.random(1_000_000)
        cooperator = Cooperator(scheduler=lambda call: scene.clock.callLater(0.001, call))
        producer = FileBodyProducer(BytesIO(content), cooperator=cooperator)
        near.registerProducer(producer, streaming=True)
        finished: Deferred[None] = producer.startProducing(near)
        finished.addCallback(lambda _: near.unregisterProducer())
        near.loseConnection()
        scene.run(5)
        self.successResultOf(finished)
        self.assertEqual(hashlib.sha256(far.protocol.data).digest(), hashlib.sha256(content).digest())
        self.assertIsInstance(far.protocol.reason, ConnectionDone)

    def test_a_pull_producer_that_has_nothing_at_hand_is_asked_again_after_it_wrote(self) -> None:
        class Slow(Pusher):
            asked = 0

            def resumeProducing(self) -> None:  # noqa: N802 - Twisted's name
                self.asked += 1

        scene = Scene()
        near, far = scene.open()
        slow = Slow(near)
        near.registerProducer(slow, streaming=False)
        scene.run(1)
        self.assertEqual(slow.asked, 1)
        near.write(b"at last")
        scene.run(1)
        self.assertEqual(slow.asked, 2)
        self.assertEqual(far.protocol.data, b"at last")

    def test_an_end_waits_for_the_producer(self) -> None:
        scene = Scene()
        near, far = scene.open()
        pusher = Pusher(near)
        near.registerProducer(pusher, streaming=True)
        near.loseConnection()
        scene.run(0.1)
        pusher.pump(b"not yet")
        scene.run(0.1)
        self.assertIsNone(far.protocol.reason)
        near.unregisterProducer()
        scene.run(0.1)
        self.assertEqual(far.protocol.data, b"not yet")
        self.assertIsInstance(far.protocol.reason, ConnectionDone)

    def test_a_producer_is_told_when_its_stream_is_gone(self) -> None:
        scene = Scene()
        for end in ("abort", "stop", "close"):
            near, far = scene.open()
            pusher = Pusher(near)
            near.registerProducer(pusher, streaming=True)
            match end:
                case "abort":
                    near.abortConnection()
                case "stop":
                    far.stop(5)
                case _:
                    scene.device.close()
            scene.run(0.2)
            self.assertEqual(pusher.calls, ["stop"], end)

    def test_only_one_producer_at_a_time_and_none_once_it_is_over(self) -> None:
        scene = Scene()
        near, _ = scene.open()
        near.registerProducer(Pusher(near), streaming=True)
        with self.assertRaises(RuntimeError):
            near.registerProducer(Pusher(near), streaming=True)
        near.unregisterProducer()
        near.loseWriteConnection()
        late = Pusher(near)
        near.registerProducer(late, streaming=True)
        self.assertEqual(late.calls, ["stop"])

    def test_a_producer_that_raises_costs_its_stream_only(self) -> None:
        class Broken(Pusher):
            def resumeProducing(self) -> None:  # noqa: N802 - Twisted's name
                msg = "a bug of the application"
                raise LookupError(msg)

        scene = Scene()
        near, far = scene.open()
        near.registerProducer(Broken(near), streaming=False)
        scene.run(0.2)
        self.assertIsInstance(far.protocol.reason, StreamReset)
        self.assertEqual(len(self.flushLoggedErrors(LookupError)), 1)
        self.assertFalse(scene.device.is_closed)


class BackPressureTests(SynchronousTestCase):
    """R3.8: a reader that stops costs one window a hop and stops its sender; afterwards all bytes are right."""

    def test_a_paused_reader_stops_the_sender_and_gets_everything_later(self) -> None:
        scene = Scene()
        near, far = scene.open()
        far.pauseProducing()
        content = scene.random(2_000_000)
        near.write(content)
        near.loseWriteConnection()
        scene.run(10)
        self.assertEqual(far.protocol.data, b"")
        self.assertGreaterEqual(near.buffered, len(content) - 3 * STREAM_WINDOW)
        held = near.buffered
        scene.run(10)
        self.assertEqual(near.buffered, held, "nothing moves")
        far.resumeProducing()
        self.assertEqual(far.protocol.data, b"", "not from within resumeProducing")
        scene.run(5)
        self.assertEqual(hashlib.sha256(far.protocol.data).digest(), hashlib.sha256(content).digest())
        self.assertIsInstance(far.protocol.reason, ConnectionDone)

    def test_a_reader_that_pauses_in_the_middle_is_given_nothing_more(self) -> None:
        class Sipper(Gatherer):
            def dataReceived(self, data: bytes) -> None:
                super().dataReceived(data)
                transport: Any = self.transport
                transport.pauseProducing()

        scene = Scene(Sipper)
        near, far = scene.open()
        near.write(bytes(100_000))
        scene.run(1)
        self.assertEqual(len(far.protocol.pieces), 1)
        for sips in range(2, 5):
            far.resumeProducing()
            scene.run(0.2)
            self.assertEqual(len(far.protocol.pieces), sips)

    def test_what_is_stalled_does_not_stop_other_streams_and_datagrams(self) -> None:
        scene = Scene()
        for _ in range(8):
            near, far = scene.open()
            far.pauseProducing()
            near.write(bytes(1_000_000))
        near, far = scene.open()
        near.write(bytes(500_000))
        scene.device.send(b"datagram")
        scene.run(10)
        self.assertEqual(len(far.protocol.data), 500_000)
        self.assertEqual(scene.peer.got, [b"datagram"])
        listed = scene.device.list_relays()
        scene.run(0.1)
        self.successResultOf(listed)

    def test_streams_given_up_while_stalled_give_their_credit_back(self) -> None:
        scene = Scene()
        windows = 2 * MAX_STREAMS + 1  # as many as the credit of the connection is worth
        for turn in range(2 * windows):
            near, far = scene.open()
            far.pauseProducing()
            near.write(bytes(STREAM_WINDOW - 1))
            if turn % 2:
                near.loseWriteConnection()
            scene.run(0.2)
            (near if turn % 4 == 0 else far).abortConnection()
            scene.run(0.05)
        near, far = scene.open()
        near.write(bytes(1_000_000))
        scene.run(10)
        self.assertEqual(len(far.protocol.data), 1_000_000)

    def test_stop_producing_is_a_reader_that_leaves(self) -> None:
        scene = Scene()
        near, far = scene.open(Gatherer())
        far.stopProducing()
        scene.run(0.2)
        self.assertFalse(near.is_writable)
        self.assertIsInstance(far.protocol.reason, ConnectionDone)


class LimitTests(SynchronousTestCase):
    """PROTOCOL §6, R6.9: streams beyond the relay's limit wait, a bounded number of them; ended ones make room."""

    def test_streams_beyond_the_limit_wait_their_turn_with_what_was_written(self) -> None:
        scene = Scene(HalfGatherer)
        streams = [scene.device.open_stream() for _ in range(MAX_STREAMS + 20)]
        for number, stream in enumerate(streams):
            stream.write(b"%d" % number)
        scene.run(0.5)
        began = len(scene.accepted)
        self.assertTrue(MAX_STREAMS - 1 <= began <= MAX_STREAMS)
        self.assertIsNone(streams[-1].stream_id)
        for stream in streams[:25]:
            stream.loseConnection()
        scene.run(0.5)
        self.assertEqual([stream.protocol.data for stream in scene.accepted], [b"%d" % n for n in range(len(streams))])

    def test_a_stream_may_end_while_it_waits(self) -> None:
        scene = Scene(HalfGatherer)
        streams = [scene.device.open_stream() for _ in range(MAX_STREAMS)]
        given_up, ended, stopped = (scene.device.open_stream() for _ in range(3))
        protocol = Gatherer()
        given_up.attach(protocol)
        given_up.write(b"never mind")
        given_up.abortConnection()
        ended.write(b"short")
        ended.loseWriteConnection()
        stopped.stop(9)
        scene.run(0.2)
        self.assertIsInstance(protocol.reason, ConnectionAborted)
        for stream in streams:
            stream.loseConnection()
        scene.run(1)
        self.assertEqual([bytes(stream.protocol.data) for stream in scene.accepted[MAX_STREAMS:]], [b"short", b""])
        self.assertEqual(scene.accepted[-2].protocol.read_ends, 1)
        self.assertIsInstance(scene.accepted[-1].protocol.reason, StreamStopped)

    def test_a_producer_of_a_stream_that_waits_is_held_back(self) -> None:
        scene = Scene(HalfGatherer)
        streams = [scene.device.open_stream() for _ in range(MAX_STREAMS)]
        waiting = scene.device.open_stream()
        content = scene.random(1_000_000)
        sent = FileSender().beginFileTransfer(BytesIO(content), waiting)
        scene.run(1)
        self.assertLessEqual(waiting.buffered, HIGH_WATER + FileSender.CHUNK_SIZE)
        for stream in streams:
            stream.loseConnection()
        scene.run(5)
        self.successResultOf(sent)
        self.assertEqual(scene.accepted[-1].protocol.data, content)

    def test_too_many_that_wait_are_refused_clearly(self) -> None:
        scene = Scene()
        for _ in range(MAX_STREAMS + MAX_WAITING - 1):
            scene.device.open_stream()
        with self.assertRaises(TooManyStreams):
            for _ in range(2):
                scene.device.open_stream()
        scene.device.open_stream(unidirectional=True)

    def test_hundreds_of_streams_one_after_another_of_each_kind_leave_nothing(self) -> None:
        scene = Scene()
        scene.device.on_stream = lambda stream: stream.attach(Gatherer())
        for turn in range(100):
            for client in (scene.device, scene.peer):
                for unidirectional in (False, True):
                    stream = client.open_stream(unidirectional=unidirectional)
                    stream.write(b"%d" % turn)
                    stream.loseConnection()
            scene.run(0.05)
        scene.run(1)
        self.assertEqual([leftovers(scene.device), leftovers(scene.peer)], [{}, {}])
        texts = {bytes(stream.protocol.data) for stream in scene.accepted}
        self.assertEqual(len(scene.accepted), 200)
        self.assertEqual(texts, {b"%d" % turn for turn in range(100)})

    def test_a_sender_cannot_make_us_hold_more_than_its_streams(self) -> None:
        scene = Scene(None)
        for _ in range(MAX_STREAMS + 30):
            stream = scene.device.open_stream(unidirectional=True)
            stream.write(b"whole, and nobody takes it")
            stream.loseConnection()
        scene.run(2)
        self.assertLessEqual(len(scene.accepted), MAX_STREAMS)
        taken = 0
        while taken < len(scene.accepted):
            scene.accepted[taken].attach(Gatherer())
            taken += 1
            scene.run(0.2)
        self.assertEqual(taken, MAX_STREAMS + 30)
