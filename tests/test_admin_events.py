"""Events for those who listen: the fan-out, one stream, and both over HTTP."""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import connectProtocol
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from tests.admin_support import READ_TOKEN, WRITE_TOKEN, AdminCase, Exchange, reactor, request_bytes, write_tokens
from tests.harness import Recorder
from tests.real_relay import PATIENCE, eventually
from zrc_relay.client.errors import TokenExpired
from zrc_relay.control.events import (
    KEEPALIVE,
    LINGER,
    MAX_LISTENERS,
    MAX_WAITING,
    Event,
    EventHub,
    EventStream,
    TooManyListeners,
)
from zrc_relay.control.routes import EventKind
from zrc_relay.core.codes import ErrorCode, Role

NOON = 1_795_348_800.0


class HubTests(SynchronousTestCase):
    """R10: allocation changes and security events go to everybody who listens, in order, each put into words once."""

    def setUp(self) -> None:
        self.log = Recorder()
        self.hub = EventHub(self.log, wall=lambda: NOON)
        self.got: list[Event] = []

    def listen(self) -> None:
        self.hub.listen(self.got.append, lambda: None)

    def test_an_event_has_its_time_and_its_fields(self) -> None:
        self.listen()
        self.hub.event("allocation.created", device="ab", tier="paid", size=7)
        (event,) = self.got
        self.assertEqual((event.name, event.kind, event.number), ("allocation.created", "allocation", 1))
        self.assertEqual(json.loads(event.data), {"time": "2026-11-22T12:00:00.000Z", "device": "ab", "tier": "paid", "size": 7})

    def test_the_log_gets_every_event_whoever_listens(self) -> None:
        self.hub.event("allocation.created", device="ab")
        self.listen()
        self.hub.event("session.lost", device="ab")
        self.assertEqual(self.log.names(), ["allocation.created", "session.lost"])

    def test_what_cannot_be_shown_is_left_out(self) -> None:
        self.listen()
        self.hub.event("session.bound", payload=b"secret", code=ErrorCode.IDLE, nothing=None, odd=float("nan"), ok=True)
        self.assertEqual(json.loads(self.got[0].data), {"time": "2026-11-22T12:00:00.000Z", "code": "IDLE", "ok": True})

    def test_security_events_come_once_and_as_the_security_log_has_them(self) -> None:
        self.listen()
        for name in ("session.refused", "security.blocked"):
            self.hub.event(name, source="192.0.2.7")
            self.hub.offer({"time": "then", "event": name, "source": "192.0.2.7"})
        self.assertEqual([(event.name, event.kind) for event in self.got], [
            ("session.refused", "security"), ("security.blocked", "security"),
        ])
        self.assertEqual(json.loads(self.got[0].data), {"time": "then", "source": "192.0.2.7"})

    def test_what_the_log_says_in_other_words_is_for_listeners_alone(self) -> None:
        self.hub.announce("worker.lost", worker=0)
        self.listen()
        self.hub.announce("worker.lost", worker=1)
        self.assertEqual([(event.kind, event.number, json.loads(event.data)) for event in self.got], [
            ("worker", 1, {"time": "2026-11-22T12:00:00.000Z", "worker": 1}),
        ])
        self.assertIn("worker", {kind.value for kind in EventKind})
        self.assertEqual(self.log.names(), [])

    def test_all_hear_the_same(self) -> None:
        self.listen()
        others: list[Event] = []
        self.hub.listen(others.append, lambda: None)
        self.hub.event("session.lost")
        self.assertEqual(self.got, others)
        self.hub.leave(others.append)
        self.hub.event("session.lost")
        self.assertEqual((len(self.got), len(others)), (2, 1))

    def test_there_is_an_upper_bound(self) -> None:
        for _ in range(MAX_LISTENERS):
            self.hub.listen(list[Event]().append, lambda: None)
        self.assertRaises(TooManyListeners, self.listen)

    def test_when_it_closes_everybody_is_told(self) -> None:
        ended: list[int] = []
        for number in range(3):
            self.hub.listen(list[Event]().append, lambda number=number: ended.append(number))  # type: ignore[misc]
        self.hub.close()
        self.assertEqual((sorted(ended), len(self.hub)), ([0, 1, 2], 0))

    def test_a_line_break_in_a_field_does_not_end_an_event(self) -> None:
        self.listen()
        self.hub.event("session.bound", claimed="x\n\nevent: forged\ndata: {}")
        lines = self.got[0].encode().decode().split("\n")
        self.assertEqual([line.partition(":")[0] for line in lines], ["id", "event", "data", "", ""])


