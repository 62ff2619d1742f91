"""Streams of the client library as Twisted's transports, and their failures (PROTOCOL §6; R3.8)."""

from __future__ import annotations

import hashlib
import random
from typing import Any

from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.internet.interfaces import IConsumer, IPushProducer, ITransport
from twisted.protocols.basic import LineOnlyReceiver
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject  # type: ignore[import-untyped]

from tests.harness import TestClient, World
from tests.stream_ends import Gatherer, HalfGatherer, Scene, leftovers
from zrc_relay.client import ConnectionLost, RelayStream, StreamCode, StreamReset, StreamStopped
from zrc_relay.core.codes import Role, StreamError


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
