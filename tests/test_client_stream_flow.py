"""Streams of the client library as Twisted's producers and consumers, back-pressure and limits (PROTOCOL §6; R3.8)."""

from __future__ import annotations

import hashlib
from io import BytesIO
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.internet.task import Cooperator
from twisted.protocols.basic import FileSender
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.client import FileBodyProducer

from tests.stream_ends import Gatherer, HalfGatherer, Pusher, Scene, leftovers
from zrc_relay.client import StreamReset, StreamStopped, TooManyStreams
from zrc_relay.client.stream_halves import HIGH_WATER, LOW_WATER
from zrc_relay.client.stream_table import MAX_WAITING
from zrc_relay.client.trust import MAX_STREAMS, STREAM_WINDOW


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