class FakeTransport:
    """Notes when it is cut."""

    aborted = False

    def abortConnection(self) -> None:  # noqa: N802 - Twisted's name
        self.aborted = True


class FakeChannel:
    """The connection of a request."""

    def __init__(self) -> None:
        self.transport = FakeTransport()
        self.closed = False

    def loseConnection(self) -> None:  # noqa: N802 - Twisted's name
        self.closed = True


class FakeRequest:
    """A request that keeps what is written."""

    method = b"GET"

    def __init__(self) -> None:
        self.channel = FakeChannel()
        self.written = b""
        self.producer: Any = None
        self._waiting: list[Deferred[None]] = []

    def notifyFinish(self) -> Deferred[None]:  # noqa: N802 - Twisted's name
        self._waiting.append(Deferred())
        return self._waiting[-1]

    def registerProducer(self, producer: Any, streaming: bool) -> None:  # noqa: N802, FBT001 - Twisted's name
        del streaming
        self.producer = producer

    def unregisterProducer(self) -> None:  # noqa: N802 - Twisted's name
        self.producer = None

    def write(self, data: bytes) -> None:
        self.written += data

    def finish(self) -> None:
        for waiting in self._waiting:
            waiting.callback(None)

    def lose(self) -> None:
        """The connection is gone."""
        for waiting in self._waiting:
            waiting.errback(Failure(ConnectionError("gone")))

    def events(self) -> list[str]:
        """The names of the events written so far."""
        return [line[7:] for line in self.written.decode().splitlines() if line.startswith("event: ")]


