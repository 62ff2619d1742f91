"""``zrc-relay ctl events``: following what happens."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.ctl_support import CtlCase
from tests.real_relay import eventually
from zrc_relay.cli.ctl_client import SILENCE
from zrc_relay.cli.ctl_events import RETRY_DELAY, Event, Events, Follower, follow
from zrc_relay.cli.errors import Failure

STREAM = (
    b': listening\n\nid: 1\nevent: session.bound\ndata: {"time":"then","role":"DEVICE"}\n\n'
    b": keepalive\n\nid: 2\r\nevent: x\r\ndata: {}\r\n\r\n"
)


class EventsTests(SynchronousTestCase):
    """WHATWG HTML "Server-sent events": whole events come out, however the bytes come in."""

    def test_byte_by_byte_and_all_at_once(self) -> None:
        expected = [Event("1", "session.bound", {"time": "then", "role": "DEVICE"}), Event("2", "x", {})]
        self.assertEqual(list(Events().take(STREAM)), expected)
        events = Events()
        self.assertEqual([event for byte in STREAM for event in events.take(bytes((byte,)))], expected)

    def test_an_event_that_is_not_complete_does_not_come(self) -> None:
        self.assertEqual(list(Events().take(b"id: 1\nevent: a\ndata: {}\n")), [])

    def test_what_is_no_stream(self) -> None:
        self.assertRaises(Failure, list, Events().take(b"data: <html>\n\n"))
        self.assertRaises(Failure, list, Events().take(b"x" * 2**21))

    def test_a_line_for_people(self) -> None:
        event = Event("1", "session.bound", {"time": "2026-11-23T00:00:00Z", "size": 5, "why": "two\nwords here", "code": ""})
        self.assertEqual(str(event), '2026-11-23T00:00:00Z session.bound size=5 why="two\\nwords here" code=""')
        self.assertNotIn("\x1b", str(Event("1", "x", {"a": "\x1b[2J"})))


class Streams:
    """A client that hands out streams, and remembers what it was asked."""

    def __init__(self, *streams: bytes) -> None:
        self._streams = list(streams)
        self.kinds: list[Any] = []

    async def listen(self, take: Callable[[bytes], bool], **values: Any) -> None:
        self.kinds.append(values["kind"])
        if not self._streams:
            msg = "nobody listens"
            raise Failure(msg)
        take(self._streams.pop(0))


class FollowTests(SynchronousTestCase):
    """Issue "run it": it goes on when the relay ends a stream, and fails when the relay is gone."""

    def follow(self, *streams: bytes, count: int | None = None) -> tuple[list[str], list[str], Deferred[None], Clock, Streams]:
        shown: list[Event] = []
        warned: list[str] = []
        clock, client = Clock(), Streams(*streams)
        follower = Follower(shown.append, warned.append, count)
        running = Deferred.fromCoroutine(follow(clock, client, follower, kind="session"))
        for _ in streams:
            clock.advance(RETRY_DELAY)
        return [event.name for event in shown], warned, running, clock, client

    def test_after_an_end_it_listens_again(self) -> None:
        end = b'event: end\ndata: {"detail":"come again"}\n\n'
        names, warned, running, _, client = self.follow(STREAM + end, STREAM)
        self.assertEqual((names, warned), (["session.bound", "x"] * 2, []))
        self.assertEqual(client.kinds, ["session"] * 2)
        self.assertIn("without a word", str(self.failureResultOf(running, Failure).value))

    def test_events_that_were_lost_are_told(self) -> None:
        _, warned, running, _, _ = self.follow(b'event: overflow\ndata: {"detail":"too slow"}\n\n')
        self.assertEqual(len(warned), 1)
        self.assertIn("nobody listens", str(self.failureResultOf(running, Failure).value))

    def test_after_so_many_it_ends(self) -> None:
        names, _, running, _, _ = self.follow(STREAM, count=1)
        self.successResultOf(running)
        self.assertEqual(names, ["session.bound"])


class OverHttpTests(CtlCase):
    """Issue "run it": ``ctl events`` at a relay."""

    async def listening(self, *options: object) -> Deferred[Any]:
        waiting = Deferred.fromCoroutine(self.ctl("events", *options))
        await eventually(lambda: len(self.service.hub), "a listener")
        return waiting

    async def test_a_session_as_it_begins(self) -> None:
        waiting = await self.listening("--count", "3")
        await self.setup.pair()
        result = await waiting
        self.assertEqual(result.exit_code, 0, result.output)
        self.assertEqual([line.split()[1] for line in result.stdout.splitlines()],
                         ["allocation.created", "session.bound", "session.bound"])
        await eventually(lambda: not len(self.service.hub), "the end of the connection")

    async def test_one_kind_as_json(self) -> None:
        waiting = await self.listening("--count", "2", "--kind", "session", "--json")
        await self.setup.pair()
        lines = [json.loads(line) for line in (await waiting).stdout.splitlines()]
        self.assertEqual([line["event"] for line in lines], ["session.bound"] * 2)
        self.assertEqual({line["data"]["role"] for line in lines}, {"device", "peer"})

    async def test_when_the_relay_stops_it_says_so(self) -> None:
        waiting = await self.listening()
        await self.service.stopService()
        result = await waiting
        self.assertEqual(result.exit_code, 1)
        self.assertIn("nobody listens", result.stderr)

    async def test_who_may_not_listen_is_told(self) -> None:
        result = await self.ctl("events", token="wrong")  # noqa: S106 - it is
        self.assertEqual(result.exit_code, 3)

    def test_silence_is_longer_than_the_relay_keeps(self) -> None:
        from zrc_relay.control.events import KEEPALIVE  # noqa: PLC0415

        self.assertGreater(SILENCE, 2 * KEEPALIVE)