class StreamTests(SynchronousTestCase):
    """R10, R6.9: a reader gets what he asked for; one that is too slow is dropped, with a last event."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.request = FakeRequest()
        self.gone: list[bool] = []
        self.stream = self.make(None)

    def make(self, kind: EventKind | None) -> EventStream:
        stream = EventStream(self.request, kind, self.clock, lambda: self.gone.append(True), seconds=100)
        stream.begin()
        return stream

    def tell(self, count: int, name: str = "session.lost") -> None:
        for number in range(count):
            self.stream.take(Event(number, name, "{}"))

    def test_an_event_is_written_as_the_standard_says(self) -> None:
        self.stream.take(Event(7, "session.lost", '{"a":1}'))
        self.assertTrue(self.request.written.endswith(b'id: 7\nevent: session.lost\ndata: {"a":1}\n\n'))

    def test_only_the_kind_that_was_asked_for(self) -> None:
        self.request = FakeRequest()
        self.stream = self.make(EventKind.SECURITY)
        for name in ("session.lost", "session.refused", "allocation.ended", "security.blocked"):
            self.tell(1, name)
        self.assertEqual(self.request.events(), ["session.refused", "security.blocked"])

    def test_what_the_connection_does_not_take_waits_in_order(self) -> None:
        self.request.producer.pauseProducing()
        for name in ("allocation.a", "allocation.b"):
            self.tell(1, name)
        self.assertEqual(self.request.events(), [])
        self.request.producer.resumeProducing()
        self.tell(1, "allocation.c")
        self.assertEqual(self.request.events(), ["allocation.a", "allocation.b", "allocation.c"])

    def test_a_connection_that_fills_again_stops_it_again(self) -> None:
        producer = self.request.producer
        producer.pauseProducing()
        self.tell(3)
        write = self.request.write

        def fill(data: bytes) -> None:
            write(data)
            producer.pauseProducing()

        self.request.write = fill  # type: ignore[method-assign]
        producer.resumeProducing()
        self.assertEqual(len(self.request.events()), 1)

    def test_a_reader_who_is_too_slow_is_dropped_with_a_last_event(self) -> None:
        self.request.producer.pauseProducing()
        self.tell(MAX_WAITING)
        self.assertEqual(self.gone, [])
        self.tell(1)
        self.assertEqual((self.request.events(), self.gone), (["overflow"], [True]))
        self.assertTrue(self.request.channel.closed)
        self.assertFalse(self.request.channel.transport.aborted)
        self.clock.advance(LINGER)
        self.assertTrue(self.request.channel.transport.aborted)
        self.tell(1)
        self.assertEqual(self.request.events(), ["overflow"])

    def test_comments_keep_it_alive(self) -> None:
        self.clock.pump([KEEPALIVE] * 3)
        self.assertEqual(self.request.written.count(b": keepalive\n\n"), 3)
        self.request.producer.pauseProducing()
        self.clock.advance(KEEPALIVE)
        self.assertEqual(self.request.written.count(b": keepalive\n\n"), 3)

    def test_it_ends_after_a_while(self) -> None:
        self.clock.pump([10] * 9)
        self.assertEqual(self.gone, [])
        self.clock.advance(10)
        self.assertEqual((self.request.events(), self.gone, self.clock.getDelayedCalls()), (["end"], [True], []))

    def test_what_waits_comes_before_the_end(self) -> None:
        self.request.producer.pauseProducing()
        self.tell(2)
        self.stream.end()
        self.assertEqual(self.request.events(), ["session.lost", "session.lost", "end"])

    def test_a_reader_who_leaves_leaves_nothing_behind(self) -> None:
        self.request.lose()
        self.assertEqual((self.gone, self.clock.getDelayedCalls()), ([True], []))
        written = self.request.written
        self.tell(1)
        self.stream.end()
        self.assertEqual(self.request.written, written)


class Listening(Exchange):
    """A listener over a real connection."""

    def events(self) -> list[tuple[str, Any]]:
        """Names and data of the events so far."""
        found = []
        for block in self.received.decode().split("\n\n"):
            fields = dict(line.partition(": ")[::2] for line in block.splitlines() if line[:1] not in (":", ""))
            if "event" in fields:
                found.append((fields["event"], json.loads(fields["data"])))
        return found

    def names(self) -> list[str]:
        return [name for name, _ in self.events()]


class OverHttpTests(AdminCase):
    """Issue "run it": ``GET /admin/events``."""

    async def listen(self, path: str = "/admin/events", token: str = READ_TOKEN) -> Listening:
        """Listen until the test ends."""
        protocol = Listening(request_bytes("GET", path, token=token))
        await connectProtocol(self.client, protocol)
        await eventually(lambda: b": listening" in protocol.received, "the beginning of the stream")
        self.addCleanup(self.leave, protocol)
        return protocol

    def leave(self, protocol: Listening) -> Deferred[bytes]:
        if not protocol.done.called:
            protocol.close()
        return protocol.done

    async def test_a_session_from_its_beginning_to_its_end(self) -> None:
        listener = await self.listen()
        self.assertIn(b"text/event-stream", listener.received)
        device, _ = await self.setup.pair()
        await device.relay.release()
        await eventually(lambda: "allocation.ended" in listener.names(), "the end")
        names = listener.names()
        self.assertEqual(names[:3], ["allocation.created", "session.bound", "session.bound"])
        ended = dict(listener.events())["allocation.ended"]
        self.assertEqual((ended["reason"], ended["allocation"]), ("released", self.setup.token.allocation_id.hex()))

    async def test_security_events_alone(self) -> None:
        listener = await self.listen("/admin/events?kind=security")
        await self.setup.connect(Role.DEVICE)
        with self.assertRaises(TokenExpired):
            await self.setup.connect(Role.DEVICE, token=self.setup.another_token(expires_at=1))
        await eventually(listener.events, "an event")
        self.assertEqual([(name, data["code"]) for name, data in listener.events()], [("session.refused", "TOKEN_EXPIRED")])

    async def test_who_leaves_is_forgotten(self) -> None:
        listener = await self.listen()
        self.assertEqual(len(self.service.hub), 1)
        await self.leave(listener)
        await eventually(lambda: not len(self.service.hub), "an empty hub")

    async def test_too_many_are_refused_with_503(self) -> None:
        listeners = [await self.listen() for _ in range(MAX_LISTENERS)]
        answer = await self.ask("GET", "/admin/events")
        self.assertEqual((answer.status, answer.headers["retry-after"]), (503, "60"))
        await self.leave(listeners[0])
        await eventually(lambda: len(self.service.hub) < MAX_LISTENERS, "room")
        await self.listen()

    async def test_when_the_relay_stops_listeners_are_told(self) -> None:
        listener = await self.listen()
        stopped = self.service.stopService()
        await listener.done.addTimeout(PATIENCE, reactor)
        await stopped
        self.assertEqual(listener.names()[-1], "end")

    async def test_who_lost_his_token_listens_no_longer(self) -> None:
        reader, writer = await self.listen(token=READ_TOKEN), await self.listen(token=WRITE_TOKEN)
        write_tokens(self.tokens, {"writer": (WRITE_TOKEN, ["read", "write"])})
        self.assertEqual((await self.ask("POST", "/admin/reload")).status, 200)
        await reader.done.addTimeout(PATIENCE, reactor)
        self.assertEqual(reader.names()[-1], "end")
        self.assertFalse(writer.done.called)

    async def test_it_is_audited_when_it_begins(self) -> None:
        await self.listen()
        (record,) = self.audited()
        self.assertEqual((record["action"], record["who"], record["status"]), ("listen", "reader", 200))
